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
# Of each slice, the axis that is down and the one across: rows and columns; below it depth and columns; beside it rows
# and depth.
_AXES = ((1, 2), (0, 2), (1, 0))
_LEAST = 48  # pixels of the longest side
_FONT, _HEADER, _GAP = 10, 15, 5
_PAPER, _INK = 255, (60, 60, 60)


def patch_slices_size(lengths: Sequence[int], *, clip: bool) -> tuple[int, int]:
    """Return the height and width of a picture of slices of patches up to so long along each axis."""
    scale, (depth, height, _) = _scale(lengths), lengths
    return 2 * _HEADER + (height + depth) * scale, sum(_widths(lengths, clip)) + _GAP


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
    scale = _scale(lengths)
    tile = torch.full((3, *patch_slices_size(lengths, clip=clip)), _PAPER, dtype=torch.uint8)
    below, beside = _HEADER + lengths[1] * scale, _widths(lengths, clip)[0] + _GAP
    corners, titles = ((0, 0), (below, 0), (0, beside)), []
    for axis, ((down, across), (top, left)) in enumerate(zip(_AXES, corners, strict=True)):
        panel = torch.tensor(outside, dtype=torch.uint8).view(3, 1, 1).repeat(1, lengths[down], lengths[across])
        part = values.select(axis + 1, middles[axis])
        rows, columns = (slice(offsets[own], offsets[own] + values.shape[own + 1]) for own in (down, across))
        panel[:, rows, columns] = shown(part if down < across else part.transpose(1, 2))
        panel = panel.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        tile[:, top + _HEADER : top + _HEADER + panel.shape[1], left : left + panel.shape[2]] = panel
        titles.append(((left, top), f"{SLICE_NAMES[clip][axis]} {box[axis] + middles[axis]}"))
    image = to_image(tile)
    draw = ImageDraw.Draw(image)
    for corner, title in titles:
        write(draw, corner, title, _FONT, _INK)
    return from_image(image)


def _pairs(lengths: Sequence[int], values: Tensor) -> list[tuple[int, int]]:
    return list(zip(lengths, values.shape[1:], strict=True))


def _scale(lengths: Sequence[int]) -> int:
    """By what whole number small slices are enlarged."""
    return max(1, _LEAST // max(lengths))


def _widths(lengths: Sequence[int], clip: bool) -> tuple[int, int]:
    """How wide the left and the right part of the picture are: the slices' names take room, too."""
    first, second, third = (length(f"{name} 000", _FONT) for name in SLICE_NAMES[clip])
    scale = _scale(lengths)
    return max(lengths[2] * scale, first, second), max(lengths[0] * scale, third)
