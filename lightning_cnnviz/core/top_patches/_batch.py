"""The images of one forward pass, and which of them count."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Batch", "SeenImages"]

# Images with an index below this are remembered, at one byte each. One with a higher index still counts once if it
# comes twice, since the lists know it; but if random transforms made it differ, its patch may be of either time.
_MOST_SEEN = 2**24


class SeenImages:
    """Remembers which images have come.

    Attributes:
        highest: The highest index so far; -1 before the first.
    """

    def __init__(self) -> None:
        self.highest = -1
        self._flags = torch.zeros(1, dtype=torch.bool)  # by index

    def among(self, indices: Tensor) -> Tensor:
        """Say which of some images have come."""
        places = indices.clamp(0, len(self._flags) - 1)
        return self._flags[places] & (places == indices)

    def add(self, indices: Tensor) -> None:
        """Note that some images, at least one, have come."""
        self.highest = max(self.highest, int(indices.max()))
        indices = indices[(indices >= 0) & (indices < _MOST_SEEN)]
        missing = int(indices.max()) + 1 - len(self._flags) if len(indices) else 0
        if missing > 0:
            self._flags = torch.cat([self._flags, self._flags.new_zeros(max(missing, len(self._flags)))])
        self._flags[indices] = True


class Batch:
    """The images of one pass. One that comes again does not count: random transforms may have made it another.

    Args:
        images: `(N, C, H, W)`, at least one.
        indices: `(N,)` int64, on the CPU.
        labels: `(N,)` int64, on the CPU, or None.
        seen: The images that came in earlier batches.

    Attributes:
        size: Height and width of the images.
        places: Places in the batch of the images that count, in the order of their indices.
        fresh: Whether all indices are higher than all earlier ones, as those of a sequential loader are.
    """

    def __init__(self, images: Tensor, indices: Tensor, labels: Tensor | None, seen: SeenImages) -> None:
        self.images, self.indices, self.labels = images, indices, labels
        self.size = size_of(images)
        ordered, order = indices.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self.places = order[first & ~seen.among(ordered)]
        self.fresh = int(ordered[0]) > seen.highest
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


def size_of(images: Tensor) -> tuple[int, int]:
    """Return height and width of images.

    Raises:
        ValueError: They are too large for positions of 15 bits.
    """
    height, width = images.shape[-2:]
    if max(height, width) >= 2**15:
        raise ValueError(f"images of {height} x {width} px are too large: at most 32,767 px a side")
    return height, width
