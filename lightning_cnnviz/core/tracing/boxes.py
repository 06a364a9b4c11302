"""Boxes in images, signals and volumes: the first corner, then the last, half-open, one number an axis of space."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["box_size", "box_slices", "cropped", "volume_of"]


def box_size(box: Sequence[int]) -> tuple[int, ...]:
    """Return how long a box is along each axis: height and width of `(top, left, bottom, right)`."""
    axes = len(box) // 2
    return tuple(last - first for first, last in zip(box[:axes], box[axes:], strict=True))


def volume_of(box: Sequence[int]) -> int:
    """Return how many places a box holds."""
    return math.prod(box_size(box))


def box_slices(box: Sequence[int], axes: int) -> tuple[slice, ...]:
    """Return where a box lies along the last axes of a tensor; a signal, which is an image of one row, has one."""
    half = len(box) // 2
    return tuple(slice(first, last) for first, last in zip(box[:half], box[half:], strict=True))[-axes:]


def cropped(image: Tensor, box: Sequence[int]) -> Tensor:
    """Return the part of an image `(C, H, W)`, a signal `(C, L)` or a volume `(C, D, H, W)` in a box, a view.

    Example:
        >>> cropped(torch.zeros(3, 8, 8), (0, 2, 4, 8)).shape, cropped(torch.zeros(3, 50), (0, 10, 1, 30)).shape
        (torch.Size([3, 4, 6]), torch.Size([3, 20]))
    """
    index = (slice(None), *box_slices(box, image.ndim - 1))
    return image[index]
