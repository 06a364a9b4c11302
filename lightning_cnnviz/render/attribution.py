"""Attributions as a report: over the images, and by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cnnviz.core.images.attribution import AttributionMaps
from lightning_cnnviz.render.figures import (
    class_label,
    color_scale,
    layer_notes,
    overlaid,
    scores_note,
    target_label,
    task_notes,
)
from lightning_cnnviz.report import Gallery, Item, Number, Report, Row, Tile

__all__ = ["attribution_report"]

_TITLES = {
    "gradcam": "Grad-CAM",
    "guided_gradcam": "Guided Grad-CAM",
    "integrated_gradients": "Integrated gradients",
    "saliency": "Saliency",
}
# By its largest pixel alone, a map would be a faint scribble.
_CONTRAST = 0.995


def attribution_report(
    result: AttributionMaps,
    pixels: Sequence[Tensor],
    indices: Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Draw a row an image: the image, the attribution over it, and the attribution by itself.

    Args:
        result: The attributions; channels are summed (of saliency, the largest counts).
        pixels: Each image as pixels `(3, H, W)` uint8.
        indices: Their numbers in the data set.
        class_names: Names of the classes.
        notes: What else a reader needs to know, for example how the network's input is shown.
    """
    untouched, signed = result.untouched, bool((result.maps < 0).any())
    rows = []
    for number, (image, index) in enumerate(zip(pixels, indices, strict=True)):
        figures: dict[str, Number] = {untouched.quantity: float(untouched.probabilities[number])}
        if untouched.task.has_classes:
            figures["most probable"] = class_label(class_names, int(untouched.predictions[number]))
        figures["dataset index"] = index
        if not bool(result.maps[number].isfinite().all()):
            target = target_label(untouched, number, class_names)
            rows.append(Row(target, (Tile(image, "not finite", figures),), figures))
            continue
        values, scale = _scaled(result, number)
        blank = torch.full_like(image, 255 if signed else 0)
        tiles = (
            Tile(image, "image", figures),
            Tile(overlaid(image, values, signed=signed), _TITLES[result.method], {**figures, "full color": scale}),
            Tile(overlaid(blank, values, signed=signed), "by itself", {**figures, "full color": scale}),
        )
        rows.append(Row(target_label(untouched, number, class_names), tiles, {**figures, "full color": scale}))
    of_layer = f" of {result.layer}" if result.layer else ""
    caption = f"{_TITLES[result.method]}{of_layer}: what speaks for the {untouched.target_name} of each image"
    colors = color_scale(f"the {untouched.target_name}", signed=signed)
    gallery = Gallery(result.method, tuple(rows), caption=caption, enlarge=False, columns=3, scale=colors, named=True)
    items: tuple[Item, ...] = (gallery,)
    explained = "Red speaks for the class and blue against it" if signed else "Brighter speaks for the class"
    scaled = f"{explained}, each image scaled by itself: its strongest 0.5 % of pixels have the full color."
    strange = (*scores_note(untouched), *_gradients_note(result), *layer_notes(result.layer, result.layers_behind))
    explanations = (*strange, scaled, *task_notes(untouched, class_names))
    return Report("attribution", title="Attribution", items=items, notes=(*explanations, *notes))


def _gradients_note(result: AttributionMaps) -> tuple[str, ...]:
    lost = int((~result.maps.flatten(1).isfinite().all(1) & result.untouched.scored).sum())
    return (f"Not finite: gradients are NaN or infinite for {lost} of {len(result.maps)} images.",) if lost else ()


def _scaled(result: AttributionMaps, number: int) -> tuple[Tensor, float]:
    """One value a pixel, by the 99.5th percentile of the magnitudes, and that percentile."""
    values = result.maps[number]
    values = values.amax(0) if result.method == "saliency" else values.sum(0)
    magnitudes = values.abs().flatten()
    rank = max(1, round(_CONTRAST * len(magnitudes)))
    scale = float(magnitudes.kthvalue(rank).values) or float(magnitudes.max()) or 1.0
    return values / scale, scale
