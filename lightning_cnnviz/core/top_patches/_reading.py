"""What one forward pass shows of one layer: scores and maxima, and the strongest units of the maps that may enter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import RankBy

__all__ = ["Deferred", "Reading", "spatial_means", "strongest_units"]

# Feature maps are searched in pieces of this many elements, which stay in the cache.
_CHUNK = 2**18
# Feature maps of this many units are searched where they lie, one by one; smaller ones are copied together first.
_LARGE = 1024

Admit = Callable[[Tensor], Tensor]
"""Takes scores `(N, C)`, returns which feature maps may enter the lists: `(E,)` int64, n * C + c."""


@dataclass(frozen=True)
class Reading:
    """One layer's feature maps `(N, C, H, W)` as far as the lists need them.

    Attributes:
        nonfinite: `(N,)` bool, images with a feature map whose largest activation is NaN or infinite; None for none.
        maxima: `(N, C)`, the largest finite activation of each feature map; -inf where there is none.
        entering: `(E,)` int64, feature maps that may enter the lists: n * C + c.
        scores: `(E, units)`, of the strongest units of these; -inf where a map has fewer.
        activations: `(E, units)`, likewise, the strongest first.
        positions: `(E, units)` int64, counted row by row.
    """

    nonfinite: Tensor | None
    maxima: Tensor
    entering: Tensor
    scores: Tensor
    activations: Tensor
    positions: Tensor

    @classmethod
    def at_once(cls, maps: Tensor, rank_by: RankBy, units: int, admit: Admit) -> Reading:
        """Read feature maps on the CPU: each once for its maximum, and again those alone that may enter the lists."""
        nonfinite = None
        maxima = _wide(maps.amax((2, 3)))
        if not np.isfinite(maxima.numpy()).all():
            nonfinite = ~torch.isfinite(maxima).all(1)
            maps = torch.where(torch.isfinite(maps), maps, -torch.inf)
            maxima = _wide(maps.amax((2, 3)))
        scores = maxima if rank_by == "max" else spatial_means(maps)
        entering = admit(scores)
        if not len(entering):
            none = maxima.new_empty(0, units)
            return cls(nonfinite, maxima, entering, none, none, entering.new_empty(0, units))
        if units == 1:
            strongest = maxima.view(-1, 1)[entering], _position(maps, entering)
        else:
            strongest = _strongest_of(maps, entering, units)
        return cls._of(nonfinite, maxima, entering, scores, strongest, rank_by, units)

    @classmethod
    def _of(
        cls,
        nonfinite: Tensor | None,
        maxima: Tensor,
        entering: Tensor,
        scores: Tensor,
        strongest: tuple[Tensor, Tensor],
        rank_by: RankBy,
        units: int,
    ) -> Reading:
        missing = (0, units - strongest[0].shape[1])  # where a small feature map has fewer units than are asked for
        activations = F.pad(strongest[0], missing, value=-torch.inf)
        # With "max" each unit ranks by itself, else all units of a map by the map's score.
        own = activations if rank_by == "max" else scores.view(-1, 1)[entering].expand_as(activations)
        own = own.masked_fill(activations == -torch.inf, -torch.inf)
        return cls(nonfinite, maxima, entering, own, activations, F.pad(strongest[1], missing))


class Deferred:
    """Feature maps that are read inside the hooks without waiting for their device, and searched at the batch's end.

    Args:
        maps: `(N, C, H, W)`.
        rank_by: What ranks.
        units: Number of units of one map that are wanted.
    """

    def __init__(self, maps: Tensor, rank_by: RankBy, units: int) -> None:
        self._shape, self._rank_by, self._units = maps.shape[:2], rank_by, units
        finite = torch.where(torch.isfinite(maps), maps, -torch.inf)
        self._nonfinite = ~torch.isfinite(maps.amax((2, 3))).all(1)
        self._strongest = strongest_units(finite.flatten(0, 1), units)
        self._means = None if rank_by == "max" else spatial_means(finite)

    def reading(self, admit: Admit) -> Reading:
        """Fetch from the device what the hooks have left there."""
        activations, positions = (part.cpu() for part in self._strongest)
        maxima = _wide(activations[:, 0]).view(self._shape)
        scores = maxima if self._means is None else self._means.cpu()
        entering = admit(scores)
        strongest = _wide(activations[entering]), positions[entering]
        return Reading._of(self._nonfinite.cpu(), maxima, entering, scores, strongest, self._rank_by, self._units)


def strongest_units(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return activations and positions `(E, count)` of the strongest units of feature maps `(E, H, W)`.

    Fewer where a map has fewer units; equal ones are in order of position (row by row).
    """
    flat = maps.flatten(1)
    if count == 1:
        return flat.max(dim=1, keepdim=True)
    values, positions = flat.sort(dim=1, descending=True, stable=True)
    return values[:, :count], positions[:, :count]


def spatial_means(maps: Tensor) -> Tensor:
    """Return the mean `(N, C)` float64 of the finite activations of each feature map `(N, C, H, W)`; -inf for none.

    A map has the same mean, to the last bit, in whatever batch it comes: torch's own reductions do not promise that.
    """
    flat = maps.flatten(0, 1).flatten(1)
    means = [_means(piece) for piece in flat.split(max(1, _CHUNK // max(1, flat.shape[1])))]
    return torch.cat(means).view(maps.shape[:2])


def _means(flat: Tensor) -> Tensor:
    sums, counts = _sums(flat), torch.full((), flat.shape[1], device=flat.device)
    if flat.device.type != "cpu" or not np.isfinite(sums.numpy()).all():
        finite = torch.isfinite(flat)
        sums, counts = _sums(flat.masked_fill(~finite, 0)), finite.sum(1)
    return torch.where(counts > 0, sums / counts, -torch.inf)


def _sums(flat: Tensor) -> Tensor:
    """Sum rows `(M, n)` in float64 by halves: in an order of additions that n alone decides."""
    length = flat.shape[1]
    half = (length + 1) // 2
    total = flat[:, :half].to(torch.float64, copy=True)
    total[:, : length - half] += flat[:, half:]
    while half > 1:
        length, half = half, (half + 1) // 2
        total[:, : length - half] += total[:, half:length]
    return total[:, 0]


def _wide(values: Tensor) -> Tensor:
    """Values in float32 or float64, which hold those of the half precisions exactly; numpy has no bfloat16."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _position(maps: Tensor, entering: Tensor) -> Tensor:
    """Where some of the feature maps `(N, C, H, W)` have their maximum, the first of equal ones: `(E, 1)`, row by row.

    With numpy, whose argmax is several times faster than torch's maximum with indices.
    """
    if maps.is_contiguous() and maps.dtype in (torch.float32, torch.float64):
        flat = maps.view(maps.shape[0] * maps.shape[1], -1).numpy()
        if flat.shape[1] >= _LARGE:
            places = [int(flat[number].argmax()) for number in entering.tolist()]
            return torch.tensor(places, dtype=torch.int64).view(-1, 1)
    places = [_wide(piece).flatten(1).numpy().argmax(1) for piece in _pieces(maps, entering)]
    return torch.from_numpy(np.concatenate(places)).unsqueeze(1)


def _strongest_of(maps: Tensor, entering: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Activations and positions `(E, units)` of the strongest units of some of the feature maps `(N, C, H, W)`."""
    parts = [strongest_units(piece, units) for piece in _pieces(maps, entering)]
    values, positions = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(positions)


def _pieces(maps: Tensor, numbers: Tensor) -> Iterator[Tensor]:
    """Some of the feature maps `(N, C, H, W)`, some at a time: `(E, H, W)`."""
    return (_pick(maps, some) for some in numbers.split(max(1, _CHUNK // (maps.shape[2] * maps.shape[3]))))


def _pick(maps: Tensor, numbers: Tensor) -> Tensor:
    if maps.is_contiguous():  # then maps are whole stretches of memory
        return maps.flatten(0, 1).index_select(0, numbers)
    return maps[numbers // maps.shape[1], numbers % maps.shape[1]]
