"""How bounds go through sampling on a grid, where the grid does not depend on the image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.tracing._bounds import NOTHING, Bounds, Step, each

__all__ = ["sampler_bounds"]

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_ZEROS, _BORDER = 0, 1


def sampler_bounds(step: Step) -> list[Bounds] | None:
    """Which pixels a grid reads with weight; None where the grid depends on the image, or has no values."""
    source, grid = step.args[:2]
    if not step.only_first or grid.is_meta:
        return None
    mode = int(step.argument("interpolation_mode", _BILINEAR))
    padding, corners = int(step.argument("padding_mode", _ZEROS)), bool(step.argument("align_corners", True))
    rows, columns = (
        _taps(grid[..., axis].cpu(), source.shape[dim], mode, padding, corners) for axis, dim in ((1, 2), (0, 3))
    )

    def run(b: Tensor) -> Tensor:
        values = torch.nn.functional.pad(b, (0, 1, 0, 1), value=NOTHING)  # one more: of nothing
        images = torch.arange(len(b)).view(-1, 1, 1)
        reach = [values[images, :, row, column] for row in rows for column in columns]  # (N, H, W, C) each
        return torch.stack(reach).amax(0).permute(0, 3, 1, 2)

    return [each(run, step.bounds(source))]


def _taps(place: Tensor, size: int, mode: int, padding: int, corners: bool) -> list[Tensor]:
    """For each place between -1 and 1 the rows that it reads; `size` stands for none."""
    place = (place + 1) / 2 * (size - 1) if corners else ((place + 1) * size - 1) / 2
    if mode != _BICUBIC:
        place = _inside(place, size, padding, corners)
    if mode == _NEAREST:
        taps = [(place.round(), torch.ones_like(place))]
    else:
        first = place.floor()
        fraction = place - first
        if mode == _BILINEAR:
            taps = [(first, 1 - fraction), (first + 1, fraction)]
        else:  # a cubic has no weight on its neighbors where it is on a pixel
            taps = [(first + step, fraction if step else torch.ones_like(fraction)) for step in (-1, 0, 1, 2)]
            taps = [(_inside(tap, size, padding, corners), weight) for tap, weight in taps]
    return [
        torch.where((tap >= 0) & (tap < size) & (weight != 0), tap, float(size)).nan_to_num(size).long()
        for tap, weight in taps
    ]


def _inside(place: Tensor, size: int, padding: int, corners: bool) -> Tensor:
    """Bring places beyond the border back to it, or reflect them, as the padding says."""
    if padding == _ZEROS:
        return place
    if padding != _BORDER:
        low, span = (0.0, float(size - 1)) if corners else (-0.5, float(size))
        if span == 0:
            return torch.zeros_like(place)
        beyond = (place - low).abs()
        turns, rest = (beyond / span).floor(), beyond % span
        place = torch.where(turns % 2 == 0, rest + low, span - rest + low)
    return place.clamp(0, size - 1)
