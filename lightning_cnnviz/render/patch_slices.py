"""Patches of clips and volumes as pictures: three orthogonal slices through the unit, with their names and places."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import ImageDraw
from torch import Tensor

from lightning_cnnviz.render._text import length, write
from lightning_cnnviz.render.image import from_image, to_image

__all__ = ["SLICE_NAMES", "draw_patch_slices", "patch_slices_size"]

SLICE_NAMES = {True: ("frame", "row", "column"), False: ("axial", "coronal", "sagittal")}
"""What slices through a depth, a row and a column are called: of clips, and of volumes."""
_AXES = ((1, 2), (0, 2), (0, 1))  # of each slice, the axis that is down and the one that is across
_LEAST = 48  # pixels of the longest side
_FONT, _HEADER, _GAP = 10, 15, 5
_PAPER, _INK = 255, (60, 60, 60)


def patch_slices_size(lengths: Sequence[int], *, clip: bool) -> tuple[int, int]:
    """Return the height and width of a picture of slices of patches up to so long along each axis."""
    scale, widths = _scale(lengths), _widths(lengths, clip)
    height = max(lengths[down] for down, _ in _AXES) * scale
    return _HEADER + height, sum(widths) + 2 * _GAP


def draw_patch_slices(
    values: Tensor,
    box: Sequence[int],
    lengths: Sequence[int],
    shown: Callable[[Tensor], Tensor],
    *,
    clip: bool,
    outside: tuple[int, int, int] = (203, 213, 232),
) -> Tensor:
    """Draw three slices of a patch through the middle of its unit's field, as `(3, H, W)` uint8.

    Args:
        values: `(C, d, h, w)`, cut off at the border.
        box: Front, top, left, back, bottom, right of it.
        lengths: Of the field, as far as no border cuts it.
        shown: Makes pixels `(3, h, w)` uint8 of a slice `(C, h, w)`.
        clip: Whether slices are called those of clips.
        outside: The color of what lies beyond the border.
    """
    # What is cut off at its beginning lies at the end of its tile.
    offsets = [whole - own if box[axis] == 0 else 0 for axis, (whole, own) in enumerate(_pairs(lengths, values))]
    middles = [
        min(max(whole // 2 - offset, 0), own - 1)
        for (whole, own), offset in zip(_pairs(lengths, values), offsets, strict=True)
    ]
    height, width = patch_slices_size(lengths, clip=clip)
    scale, widths = _scale(lengths), _widths(lengths, clip)
    tile = torch.full((3, height, width), _PAPER, dtype=torch.uint8)
    left, titles = 0, []
    for axis, (down, across) in enumerate(_AXES):
        panel = torch.tensor(outside, dtype=torch.uint8).view(3, 1, 1).repeat(1, lengths[down], lengths[across])
        part = shown(values.select(axis + 1, middles[axis]))
        rows, columns = (slice(offsets[own], offsets[own] + values.shape[own + 1]) for own in (down, across))
        panel[:, rows, columns] = part
        panel = panel.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        tile[:, _HEADER : _HEADER + panel.shape[1], left : left + panel.shape[2]] = panel
        titles.append((left, f"{SLICE_NAMES[clip][axis]} {box[axis] + middles[axis]}"))
        left += widths[axis] + _GAP
    image = to_image(tile)
    draw = ImageDraw.Draw(image)
    for start, title in titles:
        write(draw, (start, 0), title, _FONT, _INK)
    return from_image(image)


def _pairs(lengths: Sequence[int], values: Tensor) -> list[tuple[int, int]]:
    return list(zip(lengths, values.shape[1:], strict=True))


def _scale(lengths: Sequence[int]) -> int:
    """By what whole number small slices are enlarged."""
    return max(1, _LEAST // max(lengths))


def _widths(lengths: Sequence[int], clip: bool) -> list[int]:
    """How wide each slice's part of the picture is: its name takes room, too."""
    scale = _scale(lengths)
    return [
        max(lengths[across] * scale, length(f"{name} 000", _FONT))
        for (_, across), name in zip(_AXES, SLICE_NAMES[clip], strict=True)
    ]
