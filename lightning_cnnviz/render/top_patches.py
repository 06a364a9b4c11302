"""Top-k patches as a report."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.core.top_patches.search import Diagnostics
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import brief, figures_of, largest_patch, placed
from lightning_cnnviz.report import Gallery, Item, Number, Report, Row, Scalar, Table, Tile

__all__ = ["top_patches_report", "top_patches_table"]


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
    return Report("top_patches", title=f"Top-{found.k} patches", items=tuple(items), notes=tuple(notes))


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
    return Table("table", columns, tuple(rows), caption=f"{report.title}, at the end of the run")


def _gallery(
    found: LayerTopPatches, summary: Diagnostics, normalization: Normalization, class_names: Sequence[str] | None
) -> Gallery:
    size = largest_patch(found)
    rows = []
    for feature, patches in zip(found.features, found.patches, strict=True):
        tiles = tuple(
            Tile(
                placed(normalization.to_pixels(patch), found.boxes[feature, rank], size),
                caption=brief(float(found.activations[feature, rank])),
                numbers=figures_of(found, feature, rank, class_names),
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
    return Gallery(found.layer, tuple(rows), caption=" · ".join([caption, *figures]))
