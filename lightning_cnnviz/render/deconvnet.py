"""Projections to pixels as a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.deconvnet.projection import Projection
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import (
    MEAN_NOTE,
    Crops,
    nonfinite_note,
    numbers_of_row,
    numbers_of_unit,
    place_patch,
)
from lightning_cnnviz.report import ColorScale, Gallery, Item, LateTile, Number, Report, Row, Tile

__all__ = ["FirstRanked", "deconvnet_report", "projection_report"]

# Projections are faint and fine: smaller than this, one cannot read them.
_SIDE = 96
_GRAY_NOTE = (
    "Gray is no contribution; brighter and darker is where more or less of the input would raise the activation, "
    "each picture scaled by itself."
)
_CURVE_NOTE = (
    "Of projections, zero is no contribution; above and below it is where more or less of the input would raise the "
    "activation, each picture scaled by itself."
)
_SCALE = ColorScale(("#000000", "#ffffff"), "less of it activates", "more of it activates", "no contribution")
# A strip of evolution goes on in a new line after so many looks.
_LOOKS_A_LINE = 12


@dataclass(frozen=True, eq=False, kw_only=True)
class FirstRanked:
    """The unit of a feature map that ranked first at one look, projected.

    Attributes:
        epoch: When.
        activation: Of the unit.
        box: `(4,)`, its receptive field: top, left, bottom, right.
        pixels: `(C, bottom - top, right - left)`, of signals and volumes see `Projection`.
    """

    epoch: int
    activation: float
    box: Tensor
    pixels: Tensor

    def tile(self, frame: Frame) -> Tile:
        """Draw it in a tile."""
        numbers: dict[str, Number] = {"epoch": self.epoch, "activation": self.activation}
        draw, inside = partial(frame.projection, self.pixels, self.box), frame.inside(self.box)
        size, caption = frame.size, f"epoch {self.epoch}"
        return LateTile(draw, size, caption=caption, numbers=numbers, shows="projection", rank=0, inside=inside)


def deconvnet_report(
    result: TopPatches,
    projections: Sequence[Tensor],
    method: str,
    normalization: Normalization,
    evolution: Mapping[str, Mapping[int, Sequence[FirstRanked]]],
    *,
    files: Mapping[int, str] | None = None,
) -> Report:
    """Draw each layer's projections beside the patches that they are of, as Fig. 2 of Zeiler & Fergus (2013).

    Args:
        result: The units: of each layer those of the kept feature maps, best first.
        projections: Of each patch, in that order, its projection `(C, h, w)`.
        method: How nonlinearities were passed.
        normalization: Undone for the patches.
        evolution: By layer and feature map, the projection that ranked first at each look (Fig. 4).
        files: Names of images by their index, where they are known.
    """
    rest, crops = iter(projections), Crops(result, normalization, files)
    frame = Frame.of(result.all_patches(), normalization)
    items: list[Item] = []
    for layer in result:
        items.append(_gallery(layer, rest, result.k, method, crops, Frame.of_layer(layer, normalization)))
        looks = evolution.get(layer.layer, {})
        if any(len(strip) > 1 for strip in looks.values()):
            items.append(_evolution(layer, looks))
    notes = [
        *nonfinite_note(result),
        _projection_note(frame),
        *frame.notes(normalization),
    ]
    if any(layer.rank_by == "mean" for layer in result):
        notes.append(MEAN_NOTE)
    return Report("deconvnet", title=f"Top-{result.k} projections", items=tuple(items), notes=tuple(notes))


def projection_report(projection: Projection, pixels: Sequence[Tensor] = (), shown: str = "") -> Report:
    """Draw each projected unit on its own, beside its patch where images are given.

    Args:
        projection: What was projected.
        pixels: The images `(3, H, W)` uint8, by the units' numbers.
        shown: Says how they are shown.
    """
    layers = dict.fromkeys(unit.layer for unit in projection.units)
    items = tuple(_unit_gallery(projection, layer, pixels) for layer in layers)
    notes = (_GRAY_NOTE, *((shown,) if shown else ()))
    if projection.pixels and projection.pixels[0].ndim == 2:
        notes = (_CURVE_NOTE, *notes[1:])
    return Report("projection", title="Projections", items=items, notes=notes)


def _unit_gallery(projection: Projection, layer: str, pixels: Sequence[Tensor]) -> Gallery:
    places = [place for place, unit in enumerate(projection.units) if unit.layer == layer]
    frame = Frame.of(projection.pixels[place] for place in places)
    rows = []
    for place in places:
        unit, box = projection.units[place], projection.boxes[place]
        known: dict[str, Number | None] = {"image": unit.image, "depth": unit.depth, "row": unit.row}
        known |= {"column": unit.column, "activation": unit.activation}
        if len(frame.lengths) == 1:
            known = {"image": unit.image, "position": unit.column, "activation": unit.activation}
        numbers: dict[str, Number] = {name: value for name, value in known.items() if value is not None}
        tiles = [Tile(frame.projection(projection.pixels[place], box), numbers=numbers, shows="projection", rank=0)]
        if pixels and frame.is_image:
            top, left, bottom, right = box.tolist()
            patch = place_patch(pixels[unit.image][:, top:bottom, left:right], box, frame.size)
            tiles.append(Tile(patch, numbers=numbers, shows="patch", rank=0))
        rows.append(Row(f"channel {unit.channel}", tuple(tiles), numbers, channel=unit.channel))
    beside = " (left) beside their patches (right)" if pixels else ""
    units = f"{len(places)} unit{'s' * (len(places) > 1)}"
    caption = f"{projection.method}: {units} projected to pixels{beside}, {frame.said}"
    form: dict[str, Any] = {"columns": 2 if pixels else 1, "tile_side": _SIDE, "scale": _scale(frame)}
    return Gallery(layer, tuple(rows), caption=caption, layer=layer, **form)


def _gallery(
    layer: LayerTopPatches, projections: Iterator[Tensor], k: int, method: str, crops: Crops, frame: Frame
) -> Gallery:
    rows = []
    for feature, patches in zip(layer.features, layer.patches, strict=True):
        pairs = []
        for rank in range(len(patches)):
            numbers = numbers_of_unit(layer, feature, rank) | crops.file(layer, feature, rank)
            box = layer.boxes[feature, rank]
            values = next(projections)
            scale = frame.scale_of(values)
            # Without captions: the room is for the pictures.
            draw, inside = partial(frame.projection, values, box, scale), frame.inside(box)
            numbered = numbers | {"full contrast": scale}
            first = LateTile(draw, frame.size, numbers=numbered, shows="projection", rank=rank, inside=inside)
            pairs.append((first, crops.tile(layer, feature, rank, frame, numbers=numbers)))
        row = Row(f"feature {feature}", _side_by_side(pairs), numbers_of_row(layer, feature), channel=feature)
        rows.append(row)
    which = f"{k} strongest units" if layer.rank_by == "max" else f"strongest units of the {k} images of highest mean"
    caption = (
        f"{method}: the {which} of {len(layer.features)} of {len(layer.maxima)} feature maps, projected to pixels "
        f"(left) beside their patches (right), {frame.said}"
    )
    form: dict[str, Any] = {"columns": 2 * _half(k), "tile_side": _SIDE, "enlarge": frame.is_image}
    form["scale"] = _scale(frame)
    return Gallery(layer.layer, tuple(rows), caption=caption, layer=layer.layer, **form)


def _projection_note(frame: Frame) -> str:
    return _GRAY_NOTE if len(frame.lengths) > 1 else _CURVE_NOTE


def _scale(frame: Frame) -> ColorScale | None:
    """What grays of projections stand for; of curves, their axis says it."""
    return _SCALE if len(frame.lengths) > 1 else None


def _evolution(layer: LayerTopPatches, looks: Mapping[int, Sequence[FirstRanked]]) -> Gallery:
    frame = Frame.of(look.pixels for strip in looks.values() for look in strip)
    strips = tuple(
        Row(f"feature {feature}", tuple(look.tile(frame) for look in strip), channel=feature)
        for feature, strip in looks.items()
    )
    first = "strongest projection" if layer.rank_by == "max" else "projection that ranks first"
    caption = f"the {first} of each feature map, look by look while training goes on"
    longest = max(len(strip) for strip in looks.values())
    columns = min(longest, _LOOKS_A_LINE)
    form: dict[str, Any] = {"columns": columns, "tile_side": _SIDE, "enlarge": frame.is_image, "named": True}
    form["scale"] = _scale(frame)
    return Gallery(f"{layer.layer}/evolution", strips, caption=caption, layer=layer.layer, **form)


def _side_by_side(pairs: Sequence[tuple[Tile, Tile]]) -> tuple[Tile, ...]:
    """Projections as a square on the left, patches likewise on the right, line by line."""
    side = _half(len(pairs))
    tiles: list[Tile] = []
    for start in range(0, len(pairs), side):
        line = pairs[start : start + side]
        empty = [_empty(line[0][0])] * (side - len(line))
        tiles += [first for first, _ in line] + empty + [second for _, second in line] + empty
    return tuple(tiles)


def _half(count: int) -> int:
    return max(1, math.ceil(math.sqrt(count)))


def _empty(like: Tile) -> Tile:
    return Tile(torch.full((3, *like.size), 244, dtype=torch.uint8), shows="empty")
