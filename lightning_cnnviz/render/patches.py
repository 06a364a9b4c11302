"""How units and their patches are drawn and described, wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import ImageCrop, LateTile, Number, Tile

__all__ = [
    "MEAN_NOTE",
    "Crops",
    "brief",
    "label_name",
    "largest_patch",
    "numbers_of_row",
    "numbers_of_unit",
    "place_patch",
    "placed_at",
    "scale_of",
    "to_gray_centered",
]

MEAN_NOTE = (
    "Images rank by their mean activation, that of the feature map over all its positions; each is shown where the map "
    "is strongest."
)
"""Says how images were ranked, where it was not by the strongest unit."""

# The fraction of a projection's pixels that keep their contrast: scaled by its largest pixel it would be a faint
# scribble.
_CONTRAST = 0.995
# The color of what lies outside the image, where a receptive field is cut at its border: a tint that no gray image has.
_OUTSIDE = (203, 213, 232)


def to_gray_centered(pixels: Tensor, scale: float | None = None) -> Tensor:
    """Show values of either sign `(C, H, W)` as pixels `(3, H, W)` uint8: zero and NaN are mid-gray; one scale.

    Three channels are shown as colors, any other number by their mean. The scale is a high percentile of the magnitude,
    that of `scale_of`, which need not be found again where it is known.
    """
    values, scale = _shown(pixels), scale_of(pixels) if scale is None else scale
    if not scale > 0:
        return torch.full(values.shape, 128, dtype=torch.uint8)
    return (127.5 + 127.5 * (values / scale).nan_to_num(0).clamp(-1, 1)).round().to(torch.uint8).contiguous()


def scale_of(pixels: Tensor) -> float:
    """Return the magnitude that `to_gray_centered` shows in full: all but the largest few lie below it; 0 for none."""
    magnitudes = _shown(pixels).abs().flatten()
    magnitudes = magnitudes[magnitudes.isfinite() & (magnitudes > 0)]
    if not len(magnitudes):
        return 0.0
    return float(magnitudes.kthvalue(max(1, round(_CONTRAST * len(magnitudes)))).values)


def _shown(pixels: Tensor) -> Tensor:
    return pixels.float() if len(pixels) == 3 else pixels.float().mean(0, keepdim=True).expand(3, -1, -1)


def largest_patch(layer: LayerTopPatches) -> tuple[int, int]:
    """Height and width of a layer's largest patch."""
    sizes = [patch.shape[-2:] for patches in layer.patches for patch in patches]
    return max((s[0] for s in sizes), default=1) or 1, max((s[1] for s in sizes), default=1) or 1


def brief(value: float) -> str:
    """Three figures, and no exponent where none is needed."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def label_name(label: int, class_names: Sequence[str] | None) -> Number:
    """Return the name of a label, or the label itself where it has none; `"none"` below 0, for no label."""
    if label < 0:
        return "none"
    return str(class_names[label]) if class_names is not None and 0 <= label < len(class_names) else label


def nonfinite_note(result: TopPatches) -> tuple[str, ...]:
    """Return the sentence that says where activations are NaN or infinite; none where all are finite."""
    strange = [f"{layer.layer} (image {layer.nonfinite})" for layer in result if layer.nonfinite is not None]
    if not strange:
        return ()
    return (f"Not finite: NaN or infinite activations, left out of the ranking, in {', '.join(strange)}.",)


def numbers_of_row(layer: LayerTopPatches, feature: int) -> dict[str, Number]:
    """Return the numbers of a feature map by name: its largest activation on the whole set, whatever ranks."""
    return {"max activation": float(layer.maxima[feature])}


def numbers_of_unit(
    layer: LayerTopPatches, feature: int, rank: int, class_names: Sequence[str] | None = None
) -> dict[str, Number]:
    """Return the numbers of one unit by name: activation, image, label, place; and its image's mean, where that ranks.

    Example:
        >>> from lightning_cnnviz import mine_top_patches
        >>> ones = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
        >>> ones[0].weight.data, ones[0].bias.data = torch.ones(1, 1, 1, 1), torch.zeros(1)
        >>> result = mine_top_patches(ones, [torch.tensor([[[[1.0, 5.0]]]])], k=1, rank_by="mean")
        >>> numbers_of_unit(result["0"], feature=0, rank=0)
        {'activation': 5.0, 'mean activation': 3.0, 'dataset index': 0, 'row': 0, 'column': 1}
    """
    numbers: dict[str, Number] = {"activation": float(layer.activations[feature, rank])}
    if layer.rank_by == "mean":
        numbers["mean activation"] = float(layer.scores[feature, rank])
    numbers["dataset index"] = int(layer.images[feature, rank])
    if layer.labels is not None:
        numbers["label"] = label_name(int(layer.labels[feature, rank]), class_names)
    numbers["row"] = int(layer.rows[feature, rank])
    numbers["column"] = int(layer.columns[feature, rank])
    return numbers


def place_patch(pixels: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Put a patch that was cut at the image's border where it lies in a full one."""
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    tile = torch.tensor(_OUTSIDE, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
    top, left = _offset(box, size)
    tile[:, top : top + height, left : left + width] = pixels
    return tile


def placed_at(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return where `place_patch` puts a patch in a tile: top, left, bottom and right; None where it fills the tile."""
    (top, left), (height, width) = _offset(box, size), (int(box[2] - box[0]), int(box[3] - box[1]))
    return None if (height, width) == size else (top, left, top + height, left + width)


def _offset(box: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Where a patch lies in a tile of a size: one that begins at the image's border has lost its beginning."""
    top, left, bottom, right = box.tolist()
    return size[0] - (bottom - top) if top == 0 else 0, size[1] - (right - left) if left == 0 else 0


class Crops:
    """The patches of a result as pixels, and the images that they were cut from.

    Args:
        result: What was mined.
        normalization: Undone.
        files: Names of images by their index, where they are known.
    """

    def __init__(
        self, result: TopPatches, normalization: Normalization, files: Mapping[int, str] | None = None
    ) -> None:
        self._normalization, self._files = normalization, files or {}
        self._images = {source.index: normalization.to_pixels(source.values()) for source in result.sources}

    def pixels(self, layer: LayerTopPatches, feature: int, rank: int, size: tuple[int, int]) -> Tensor:
        """Return a patch in its place in a tile of a size, `(3, H, W)` uint8."""
        patch = layer.patches[layer.features.index(feature)][rank]
        return place_patch(self._normalization.to_pixels(patch), layer.boxes[feature, rank], size)

    def tile(self, layer: LayerTopPatches, feature: int, rank: int, size: tuple[int, int], **attributes: Any) -> Tile:
        """Return a patch as a tile of a size, with its image."""
        source, pixels = self.source(layer, feature, rank, size), partial(self.pixels, layer, feature, rank, size)
        inside = placed_at(layer.boxes[feature, rank], size)
        return LateTile(pixels, size, source=source, shows="patch", rank=rank, inside=inside, **attributes)

    def file(self, layer: LayerTopPatches, feature: int, rank: int) -> dict[str, Number]:
        """Return the file of a patch by its name, where it is known and does not stand in `source`."""
        index = int(layer.images[feature, rank])
        return {"file": self._files[index]} if index in self._files and index not in self._images else {}

    def source(self, layer: LayerTopPatches, feature: int, rank: int, size: tuple[int, int]) -> ImageCrop | None:
        """Return what the tile was cut from; None where the image was not kept."""
        index, box = int(layer.images[feature, rank]), layer.boxes[feature, rank]
        if index not in self._images:
            return None
        top, left, bottom, right = box.tolist()
        return ImageCrop(
            pixels=self._images[index],
            box=(top, left, bottom, right),
            offset=_offset(box, size),
            index=index,
            file=self._files.get(index, ""),
        )
