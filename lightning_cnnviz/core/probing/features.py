"""Features of images at chosen layers: what linear probes are fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Features", "LayerFeatures", "first_of_each", "merge_features"]

_CHUNK = 4096  # columns that are read at once from features on disk


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerFeatures:
    """The features of one layer.

    Attributes:
        layer: The layer's name.
        values: `(N, D)` float32 in memory, or None where they lie in `file`.
        shape: Channels, height and width of the layer's feature maps; of those of signals channels and length, of those
            of volumes channels, depth, height and width.
        pooled: Height and width to which the maps were pooled, or as many sides as `shape` has; D is channels times
            these.
        images: N.
        file: N rows of D float32 each, where features are too many for the memory.
    """

    layer: str
    values: Tensor | None
    shape: tuple[int, ...]
    pooled: tuple[int, ...]
    images: int
    file: Path | None = None
    _keeper: Any = field(default=None, repr=False)  # a temporary folder lives as long as what lies in it

    def __post_init__(self) -> None:
        if (self.values is None) == (self.file is None):
            raise ValueError(f"features of layer '{self.layer}' lie in memory or in a file, in one of both")
        if self.values is not None and self.values.shape != (self.images, self.dimensions):
            raise ValueError(
                f"features of layer '{self.layer}' are {tuple(self.values.shape)}, not {(self.images, self.dimensions)}"
            )

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""
        return self.shape[0] * math.prod(self.pooled)

    def columns(self, start: int, stop: int) -> Tensor:
        """Return some features of all images, `(N, stop - start)` float32."""
        if self.values is not None:
            return self.values[:, start:stop]
        assert self.file is not None
        # Read and not mapped: pages of a mapped file count as this process's memory, and may be as large as the file.
        block = np.empty((self.images, stop - start), np.float32)
        with self.file.open("rb", buffering=0) as file:
            for row in range(self.images):
                file.seek(4 * (row * self.dimensions + start))
                if file.readinto(memoryview(block[row]).cast("B")) != block[row].nbytes:
                    raise ValueError(f"file {self.file} of layer '{self.layer}' ends before image {row}")
        return torch.from_numpy(block)

    def chunks(self, width: int = _CHUNK) -> Iterator[Tensor]:
        """Iterate over all features in column blocks `(N, width)`."""
        for start in range(0, self.dimensions, width):
            yield self.columns(start, min(start + width, self.dimensions))

    def dense(self) -> Tensor:
        """Return all features `(N, D)` in memory."""
        return self.columns(0, self.dimensions)


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The features of all images at all chosen layers; iterates over layers, in the order in which they run.

    Attributes:
        layers: One for each layer.
        labels: `(N,)` int64 classes, `(N, K)` int8 labels or `(N, V)` float32 values, see `probe_targets`.
        indices: `(N,)` int64, ascending: data-set indices, or numbers in the order of arrival. Of pixels, `pixels`
            times these and the pixel's number in its image.
        indices_known: Whether the indices are those of the data set.
        pixels: 0 where N counts images; else N counts pixels, so many of each image.
    """

    layers: tuple[LayerFeatures, ...]
    labels: Tensor
    indices: Tensor
    indices_known: bool = True
    pixels: int = 0

    @property
    def images(self) -> int:
        """How many images the features are of."""
        return len((self.indices // self.pixels).unique()) if self.pixels else len(self.indices)

    def among(self, indices: Tensor) -> Features:
        """Return the features, in memory, of those images alone whose index is among some."""
        kept = torch.isin(self.indices // max(self.pixels, 1), indices)
        layers = tuple(
            replace(layer, values=layer.dense()[kept], images=int(kept.sum()), file=None, _keeper=None)
            for layer in self.layers
        )
        return replace(self, layers=layers, labels=self.labels[kept], indices=self.indices[kept])

    def __iter__(self) -> Iterator[LayerFeatures]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: str) -> LayerFeatures:
        for features in self.layers:
            if features.layer == layer:
                return features
        raise KeyError(f"no features of layer '{layer}'; there are {[features.layer for features in self.layers]}")


def merge_features(parts: Sequence[Features]) -> Features:
    """Join the features of several parts of a data set, as ranks have them: in the order of indices, each image once.

    Raises:
        ValueError: There is no image, or the parts have different layers.
    """
    parts = [part for part in parts if len(part.indices)]
    if not parts:
        raise ValueError("there are no features to merge: no part has an image")
    first = parts[0]
    forms = {(part.pixels, part.labels.shape[1:]) for part in parts}
    if len(forms) > 1:
        raise ValueError(f"features with labels of different forms: {sorted(forms)}")
    if any([layer.layer for layer in part] != [layer.layer for layer in first] for part in parts):
        raise ValueError(f"features of different layers: {[[layer.layer for layer in part] for part in parts]}")
    indices = torch.cat([part.indices for part in parts])
    places = first_of_each(indices)
    if len(parts) == 1 and torch.equal(places, torch.arange(len(indices))):
        return first
    labels = torch.cat([part.labels for part in parts])
    if any(layer.values is None for layer in first):
        raise ValueError(
            "features on disk (pool=None) are read in the order of the data set, by one process; the loader gives them "
            "in another: give a DataLoader of a map-style data set, or pool=<number of features>"
        )
    layers = tuple(
        replace(layer, values=torch.cat([part[layer.layer].dense() for part in parts])[places], images=len(places))
        for layer in first
    )
    indices_known = all(part.indices_known for part in parts)
    return replace(first, layers=layers, labels=labels[places], indices=indices[places], indices_known=indices_known)


def first_of_each(indices: Tensor) -> Tensor:
    """Return the places of the indices in ascending order, of repeated ones the first.

    Example:
        >>> first_of_each(torch.tensor([7, 3, 7, 5]))
        tensor([1, 3, 0])
    """
    order = torch.argsort(indices, stable=True)
    ranked = indices[order]
    fresh = torch.ones(len(ranked), dtype=torch.bool)
    fresh[1:] = ranked[1:] != ranked[:-1]
    return order[fresh]
