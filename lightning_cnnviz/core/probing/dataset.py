"""What a loader's data set tells before any of its images is read, and which of them are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lightning_cnnviz.core.data.batches import BatchFn, class_labels, has_indices

__all__ = ["NO_LABELS", "dataset_labels", "drawn_images", "why_no_labels"]


_FORMS = (
    "labels (N,) of whole numbers, (N, K) of zeros and ones, (N,) or (N, V) of values, or (N, H, W) of the classes of "
    "pixels"
)

NO_LABELS = (
    "a probe needs the class of each image, and finds none in the batch; give batch_fn=... that returns "
    f"(images, labels) with {_FORMS}"
)
"""What to say of a batch without class labels; see `why_no_labels` where the batch itself is at hand."""


def drawn_images(count: int, limit: int | None, seed: int) -> Tensor:
    """Return the indices, ascending, of the images of a data set of `count` that are read at a limit.

    Example:
        >>> len(drawn_images(50, 7, seed=0)), drawn_images(3, 7, seed=0)
        (7, tensor([0, 1, 2]))
    """
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def dataset_labels(loader: Any) -> Tensor | None:
    """Return the class of each image of a loader's data set, `(N,)` int64, where it tells without reading images.

    Images without a class have -1, see `class_labels`.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> images = TensorDataset(torch.rand(3, 1, 4, 4), torch.tensor([2, 0, 1]))
        >>> dataset_labels(DataLoader(Subset(images, [0, 2])))
        tensor([2, 1])
    """
    return _labels_of(loader.dataset) if has_indices(loader) else None


def _labels_of(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        held: Any = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        held = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        return None
    return class_labels(labels) if labels.ndim == 1 and len(labels) == len(dataset) else None


def why_no_labels(batch: Any, batch_fn: BatchFn | None = None) -> str:
    """Say why `read_batch` finds nothing in a batch that probes could learn from, and what would do.

    Example:
        >>> why_no_labels((torch.rand(2, 1, 4, 4), torch.rand(2, 3, 3)))[:62]
        'a probe needs classes, labels or values, but the labels are to'
    """
    given = batch if batch_fn is None else batch_fn(batch)
    if isinstance(given, Mapping):
        names = {"label", "labels", "y", "target", "targets"}
        labels = next((value for name, value in given.items() if name in names), None)
    else:
        labels = given[1] if isinstance(given, (list, tuple)) and len(given) > 1 else None
    mend = f"give batch_fn=... that returns (images, labels) with {_FORMS}"
    if not isinstance(labels, Tensor):
        got = "the batch has no labels" if labels is None else f"the batch's labels are a {type(labels).__name__}"
        return f"a probe needs the class of each image, but {got}; {mend}"
    what = f"{labels.dtype} of shape {tuple(labels.shape)}"
    return f"a probe needs classes, labels or values, but the labels are {what}; {mend}"
