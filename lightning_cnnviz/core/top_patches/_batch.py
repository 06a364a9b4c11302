"""The images of one forward pass, and which of them count."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.data.once import SeenImages
from lightning_cnnviz.core.top_patches._units import NO_LABEL

__all__ = ["Batch", "size_of"]


class Batch:
    """The images of one pass. One that comes again does not count: random transforms may have made it another.

    Args:
        images: `(N, C, H, W)`, at least one; or signals `(N, C, L)`, or volumes `(N, C, D, H, W)`.
        indices: `(N,)` int64, on the CPU.
        labels: `(N,)` int64, on the CPU, below 0 for none; or None.
        seen: The images that came in earlier batches.

    Attributes:
        size: Height and width of the images; of signals their length, of volumes depth, height and width.
        places: Places in the batch of the images that count, in the order of their indices.
        fresh: Whether all indices are higher than all earlier ones, as those of a sequential loader are.
    """

    def __init__(self, images: Tensor, indices: Tensor, labels: Tensor | None, seen: SeenImages) -> None:
        self.images, self.indices = images, indices
        self.labels = None if labels is None else labels.masked_fill(labels < 0, NO_LABEL)
        self.size = size_of(images)
        order = indices.argsort(stable=True)
        self.places = seen.fresh(indices)
        self.fresh = int(indices.min()) > seen.highest
        self._all_count = len(self.places) == len(order)
        self._repeated = torch.ones(len(order), 1, dtype=torch.bool)
        self._repeated[self.places] = False
        self._rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))

    def __len__(self) -> int:
        return len(self.images)

    def counted(self, values: Tensor) -> Tensor:
        """Numbers `(N, C)`, with -inf for images that do not count."""
        return values if self._all_count else values.masked_fill(self._repeated, -torch.inf)

    def by_line(self, lines: Tensor, places: Tensor) -> Tensor:
        """Return the order that sorts pairs of a line and a place by line, and within a line by the image's index."""
        return (lines * len(self._rank) + self._rank[places]).argsort()


def size_of(images: Tensor) -> tuple[int, ...]:
    """Return height and width of images; of signals their length, of volumes depth, height and width.

    Raises:
        ValueError: They are too large for positions of 15 bits.
    """
    size = tuple(images.shape[2:])
    if max(size) >= 2**15:
        sides = " x ".join(map(str, size))
        raise ValueError(f"images of {sides} px are too large: at most 32,767 px a side")
    return size
