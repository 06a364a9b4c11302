"""Each image counted once: also where a loader gives it twice, or two ranks have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered, rank, ranks

__all__ = ["EachOnce", "SeenImages"]

# Images with an index below this are remembered, at one byte each.
_MOST_SEEN = 2**24


class SeenImages:
    """Remembers which images have come, by indices below 2**24.

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

    def fresh(self, indices: Tensor) -> Tensor:
        """Return the places of images that have not come, each image once, in the order of their indices."""
        ordered, order = indices.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        return order[first & ~self.among(ordered)]

    def add(self, indices: Tensor) -> None:
        """Note that some images, at least one, have come."""
        self.highest = max(self.highest, int(indices.max()))
        indices = indices[(indices >= 0) & (indices < _MOST_SEEN)]
        missing = int(indices.max()) + 1 - len(self._flags) if len(indices) else 0
        if missing > 0:
            self._flags = torch.cat([self._flags, self._flags.new_zeros(max(missing, len(self._flags)))])
        self._flags[indices] = True

    @property
    def indices(self) -> Tensor:
        """The images that are remembered, ascending."""
        return self._flags.nonzero()[:, 0]


class EachOnce:
    """Hands on what is known of each image once, whichever rank has it.

    An image belongs to the rank `index % ranks`, which need not ask the others. Where another rank reads it, its rows
    are kept until `merge`: with Lightning's sampler for validation, which pads, that is one image at the most.

    Args:
        seen: Remembers, on this rank, which images have come; whoever calls `take` adds to it afterwards.
        count: Takes the rows `(N, ...)` of some images that count.
    """

    def __init__(self, seen: SeenImages, count: Callable[..., None]) -> None:
        self._seen, self._count = seen, count
        self._waiting: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def take(self, indices: Tensor, *rows: Tensor) -> None:
        """Count images now, or when ranks meet.

        Args:
            indices: `(N,)` int64, on the CPU, of images that have not come to this rank.
            rows: `(N, ...)` each.
        """
        own = indices % ranks() == rank()
        if bool(own.all()):
            self._hand_on(rows)
            return
        self._hand_on(tuple(part[own] for part in rows))
        self._waiting.append((indices[~own], tuple(part[~own] for part in rows)))

    def merge(self) -> None:
        """Count the images that wait, each on one rank; every rank calls this."""
        if ranks() == 1:
            return
        waiting = torch.cat([numbers for numbers, _ in self._waiting] or [torch.empty(0, dtype=torch.int64)])
        own = self._seen.indices
        own = own[own % ranks() == rank()]
        self.count_waiting(torch.cat([*gathered(own), *gathered(waiting)[: rank()]]))

    def count_waiting(self, elsewhere: Tensor | None = None) -> None:
        """Count the images that wait, but for those that are counted elsewhere; this rank alone."""
        for indices, rows in self._waiting:
            kept = torch.ones_like(indices, dtype=torch.bool) if elsewhere is None else ~torch.isin(indices, elsewhere)
            self._hand_on(tuple(part[kept] for part in rows))
        self._waiting = []

    def _hand_on(self, rows: tuple[Tensor, ...]) -> None:
        if len(rows[0]):
            self._count(*rows)
