"""The k strongest units of each feature map, by sorting all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Unit = tuple[float, int, int, int]
"""Value, image, row, column."""


def top_units(maps: Sequence[Tensor], images: Sequence[int], k: int, per_image: int | None = 1) -> list[list[Unit]]:
    """Sort all units of each feature map by value (the largest first), then image, row and column; the first k count.

    Args:
        maps: Of each image its feature maps `(C, H, W)`; those of different images may differ in height and width.
        images: The images' indices. One that comes again is left out.
        k: How many.
        per_image: How many of one image at most; None for any number.
    """
    best = []
    for channel in range(maps[0].shape[0]):
        units: list[Unit] = []
        seen: set[int] = set()
        for image, of_image in zip(images, maps, strict=True):
            if image in seen:
                continue
            seen.add(image)
            for row, values in enumerate(of_image[channel].tolist()):
                units += [(value, image, row, column) for column, value in enumerate(values) if _is_finite(value)]
        units.sort(key=lambda unit: (-unit[0], *unit[1:]))
        kept: list[Unit] = []
        for unit in units:
            of_this_image = sum(other[1] == unit[1] for other in kept)
            if len(kept) < k and (per_image is None or of_this_image < per_image):
                kept.append(unit)
        best.append(kept)
    return best


def _is_finite(value: float) -> bool:
    return value - value == 0
