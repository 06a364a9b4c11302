"""How units and their patches are drawn, wherever they are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches
from lightning_cnnviz.report import Number

__all__ = ["brief", "figures_of", "largest_patch", "placed", "to_gray_centered"]

# The share of a projection's pixels that keep their contrast: by its largest pixel alone it would be a faint scribble.
_CONTRAST = 0.995
# What lies outside the image, where a receptive field is cut at its border: a tint that no gray image has.
_OUTSIDE = (203, 213, 232)


def to_gray_centered(pixels: Tensor) -> Tensor:
    """Show values of either sign `(C, H, W)` as pixels `(3, H, W)` uint8: zero is mid-gray, in one scale for all.

    Three channels are shown as colors, any other number by their mean. The scale is a high percentile of the magnitude.
    """
    values = pixels.float() if len(pixels) == 3 else pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    magnitudes = values.abs().flatten()
    magnitudes = magnitudes[magnitudes > 0]
    if not len(magnitudes):
        return torch.full(values.shape, 128, dtype=torch.uint8)
    rank = max(1, round(_CONTRAST * len(magnitudes)))
    scale = float(magnitudes.kthvalue(rank).values)
    return (127.5 + 127.5 * (values / scale).clamp(-1, 1)).round().to(torch.uint8).contiguous()


def largest_patch(found: LayerTopPatches) -> tuple[int, int]:
    """Height and width of a layer's largest patch."""
    sizes = [patch.shape[-2:] for patches in found.patches for patch in patches]
    return max((s[0] for s in sizes), default=1) or 1, max((s[1] for s in sizes), default=1) or 1


def brief(value: float) -> str:
    """Three figures, and no exponent where none is needed."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def figures_of(found: LayerTopPatches, feature: int, rank: int, class_names: Sequence[str] | None) -> dict[str, Number]:
    """Return what is known of one unit by name: activation, image, label, place."""
    figures: dict[str, Number] = {
        "activation": float(found.activations[feature, rank]),
        "dataset index": int(found.images[feature, rank]),
    }
    if found.labels is not None:
        label = int(found.labels[feature, rank])
        named = class_names is not None and 0 <= label < len(class_names)
        figures["label"] = str(class_names[label]) if named and class_names is not None else label
    figures["row"] = int(found.rows[feature, rank])
    figures["column"] = int(found.columns[feature, rank])
    return figures


def placed(pixels: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Put a patch that was cut at the image's border where it lies in a full one."""
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    tile = torch.tensor(_OUTSIDE, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
    # A patch that begins at the image's border has lost its beginning.
    top = size[0] - height if int(box[0]) == 0 else 0
    left = size[1] - width if int(box[1]) == 0 else 0
    tile[:, top : top + height, left : left + width] = pixels
    return tile
