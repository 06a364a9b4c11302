"""How the images of a data set are shown to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_cnnviz.render.normalization import Normalization, find_normalization, normalization_from_range

__all__ = ["chosen_normalization", "class_names"]


def chosen_normalization(
    given: tuple[list[float], list[float]] | None, dataset: Any, patches: Iterable[Tensor]
) -> Normalization:
    """Return the normalization that was given, else that of the data set's transforms, else one made for `patches`."""
    if given is not None:
        mean, std = given
        return Normalization(tuple(mean), tuple(std))
    return find_normalization(dataset) or normalization_from_range(list(patches))


def class_names(dataset: Any) -> Sequence[str] | None:
    """Return the names of a data set's labels, where it tells."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Mapping):
            names = list(names)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return names
        dataset = getattr(dataset, "dataset", None)  # inside Subset
    return None
