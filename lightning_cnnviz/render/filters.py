"""Filters as a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cnnviz.core.images.filters import LayerFilters
from lightning_cnnviz.render.patches import brief
from lightning_cnnviz.report import ColorScale, Curve, Gallery, Item, LayerFacts, Report, Row, Scalar, Series, Tile

__all__ = ["filters_report", "filters_scalars"]

# The fraction of a layer's weights that keep their contrast.
_CONTRAST = 0.995
_PICTURES = (1, 3)  # kernels of so many channels are gray or color pictures
_SCALARS = ("dominant_fraction", "near_zero_fraction", "median_rms", "max_rms")


def filters_report(results: Sequence[LayerFilters], channels: int = 16) -> Report:
    """Draw the kernels of each layer on one common scale, zero being mid-gray, and their RMS from strong to weak.

    Kernels of three channels are shown in color, as in Fig. 6 of Zeiler & Fergus (2013). Others are shown channel by
    channel, the first `channels` of them, a row a filter. Kernels of 1 x 1 have no picture.
    """
    items: list[Item] = []
    for layer in results:
        if layer.kernels.shape[-2:] != (1, 1):
            items.append(_gallery(layer, channels))
        items.append(_curve(layer))
        items += filters_scalars([layer])
    strange = [layer.layer for layer in results if not bool(layer.rms.isfinite().all())]
    notes = [f"Not finite: weights are NaN or infinite in {', '.join(strange)}."] if strange else []
    notes += ["Kernels of a layer share one scale: mid-gray is zero."]
    plain = [layer.layer for layer in results if layer.kernels.shape[-2:] == (1, 1)]
    if plain:
        shown = ", ".join(plain[:4]) + (f" and {len(plain) - 4} more" if len(plain) > 4 else "")
        notes.append(f"Kernels of 1 x 1 have no picture: {shown}.")
    facts = tuple(LayerFacts(layer=each.layer, channels={"RMS": tuple(each.rms.tolist())}) for each in results)
    return Report("filters", title="Filters", items=tuple(items), notes=tuple(notes), facts=facts)


def filters_scalars(results: Sequence[LayerFilters]) -> list[Scalar]:
    """Return the numbers of each layer to follow over time; NaN where a weight is not finite."""
    scalars = []
    for layer in results:
        dominant, near_zero = (float(which.float().mean()) for which in (layer.dominant, layer.near_zero))
        figures = (dominant, near_zero, layer.median_rms, float(layer.rms.max()))
        if not bool(layer.rms.isfinite().all()):
            figures = (math.nan, math.nan, math.nan, math.nan)
        scalars += [
            Scalar(f"{layer.layer}/{name}", value, layer=layer.layer)
            for name, value in zip(_SCALARS, figures, strict=True)
        ]
    return scalars


def _gallery(layer: LayerFilters, channels: int) -> Gallery:
    depth, height, width = layer.kernels.shape[1:]
    scale = _scale(layer.kernels)
    rows = tuple(
        Row(f"filter {feature}", _tiles(kernel, scale, channels), {"RMS": float(layer.rms[feature])}, channel=feature)
        for feature, kernel in zip(layer.features, layer.kernels, strict=True)
    )
    count, total = len(layer.features), len(layer.rms)
    parts = [f"{count} of {total} kernels" if count < total else f"{total} kernels"]
    if depth not in _PICTURES:
        parts.append(f"{channels} of {depth} input channels" if channels < depth else f"all {depth} input channels")
    parts += [f"{height} x {width}", f"one scale up to ±{brief(scale)}"]
    lost = int((~layer.rms.isfinite()).sum())
    if lost:
        parts.append(f"{lost} not finite")
    else:
        parts += [f"median RMS {brief(layer.median_rms)}"]
        parts += [f"{int(layer.dominant.sum())} dominate", f"{int(layer.near_zero.sum())} near zero"]
    colors = ColorScale(("#000000", "#ffffff"), f"-{brief(scale)}", brief(scale), "0")
    return Gallery(layer.layer, rows, caption=" · ".join(parts), layer=layer.layer, scale=colors)


def _tiles(kernel: Tensor, scale: float, channels: int) -> tuple[Tile, ...]:
    """A kernel as one picture where it is one, else channel by channel."""
    if len(kernel) in _PICTURES:
        return (Tile(_pixels(kernel, scale), shows="filter", rank=0),)
    planes = kernel[:channels].split(1)
    return tuple(
        Tile(_pixels(plane, scale), caption=str(channel), shows="filter", rank=channel)
        for channel, plane in enumerate(planes)
    )


def _curve(layer: LayerFilters) -> Curve:
    strongest_first = layer.rms.sort(descending=True).values.tolist()
    ranks = tuple(float(rank) for rank in range(1, len(strongest_first) + 1))
    return Curve(
        f"{layer.layer}/rms",
        (Series("RMS of a filter", x=ranks, y=tuple(strongest_first)),),
        x_label="filters, strongest first",
        y_label="RMS of the weights",
        caption=f"{layer.layer}: how strong the filters are; a few that dominate stand out at the left",
        layer=layer.layer,
    )


def _scale(kernels: Tensor) -> float:
    """The magnitude that is shown in full: all but the largest few weights lie below it."""
    magnitudes = kernels.abs().flatten()
    magnitudes = magnitudes[magnitudes.isfinite() & (magnitudes > 0)]
    if not len(magnitudes):
        return 1.0
    return float(magnitudes.kthvalue(max(1, round(_CONTRAST * len(magnitudes)))).values)


def _pixels(kernel: Tensor, scale: float) -> Tensor:
    """Show a kernel `(3, H, W)` in color, or `(1, H, W)` in gray, as `(3, H, W)` uint8."""
    shown = (127.5 + 127.5 * (kernel / scale).nan_to_num(0.0).clamp(-1, 1)).round().to(torch.uint8)
    return shown.expand(3, -1, -1).contiguous()
