"""Which rows and columns of the image each unit depends on, by trial: spoil one, and see which units move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

See = Callable[[str, Tensor], None]
Compute = Callable[[Tensor, See], None]
"""Computes from images `(N, C, H, W)`, and shows `see(name, value)` every `(N, ...)` that is asked for."""


def nan_boxes(compute: Compute, image: Tensor, chunk: int = 24) -> dict[str, Tensor]:
    """The box of each unit: NaN in a row (or column) of the image reaches all that is computed from it, and no more.

    Even where the values would hide it: NaN times zero is NaN, the maximum of NaN and anything is NaN.

    Args:
        compute: What is asked.
        image: `(1, C, H, W)`, without NaN; or a signal `(1, C, L)`, or a volume `(1, C, D, H, W)`.
        chunk: How many spoilt images are computed at once.

    Returns:
        For each name `(C, H, W, 4)` int64: top, left, bottom, right, half-open; zeros for a unit that nothing reaches.
        Of signals `(C, L, 2)`, of volumes `(C, D, H, W, 6)`: the firsts along each axis, then the lasts.
    """

    def spoilt(image: Tensor, axis: int, position: int) -> Tensor:
        image = image.clone()
        image.select(axis, position).fill_(torch.nan)
        return image

    return _boxes(compute, image, chunk, spoilt, lambda _name, value: value.isnan())


def change_boxes(compute: Compute, image: Tensor, chunk: int = 24, *, tolerance: float = 1e-9) -> dict[str, Tensor]:
    """The same for what is linear: a row is changed at random, and units that change by more than rounding count.

    Other than NaN, a value that is read with weight zero does not count, as the neighbors that bilinear interpolation
    does not need.
    """
    before: dict[str, Tensor] = {}
    compute(image, lambda name, value: before.__setitem__(name, value.clone()))
    generator = torch.Generator().manual_seed(0)

    def spoilt(image: Tensor, axis: int, position: int) -> Tensor:
        image = image.clone()
        line = image.select(axis, position)
        line += torch.randn(line.shape, generator=generator, dtype=image.dtype)
        return image

    return _boxes(compute, image, chunk, spoilt, lambda name, value: (value - before[name]).abs() > tolerance)


def _boxes(
    compute: Compute,
    image: Tensor,
    chunk: int,
    spoilt: Callable[[Tensor, int, int], Tensor],
    reached: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    lowest: dict[tuple[str, int], Tensor] = {}
    highest: dict[tuple[str, int], Tensor] = {}
    axes = range(2, image.ndim)
    for axis in axes:
        for start in range(0, image.shape[axis], chunk):
            positions = range(start, min(start + chunk, image.shape[axis]))

            def see(name: str, value: Tensor, axis: int = axis, positions: range = positions) -> None:
                mask = reached(name, value)
                numbers = torch.tensor(positions, dtype=torch.int16).view(-1, *[1] * (value.ndim - 1))
                first = torch.where(mask, numbers, 10_000).amin(0)
                last = torch.where(mask, numbers, -1).amax(0)
                key = (name, axis)
                lowest[key] = torch.minimum(lowest[key], first) if key in lowest else first
                highest[key] = torch.maximum(highest[key], last) if key in highest else last

            compute(torch.cat([spoilt(image, axis, position) for position in positions]), see)
    boxes = {}
    for name in {name for name, _ in lowest}:
        edges = [*(lowest[name, axis] for axis in axes), *(highest[name, axis] + 1 for axis in axes)]
        box = torch.stack(edges, -1).long()
        boxes[name] = torch.where((box[..., len(axes) :] == 0).any(-1, keepdim=True), 0, box)
    return boxes
