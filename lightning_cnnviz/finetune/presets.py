"""How an image becomes what a network is given: sizes, augmentation, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torchvision.transforms import v2

__all__ = ["Augmentation", "image_transform"]

Augmentation = Literal["none", "light", "standard", "strong"]
"""From nothing to much: each one does what the one before does, or more of it."""


def image_transform(
    size: tuple[int, int],
    augment: Augmentation = "none",
    *,
    crop: float = 224 / 256,
    flip: bool = True,
    least: float = 0.08,
    mean: Sequence[float],
    std: Sequence[float],
) -> v2.Compose:
    """Return the transform of an image, PIL's or a tensor `(C, H, W)`, to a network's input, float32 and normalized.

    Args:
        size: Height and width of the result.
        augment: `"none"`: resize, so that the crop just covers a fraction `crop` of the image, and crop at the center.
            `"light"`: move the crop by as much as `crop` leaves around it (or, if nothing, by an eighth, into a border
            of repeated pixels), and mirror half of the images. `"standard"`: a random part of the image, of aspect
            ratios from 3:4 to 4:3, as ImageNet networks are trained, and mirror. `"strong"`: this, and one random
            change of color or geometry (TrivialAugment).
        crop: See `augment`.
        flip: Whether anything is mirrored.
        least: Of the image's area the smallest part that `"standard"` and `"strong"` take.
        mean: Of each channel of the pixels from 0 to 1.
        std: Likewise.

    Raises:
        ValueError: There is no such augmentation.
    """
    kinds = get_args(Augmentation)
    if augment not in kinds:
        raise ValueError(f"augment={augment!r}: give one of {', '.join(map(repr, kinds))}")
    mirror: list[nn.Module] = [v2.RandomHorizontalFlip()] if flip else []
    if augment == "none":
        steps: list[nn.Module] = [_ResizeToCover(size, crop), v2.CenterCrop(size)]
    elif augment == "light":
        border = None if crop < 1 else [size[1] // 8, size[0] // 8]
        whole = (round(size[0] / crop), round(size[1] / crop))  # of a long image, the ends stay out
        moved = v2.RandomCrop(size, padding=border, padding_mode="edge")
        steps = [_ResizeToCover(size, crop), v2.CenterCrop(whole), moved, *mirror]
    else:
        steps = [v2.RandomResizedCrop(size, scale=(least, 1.0), antialias=True), *mirror]
        steps += [v2.TrivialAugmentWide()] if augment == "strong" else []
    pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    return v2.Compose([*steps, *pixels, v2.Normalize(list(mean), list(std))])


class _ResizeToCover(nn.Module):
    """Resizes an image, in its proportions, so that a size takes up a fraction of it along one side, and no more."""

    def __init__(self, size: tuple[int, int], fraction: float) -> None:
        super().__init__()
        self.size, self.fraction = size, fraction

    def forward(self, image: Any) -> Any:
        """Return the image resized; one of that size as it is."""
        height, width = v2.functional.get_size(image)
        short, long = min(height, width), max(height, width)
        new_short = round(short * max(self.size[0] / height, self.size[1] / width) / self.fraction)
        new_long = int(new_short * long / short)  # rounded as torchvision's Resize does
        new = (new_short, new_long) if height <= width else (new_long, new_short)
        least = (round(self.size[0] / self.fraction), round(self.size[1] / self.fraction))
        return v2.functional.resize(image, [max(new[0], least[0]), max(new[1], least[1])], antialias=True)

    def extra_repr(self) -> str:
        """What it does, in a list of transforms."""
        return f"size={self.size}, fraction={self.fraction:.3g}"
