"""How units and their patches are drawn and described, wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.signals import WHOLE_SIZE, draw_signal, place_on_signal, value_range
from lightning_cnnviz.report import ImageCrop, LateTile, Number, Tile

if TYPE_CHECKING:
    from lightning_cnnviz.render.frames import Frame

__all__ = [
    "MEAN_NOTE",
    "Crops",
    "brief",
    "label_name",
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
    return (
        pixels.float()
        if len(pixels) == 3
        else pixels.float().mean(0, keepdim=True).expand(3, *[-1] * (pixels.ndim - 1))
    )


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
    places = {"depth": layer.depths, "row": layer.rows, "column": layer.columns}
    if any(patch.ndim == 2 for patches in layer.patches for patch in patches):
        places = {"position": layer.columns}
    numbers |= {name: int(place[feature, rank]) for name, place in places.items() if place is not None}
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
        self._images = {
            source.index: _whole(source.values(), normalization)
            for source in result.sources
            if source.levels.ndim < 4  # no picture of a volume shows all of it
        }
        self._lengths = {source.index: source.levels.shape[-1] for source in result.sources}
        self._spans = {
            source.index: value_range([_drawn(source.values(), normalization)])
            for source in result.sources
            if source.levels.ndim == 2
        }

    def pixels(self, layer: LayerTopPatches, feature: int, rank: int, frame: Frame) -> Tensor:
        """Return a patch in its place in a tile, `(3, H, W)` uint8."""
        patch = layer.patches[layer.features.index(feature)][rank]
        return frame.patch(patch, layer.boxes[feature, rank], self._normalization)

    def tile(self, layer: LayerTopPatches, feature: int, rank: int, frame: Frame, **attributes: Any) -> Tile:
        """Return a patch as a tile, with its image."""
        source, pixels = self.source(layer, feature, rank, frame), partial(self.pixels, layer, feature, rank, frame)
        inside = frame.inside(layer.boxes[feature, rank])
        return LateTile(pixels, frame.size, source=source, shows="patch", rank=rank, inside=inside, **attributes)

    def file(self, layer: LayerTopPatches, feature: int, rank: int) -> dict[str, Number]:
        """Return the file of a patch by its name, where it is known and does not stand in `source`."""
        index = int(layer.images[feature, rank])
        return {"file": self._files[index]} if index in self._files and index not in self._images else {}

    def source(self, layer: LayerTopPatches, feature: int, rank: int, frame: Frame) -> ImageCrop | None:
        """Return what the tile was cut from; None where the image was not kept."""
        index, box = int(layer.images[feature, rank]), layer.boxes[feature, rank]
        if index not in self._images:
            return None
        place, offset = tuple(box.tolist()), (0, 0)
        if frame.is_image:
            offset = _offset(box, frame.size)
        else:
            place = place_on_signal(place[1], place[3], self._lengths[index], *self._spans[index])
        return ImageCrop(
            pixels=self._images[index],
            box=(place[0], place[1], place[2], place[3]),
            offset=offset,
            index=index,
            file=self._files.get(index, ""),
            apart=not frame.is_image,
        )


def _whole(values: Tensor, normalization: Normalization) -> Tensor:
    """Return a whole image as pixels, a whole signal as a curve."""
    if values.ndim == 3:
        return normalization.to_pixels(values)
    drawn = _drawn(values, normalization)
    low, high = value_range([drawn])
    return draw_signal(drawn, low=low, high=high, size=WHOLE_SIZE)


def _drawn(values: Tensor, normalization: Normalization) -> Tensor:
    """Of a signal, the channels that are drawn."""
    return values[list(normalization.channels)] if normalization.channels else values
