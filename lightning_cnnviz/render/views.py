"""One function a result: what it has to say, as a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches import Diagnostics, LayerTopPatches, TopPatches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Gallery, Item, Number, Report, Row, Scalar, Table, Tile

__all__ = ["Look", "deconvnet_report", "to_gray_centered", "top_patches_report", "top_patches_table"]

# The share of a projection's pixels that keep their contrast: by its largest pixel alone it would be a faint scribble.
_CONTRAST = 0.995
# What lies outside the image, where a receptive field is cut at its border: a tint that no gray image has.
_OUTSIDE = (203, 213, 232)


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
        return Tile(_placed(to_gray_centered(self.pixels), self.box, size), f"epoch {self.epoch}", numbers)


def top_patches_report(
    found: TopPatches,
    diagnostics: Sequence[Diagnostics],
    normalization: Normalization,
    *,
    class_names: Sequence[str] | None = None,
) -> Report:
    """Draw the patches of each layer as a gallery, a row a feature map, and its diagnostics as scalars.

    Patches of a layer share one scale: those cut off at the image's border keep their size, on the side where they lie.
    """
    items: list[Item] = []
    for layer, summary in zip(found, diagnostics, strict=True):
        items.append(_gallery(layer, summary, normalization, class_names))
        figures = ("dead_features", "dead_fraction", "stability", "label_purity")
        items += [Scalar(f"{layer.layer}/{name}", float(getattr(summary, name))) for name in figures]
    notes = [normalization.sentence(), "Blue is what lies beyond an image's border."]
    if not found.indices_known:
        notes.append("The loader does not tell which image is which: images are numbered as they arrived.")
    strange = [f"{layer.layer} (image {layer.nonfinite})" for layer in found if layer.nonfinite is not None]
    if strange:
        notes.append("NaN or infinite activations, left out of the ranking, in " + ", ".join(strange) + ".")
    return Report("top_patches", f"Top-{found.k} patches", tuple(items), tuple(notes))


def top_patches_table(found: TopPatches, report: Report) -> Table:
    """One line a patch, of all layers; with the tiles of the report that `top_patches_report` made of it."""
    columns = ("layer", "feature", "rank", "activation", "dataset index", "label", "row", "column", "patch")
    galleries = [item for item in report.items if isinstance(item, Gallery)]
    rows: list[tuple[Number | Tile | None, ...]] = []
    for layer, gallery in zip(found, galleries, strict=True):
        for feature, line in zip(layer.features, gallery.rows, strict=True):
            for rank, tile in enumerate(line.tiles, start=1):
                figures = [tile.numbers.get(name) for name in columns[3:-1]]
                rows.append((layer.layer, feature, rank, *figures, tile))
    return Table("table", columns, tuple(rows), f"{report.title}, at the end of the run")


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
        size = _largest(layer)
        rows = []
        for feature, patches in zip(layer.features, layer.patches, strict=True):
            pairs = []
            for rank, patch in enumerate(patches):
                figures, box = _figures(layer, feature, rank, None), layer.boxes[feature, rank]
                shown = _placed(to_gray_centered(projections[at]), box, size)
                pairs.append(
                    (
                        Tile(shown, f"projection {_brief(float(layer.activations[feature, rank]))}", figures),
                        Tile(_placed(normalization.to_pixels(patch), box, size), "patch", figures),
                    )
                )
                at += 1
            strongest = float(layer.activations[feature, 0])
            rows.append(Row(f"feature {feature}", _side_by_side(pairs), {"max activation": strongest}))
        caption = (
            f"{method}: the {found.k} strongest units of {len(layer.features)} of "
            f"{layer.activations.shape[0]} feature maps, projected to pixels (left) beside their patches (right), "
            f"{size[0]} x {size[1]} px"
        )
        items.append(Gallery(layer.layer, tuple(rows), caption, columns=2 * _half(found.k)))
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
            items.append(Gallery(f"{layer.layer}/evolution", strips, caption, columns=longest))
    notes = (
        "Gray is no contribution; brighter and darker is where more or less of the input would raise the activation, "
        "each picture scaled by itself.",
        normalization.sentence(),
        "Blue is what lies beyond an image's border.",
    )
    return Report("deconvnet", f"Top-{found.k} projections", tuple(items), notes)


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


def _largest(found: LayerTopPatches) -> tuple[int, int]:
    """Height and width of a layer's largest patch."""
    sizes = [patch.shape[-2:] for patches in found.patches for patch in patches]
    return max((s[0] for s in sizes), default=1) or 1, max((s[1] for s in sizes), default=1) or 1


def _gallery(
    found: LayerTopPatches, summary: Diagnostics, normalization: Normalization, class_names: Sequence[str] | None
) -> Gallery:
    size = _largest(found)
    rows = []
    for feature, patches in zip(found.features, found.patches, strict=True):
        tiles = tuple(
            Tile(
                _placed(normalization.to_pixels(patch), found.boxes[feature, rank], size),
                caption=_brief(float(found.activations[feature, rank])),
                numbers=_figures(found, feature, rank, class_names),
            )
            for rank, patch in enumerate(patches)
        )
        strongest = float(found.activations[feature, 0])
        rows.append(Row(f"feature {feature}", tiles, {"max activation": strongest}))
    channels = found.activations.shape[0]
    shown = f"{len(found.features)} of {channels}" if len(found.features) < channels else f"all {channels}"
    caption = f"{shown} feature maps, strongest patch first, receptive fields of {size[0]} x {size[1]} px"
    figures = [f"{summary.dead_features} dead"]
    figures += [
        f"{name} {value:.2f}"
        for name, value in (("stability", summary.stability), ("label purity", summary.label_purity))
        if value == value  # NaN where it could not be measured
    ]
    return Gallery(found.layer, tuple(rows), " · ".join([caption, *figures]))


def _brief(value: float) -> str:
    """Three figures, and no exponent where none is needed."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def _figures(found: LayerTopPatches, feature: int, rank: int, class_names: Sequence[str] | None) -> dict[str, Number]:
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


def _placed(pixels: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
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
