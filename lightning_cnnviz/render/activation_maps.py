"""Feature maps of a few images as a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.images.activation_maps import ActivationMaps
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.patches import brief, label_name
from lightning_cnnviz.report import ColorScale, Gallery, Number, Report, Row, Tile

__all__ = ["activation_maps_report"]

# Maps are enlarged to about this many pixels a side, so that the image beside them can be recognized.
_SIDE = 96


def activation_maps_report(
    results: Sequence[ActivationMaps],
    display: Display,
) -> Report:
    """Draw a gallery for each layer, in it a row for each image: the image and its feature maps, strongest first.

    The feature maps of a row share one scale.
    """
    galleries = tuple(_gallery(layer, display) for layer in results)
    notes = [
        display.normalization.sentence(),
        "The maps of one image and layer share one scale: white is the largest activation, and black is zero; where "
        "there are negative activations, mid-gray is zero and black as far below it as white is above.",
    ]
    strange = [layer.layer for layer in results if not bool(layer.maps.isfinite().all())]
    if strange:
        notes.insert(0, "Not finite: NaN or infinite activations, shown as zero, in " + ", ".join(strange) + ".")
    return Report("activation_maps", title="Activation maps", items=galleries, notes=tuple(notes))


def _gallery(layer: ActivationMaps, display: Display) -> Gallery:
    rows = tuple(_row(layer, display, place) for place in range(len(display.pixels)))
    (height, width), count = layer.maps.shape[-2:], layer.maps.shape[1]
    shown = f"the {count} strongest of {layer.channels}" if count < layer.channels else f"all {count}"
    caption = f"{shown} feature maps of {height} x {width}, strongest first, with number and largest activation"
    signed = bool((layer.maps < 0).any())
    low, middle = ("minus that", "zero") if signed else ("zero", "")
    scale = ColorScale(("#000000", "#ffffff"), low, "the image's largest activation here", middle)
    return Gallery(layer.layer, rows, caption=caption, layer=layer.layer, scale=scale, named=True)


def _row(layer: ActivationMaps, display: Display, place: int) -> Row:
    size, image = _tile_size(layer.maps.shape[-2:]), display.pixels[place]
    tiles = [Tile(F.interpolate(image[None].float(), size=size, mode="area")[0].round().to(torch.uint8), "image")]
    figures = zip(layer.features[place].tolist(), layer.peaks[place].tolist(), strict=True)
    for (feature, peak), pixels in zip(figures, _pixels(layer.maps[place]), strict=True):
        enlarged = F.interpolate(pixels[None, None].float(), size=size, mode="nearest-exact")[0].to(torch.uint8)
        numbers: dict[str, Number] = {"feature": feature, "max activation": peak}
        tiles.append(Tile(enlarged.expand(3, -1, -1).contiguous(), f"{feature}: {brief(peak)}", numbers))
    figures_of_image: dict[str, Number] = {}
    if display.labels is not None:
        label, names = display.labels[place], display.class_names
        figures_of_image["label"] = label_name(label, names)
    figures_of_image["white"] = _largest(layer.maps[place])
    return Row(f"image {display.indices[place]}", tuple(tiles), figures_of_image)


def _tile_size(size: torch.Size) -> tuple[int, int]:
    factor = max(1, round(_SIDE / max(size)))
    return size[0] * factor, size[1] * factor


def _pixels(maps: Tensor) -> Tensor:
    """Show feature maps `(K, H, W)` as `(K, H, W)` uint8 on one scale."""
    largest = _largest(maps)
    maps = torch.where(maps.isfinite(), maps, torch.zeros(()))
    scaled = maps / largest if largest > 0 else maps
    signed = bool((maps < 0).any())
    shown = 127.5 + 127.5 * scaled if signed else 255 * scaled
    return shown.round().to(torch.uint8)


def _largest(maps: Tensor) -> float:
    """The magnitude that is shown in white."""
    finite = maps[maps.isfinite()]
    return float(finite.abs().amax()) if len(finite) else 0.0
