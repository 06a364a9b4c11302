"""Reads the feature maps of one layer in one pass: their maxima, and the strongest units of those that may rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import RankBy

__all__ = ["Reading", "read_at_once", "read_later", "spatial_means", "strongest_units"]

# Feature maps are searched in pieces of this many elements, which stay in the cache.
_CHUNK = 2**18
# Feature maps of this many units are searched where they lie, one by one; smaller ones are copied together first.
_LARGE = 1024

Admit = Callable[[Tensor], Tensor]
"""Takes scores `(N, C)`, returns which feature maps may enter the lists: `(E,)` int64, n * C + c."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """One layer's feature maps `(N, C, ...)` as far as the lists need them.

    Attributes:
        nonfinite: `(N, C)` bool, feature maps whose largest activation is NaN or infinite; None for none.
        maxima: `(N, C)`, the largest finite activation of each feature map; -inf where there is none.
        entering: `(E,)` int64, feature maps that may enter the lists: n * C + c.
        scores: `(E, units)`, of the strongest units of these; -inf where a map has fewer.
        activations: `(E, units)`, likewise, the strongest first.
        positions: `(E, units)` int64, counted row by row, of volumes slice by slice.
    """

    nonfinite: Tensor | None
    maxima: Tensor
    entering: Tensor
    scores: Tensor
    activations: Tensor
    positions: Tensor


def read_at_once(maps: Tensor, rank_by: RankBy, units: int, admit: Admit) -> Reading:
    """Read feature maps `(N, C, ...)` on the CPU: all of them for their maxima, again those that may enter the lists.

    Args:
        maps: The feature maps.
        rank_by: What ranks.
        units: Number of units of one map that are wanted.
        admit: Says which maps may enter.
    """
    nonfinite = None
    maxima = _wide(maps.amax(_space(maps)))
    if not np.isfinite(maxima.numpy()).all():
        nonfinite = ~torch.isfinite(maxima)
        maps = torch.where(torch.isfinite(maps), maps, -torch.inf)
        maxima = _wide(maps.amax(_space(maps)))
    means = None if rank_by == "max" else spatial_means(maps)
    entering = admit(maxima if means is None else means)
    if not len(entering):
        strongest = maxima.new_empty(0, units), entering.new_empty(0, units)
    elif units == 1:
        strongest = maxima.view(-1, 1)[entering], _position(maps, entering)
    else:
        strongest = _strongest_of(maps, entering, units)
    return _reading(nonfinite, maxima, entering, means, strongest, units)


def read_later(maps: Tensor, rank_by: RankBy, units: int) -> Callable[[Admit], Reading]:
    """Search all feature maps on their device without waiting for it; the function that is returned does wait.

    Args:
        maps: See `read_at_once`.
        rank_by: Likewise.
        units: Likewise.
    """
    nonfinite = ~torch.isfinite(maps.amax(_space(maps)))
    finite = torch.where(torch.isfinite(maps), maps, -torch.inf)
    strongest = strongest_units(finite.flatten(0, 1), units)
    means = None if rank_by == "max" else spatial_means(finite)

    def reading(admit: Admit) -> Reading:
        activations, positions = _wide(strongest[0].cpu()), strongest[1].cpu()
        maxima = activations[:, 0].view(maps.shape[:2])
        fetched = None if means is None else means.cpu()
        entering = admit(maxima if fetched is None else fetched)
        entered = activations[entering], positions[entering]
        return _reading(nonfinite.cpu(), maxima, entering, fetched, entered, units)

    return reading


def _reading(
    nonfinite: Tensor | None,
    maxima: Tensor,
    entering: Tensor,
    means: Tensor | None,
    strongest: tuple[Tensor, Tensor],
    units: int,
) -> Reading:
    """Give the strongest units their scores: the mean of their map, where there are means, else their activation."""
    missing = (0, units - strongest[0].shape[1])  # a small feature map has fewer units than are asked for
    activations = F.pad(strongest[0], missing, value=-torch.inf)
    scores = activations if means is None else means.view(-1, 1)[entering].expand_as(activations)
    return Reading(
        nonfinite=nonfinite,
        maxima=maxima,
        entering=entering,
        scores=scores.masked_fill(activations == -torch.inf, -torch.inf),
        activations=activations,
        positions=F.pad(strongest[1], missing),
    )


def strongest_units(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return activations and positions `(E, count)` of the strongest units of feature maps `(E, ...)`.

    Fewer where a map has fewer units; equal ones are in order of position (row by row).
    """
    flat = maps.flatten(1)
    if count == 1:
        return flat.max(dim=1, keepdim=True)
    values, positions = flat.sort(dim=1, descending=True, stable=True)
    return values[:, :count], positions[:, :count]


def spatial_means(maps: Tensor) -> Tensor:
    """Return the mean `(N, C)` float64 of the finite activations of each feature map `(N, C, ...)`; -inf for none.

    A map has the same mean, to the last bit, in any batch and memory layout; torch promises no such thing of its own.
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
    """Sum rows `(M, n)` in float64, halving them: n alone decides which numbers are added in which order."""
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
    """Where some of the feature maps `(N, C, ...)` have their maximum, the first of equal ones: `(E, 1)`, row by row.

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
    """Activations and positions `(E, units)` of the strongest units of some of the feature maps `(N, C, ...)`."""
    parts = [strongest_units(piece, units) for piece in _pieces(maps, entering)]
    values, positions = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(positions)


def _space(maps: Tensor) -> tuple[int, ...]:
    return tuple(range(2, maps.ndim))


def _pieces(maps: Tensor, numbers: Tensor) -> Iterator[Tensor]:
    """Some of the feature maps `(N, C, ...)`, some at a time: `(E, ...)`."""
    return (_pick(maps, some) for some in numbers.split(max(1, _CHUNK // maps.shape[2:].numel())))


def _pick(maps: Tensor, numbers: Tensor) -> Tensor:
    if maps.is_contiguous():  # then maps are whole stretches of memory
        return maps.flatten(0, 1).index_select(0, numbers)
    return maps[numbers // maps.shape[1], numbers % maps.shape[1]]
