"""How people see what a view was made on: its images, their names, and the scale that is undone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.network.classification import Classified, fill_values
from lightning_cnnviz.render.normalization import ChannelSpec, Normalization, chosen_normalization, find_normalization

__all__ = ["Display", "class_names", "display_of_sample", "file_names", "readable_names"]

_IMAGENET_FOLDER = re.compile(r"(n\d{8})_(.+)", re.DOTALL)


@dataclass(frozen=True, eq=False, kw_only=True)
class Display:
    """How people see the images that a view was made on.

    Attributes:
        normalization: Undone for display.
        fill: `(C,)`, gray in the network's values: the mean that was subtracted where a normalization is known, else
            the sample's own mean; None where there is no sample.
        pixels: Of each image of the sample, `(3, H, W)` uint8.
        indices: Of each image.
        labels: The class of each image, -1 for none; None where the data has none.
        class_names: Names of the classes, where they are known; as people read them (see `readable_names`).
        files: Of images by their index, the name of the file, where that is known.
        examples: By name, pictures that belong to the view: of each image of the sample some, `(3, H, W)` uint8.
    """

    normalization: Normalization = field(default_factory=lambda: Normalization((0.0,), (1.0,), "given"))
    fill: Tensor | None = None
    pixels: tuple[Tensor, ...] = ()
    indices: tuple[int, ...] = ()
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    files: Mapping[int, str] = field(default_factory=dict)
    examples: Mapping[str, tuple[tuple[Tensor, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names is not None:
            object.__setattr__(self, "class_names", readable_names(self.class_names))

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The normalization as core takes it."""
        return self.normalization.mean, self.normalization.std

    def of(self, classified: Classified) -> Display:
        """Return how those of the images are shown that a result is about; see `Classified.numbers`."""
        if classified.numbers is None:
            return self
        those = classified.of_those
        return replace(
            self,
            pixels=those(self.pixels) if self.pixels else (),
            indices=those(self.indices) if self.indices else (),
            labels=None if self.labels is None else those(self.labels),
            examples={
                name: tuple(rows[number] for number in classified.numbers.tolist() if number < len(rows))
                for name, rows in self.examples.items()
            },
        )

    @property
    def fill_pixel(self) -> Tensor | None:
        """The fill as a color `(3,)` uint8."""
        if self.fill is None:
            return None
        return self.normalization.to_pixels(self.fill.view(-1, 1, 1).float())[:, 0, 0]


def display_of_sample(
    sample: Sample,
    dataset: Any,
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    names: Sequence[str] | None = None,
    channels: ChannelSpec = None,
) -> Display:
    """Settle how the images of a sample are shown.

    Args:
        sample: The images.
        dataset: What they are from: asked for its normalization, names of classes and of files; or None.
        normalization: `(mean, std)`, instead of the data set's.
        names: Of the classes, instead of the data set's.
        channels: Which channels are shown.

    Raises:
        ValueError: The normalization or the channels do not fit the images.
    """
    shown = chosen_normalization(normalization, dataset, sample.images, channels)
    told = normalization is not None or find_normalization(dataset) is not None
    # Zero is the mean that was subtracted; of a normalization that subtracts none, it would be black.
    subtracts = told and any(value != 0 for value in shown.mean)
    return Display(
        normalization=shown,
        fill=torch.zeros(sample.images.shape[1]) if subtracts else fill_values(sample.images.float(), None),
        pixels=tuple(shown.to_pixels(image) for image in sample.images),
        indices=tuple(sample.indices.tolist()),
        labels=None if sample.classes is None else tuple(sample.classes.tolist()),
        class_names=tuple(names) if names else class_names(dataset),
        files=file_names(dataset, sample.indices.tolist()),
    )


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of a data set's labels, where it tells."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Mapping):
            names = list(names)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
        dataset = getattr(dataset, "dataset", None)  # inside Subset
    return None


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes as people read them: a folder of ImageNet is called by its word.

    Where two have one word, their numbers tell them apart.

    Example:
        >>> readable_names(["n01484850_great_white_shark", "n02012849_crane", "n03126707_crane", "my_class"])
        ('great white shark', 'crane (n02012849)', 'crane (n03126707)', 'my_class')
    """
    found = [_IMAGENET_FOLDER.fullmatch(str(name)) for name in names]
    words = [
        str(name) if folder is None else folder[2].replace("_", " ") for name, folder in zip(names, found, strict=True)
    ]
    count = Counter(words)
    return tuple(
        f"{word} ({folder[1]})" if folder is not None and count[word] > 1 else word
        for word, folder in zip(words, found, strict=True)
    )


def file_names(dataset: Any, indices: Sequence[int]) -> dict[int, str]:
    """Return the files of some images of a data set, by index, where it tells.

    Read are `samples`, `imgs` and `files`, as torchvision's data sets of folders have them, through `Subset` and
    `ConcatDataset`. A list of any other kind, or of another length than the data set's, tells nothing.
    """
    listed: dict[int, Sequence[Any]] = {}
    named = ((index, _file(dataset, index, listed)) for index in dict.fromkeys(indices))
    return {index: name for index, name in named if name}


def _file(dataset: Any, index: int, listed: dict[int, Sequence[Any]]) -> str:
    """The file of one image; `listed` keeps the lists of data sets, which may make theirs anew at each asking."""
    for _ in range(16):  # a data set inside data sets
        if isinstance(dataset, torch.utils.data.Subset):
            if not 0 <= index < len(dataset.indices):
                return ""
            dataset, index = dataset.dataset, int(dataset.indices[index])
        elif isinstance(dataset, torch.utils.data.ConcatDataset):
            place = next((n for n, end in enumerate(dataset.cumulative_sizes) if 0 <= index < end), None)
            if place is None:
                return ""
            index -= dataset.cumulative_sizes[place - 1] if place else 0
            dataset = dataset.datasets[place]
        else:
            if id(dataset) not in listed:
                listed[id(dataset)] = _files(dataset)
            files = listed[id(dataset)]
            entry = files[index] if 0 <= index < len(files) else ""
            entry = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
            return str(entry) if isinstance(entry, str) or hasattr(entry, "__fspath__") else ""
    return ""


def _files(dataset: Any) -> Sequence[Any]:
    lists = (getattr(dataset, name, None) for name in ("samples", "imgs", "files"))
    return next((files for files in lists if isinstance(files, (list, tuple))), ())
