"""Projections to pixels as a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import figures_of, largest_patch, placed, to_gray_centered
from lightning_cnnviz.report import Gallery, Item, Number, Report, Row, Tile

__all__ = ["Look", "deconvnet_report"]

# Projections are faint and fine: smaller than this, one cannot read them.
_SIDE = 96


@dataclass(frozen=True, eq=False)
class Look:
    """The strongest unit of a feature map at one look, projected.

    Attributes:
        epoch: When.
        activation: Of the unit.
        box: `(4,)`, its receptive field: top, left, bottom, right.
        pixels: `(C, bottom - top, right - left)`.
    """

    epoch: int
    activation: float
    box: Tensor
    pixels: Tensor

    def tile(self, size: tuple[int, int]) -> Tile:
        """Draw it in a tile of a size."""
        numbers: dict[str, Number] = {"epoch": self.epoch, "activation": self.activation}
        return Tile(placed(to_gray_centered(self.pixels), self.box, size), f"epoch {self.epoch}", numbers)


def deconvnet_report(
    found: TopPatches,
    projections: Sequence[Tensor],
    method: str,
    normalization: Normalization,
    evolution: Mapping[str, Mapping[int, Sequence[Look]]],
) -> Report:
    """Draw each layer's projections beside the patches that they are of, as Fig. 2 of Zeiler & Fergus (2013).

    Args:
        found: The units: of each layer those of the kept feature maps, strongest first.
        projections: Of each patch, in that order, its projection `(C, h, w)`.
        method: How nonlinearities were passed.
        normalization: Undone for the patches.
        evolution: By layer and feature map, the strongest projection at each look (Fig. 4).
    """
    items: list[Item] = []
    at = 0
    for layer in found:
        size = largest_patch(layer)
        rows = []
        for feature, patches in zip(layer.features, layer.patches, strict=True):
            pairs = []
            for rank, patch in enumerate(patches):
                figures, box = figures_of(layer, feature, rank, None), layer.boxes[feature, rank]
                shown = placed(to_gray_centered(projections[at]), box, size)
                seen = placed(normalization.to_pixels(patch), box, size)
                # Without captions: the room is for the pictures.
                pairs.append((Tile(shown, numbers=figures), Tile(seen, numbers=figures)))
                at += 1
            strongest = float(layer.activations[feature, 0])
            rows.append(Row(f"feature {feature}", _side_by_side(pairs), {"max activation": strongest}))
        caption = (
            f"{method}: the {found.k} strongest units of {len(layer.features)} of "
            f"{layer.activations.shape[0]} feature maps, projected to pixels (left) beside their patches (right), "
            f"{size[0]} x {size[1]} px"
        )
        items.append(Gallery(layer.layer, tuple(rows), caption=caption, columns=2 * _half(found.k), tile_side=_SIDE))
        looks = evolution.get(layer.layer, {})
        longest = max((len(strip) for strip in looks.values()), default=0)
        if longest > 1:
            shapes = [look.pixels.shape[-2:] for strip in looks.values() for look in strip]
            widest = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
            strips = tuple(
                Row(f"feature {feature}", tuple(look.tile(widest) for look in strip))
                for feature, strip in looks.items()
            )
            caption = "the strongest projection of each feature map, look by look while training goes on"
            items.append(Gallery(f"{layer.layer}/evolution", strips, caption=caption, columns=longest, tile_side=_SIDE))
    notes = (
        "Gray is no contribution; brighter and darker is where more or less of the input would raise the activation, "
        "each picture scaled by itself.",
        normalization.sentence(),
        "Blue is what lies beyond an image's border.",
    )
    return Report("deconvnet", title=f"Top-{found.k} projections", items=tuple(items), notes=notes)


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
    return Tile(torch.full_like(like.pixels, 244))
