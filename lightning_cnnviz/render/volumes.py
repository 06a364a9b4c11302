"""Volumes and clips as three slices through their middle, each at a right angle to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["VOLUME_NOTE", "draw_slices", "slices_size"]

VOLUME_NOTE = (
    "Of volumes and clips three slices through the middle are shown: rows and columns; beside it depth (or time), from "
    "left to right, and rows; below it columns, and depth, from top to bottom."
)
"""Says how the slices lie."""

_GAP = 2
_PAPER = 243


def draw_slices(volume: Tensor, to_pixels: Callable[[Tensor], Tensor], center: Sequence[int] | None = None) -> Tensor:
    """Draw three slices of a volume: rows and columns, beside it its depth and rows, below it its depth and columns.

    Args:
        volume: `(C, D, H, W)`.
        to_pixels: Makes pixels `(3, h, w)` uint8 of a slice `(C, h, w)`.
        center: Depth, row and column that slices go through; by default the middle.

    Returns:
        `(3, *slices_size(...))` uint8.

    Example:
        >>> whole = torch.zeros(1, 4, 6, 8)
        >>> draw_slices(whole, lambda part: part.expand(3, -1, -1).to(torch.uint8)).shape
        torch.Size([3, 12, 14])
    """
    depth, height, width = volume.shape[1:]
    at = [side // 2 for side in (depth, height, width)] if center is None else list(center)
    picture = torch.full((3, *slices_size(volume.shape[1:])), _PAPER, dtype=torch.uint8)
    picture[:, :height, :width] = to_pixels(volume[:, at[0]])
    picture[:, :height, width + _GAP :] = to_pixels(volume[:, :, :, at[2]].transpose(1, 2))
    picture[:, height + _GAP :, :width] = to_pixels(volume[:, :, at[1]])
    return picture


def slices_size(sides: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the picture of a volume with such a depth, height and width."""
    depth, height, width = sides
    return height + _GAP + depth, width + _GAP + depth
