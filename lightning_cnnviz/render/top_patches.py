"""Top-k patches as a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.core.top_patches.search import Diagnostics
from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import (
    MEAN_NOTE,
    Crops,
    brief,
    label_name,
    nonfinite_note,
    numbers_of_row,
    numbers_of_unit,
)
from lightning_cnnviz.report import Gallery, Histogram, Item, LayerFacts, Number, Report, Row, Scalar, Table, Tile

__all__ = ["top_patches_report", "top_patches_scalars", "top_patches_table"]


def top_patches_report(
    result: TopPatches,
    diagnostics: Sequence[Diagnostics],
    normalization: Normalization,
    *,
    class_names: Sequence[str] | None = None,
    files: Mapping[int, str] | None = None,
) -> Report:
    """Draw the patches of each layer as a gallery, a row a feature map, and its diagnostics as scalars.

    Patches of a layer share one scale: those cut off at the image's border keep their size, on the side where they lie.
    """
    crops = Crops(result, normalization, files)
    items: list[Item] = []
    for layer, summary in zip(result, diagnostics, strict=True):
        items.append(_gallery(layer, summary, crops, class_names, Frame.of_layer(layer, normalization)))
        items += top_patches_scalars([summary])
    frame = Frame.of(result.all_patches(), normalization)
    notes = [*nonfinite_note(result), *frame.notes(normalization)]
    if _by_mean(result):
        notes.append(MEAN_NOTE)
    if not result.indices_known:
        notes.append("The loader does not tell which image is which: images are numbered as they arrived.")
    facts = tuple(_facts(layer, summary, class_names) for layer, summary in zip(result, diagnostics, strict=True))
    return Report("top_patches", title=f"Top-{result.k} patches", items=tuple(items), notes=tuple(notes), facts=facts)


def top_patches_scalars(diagnostics: Sequence[Diagnostics]) -> list[Scalar]:
    """Return the numbers of each layer to follow over time."""
    names = ("dead_features", "dead_fraction", "stability", "label_purity")
    return [
        Scalar(f"{layer.layer}/{name}", float(getattr(layer, name)), layer=layer.layer)
        for layer in diagnostics
        for name in names
    ]


def top_patches_table(result: TopPatches, report: Report) -> Table:
    """One line a patch, of all layers; with the tiles of the report that `top_patches_report` made of it."""
    numbers = ("activation", *(("mean activation",) if _by_mean(result) else ()))
    galleries = [item for item in report.items if isinstance(item, Gallery)]
    told = {name for gallery in galleries for row in gallery.rows for tile in row.tiles for name in tile.numbers}
    places = [name for name in ("position", "depth", "row", "column") if name in told]
    numbers += ("dataset index", "label", *(places or ("row", "column")))
    rows: list[tuple[Number | Tile | None, ...]] = []
    for layer, gallery in zip(result, galleries, strict=True):
        for feature, line in zip(layer.features, gallery.rows, strict=True):
            for rank, tile in enumerate(line.tiles, start=1):
                rows.append((layer.layer, feature, rank, *(tile.numbers.get(name) for name in numbers), tile))
    columns = ("layer", "feature", "rank", *numbers, "patch")
    return Table("table", columns, tuple(rows), caption=f"{report.title}, at the end of the run")


def _by_mean(result: TopPatches) -> bool:
    return any(layer.rank_by == "mean" for layer in result)


def _gallery(
    layer: LayerTopPatches, summary: Diagnostics, crops: Crops, class_names: Sequence[str] | None, frame: Frame
) -> Gallery:
    rows = []
    for feature, patches in zip(layer.features, layer.patches, strict=True):
        tiles = tuple(
            crops.tile(
                layer,
                feature,
                rank,
                frame,
                caption=brief(float(layer.activations[feature, rank])),
                numbers=numbers_of_unit(layer, feature, rank, class_names) | crops.file(layer, feature, rank),
            )
            for rank in range(len(patches))
        )
        rows.append(Row(f"feature {feature}", tiles, numbers_of_row(layer, feature), channel=feature))
    channels = len(layer.maxima)
    shown = f"{len(layer.features)} of {channels}" if len(layer.features) < channels else f"all {channels}"
    order = "strongest patch first" if layer.rank_by == "max" else "highest mean activation first"
    parts = [f"{shown} feature maps, {order}, receptive fields of {frame.said}"]
    unknown = int(layer.maxima.isnan().sum())
    parts.append(f"{unknown} not finite" if unknown else f"{summary.dead_features:.0f} dead")
    if summary.stability == summary.stability:  # NaN where it could not be measured
        parts.append(f"stability {summary.stability:.2f}")
    if summary.label_purity == summary.label_purity:
        least = _least_purity(layer, class_names)
        parts.append(f"label purity {summary.label_purity:.2f}{f' (at least {least:.2f})' if least else ''}")
    return Gallery(layer.layer, tuple(rows), caption=" · ".join(parts), layer=layer.layer, enlarge=frame.is_image)


def _least_purity(layer: LayerTopPatches, class_names: Sequence[str] | None) -> float:
    """The least part of k patches that the most frequent label can have; 0 where the number of classes is not known."""
    if not class_names or layer.labels is None:
        return 0.0
    k, classes = layer.scores.shape[1], max(len(class_names), int(layer.labels.max()) + 1)
    return math.ceil(k / classes) / k


def _facts(layer: LayerTopPatches, summary: Diagnostics, class_names: Sequence[str] | None) -> LayerFacts:
    """What is known of all channels, also of those whose patches were not kept."""
    dead = [float("nan") if peak != peak else int(peak <= 0) for peak in layer.maxima.tolist()]
    channels: dict[str, Sequence[float]] = {"max activation": layer.maxima.tolist(), "dead": dead}
    channels |= {"stability": summary.channel_stability, "label purity": summary.channel_purity}
    known = {name: tuple(values) for name, values in channels.items() if any(value == value for value in values)}
    classes, (told, histograms) = _classes(layer, class_names), _activity(layer, class_names)
    least = _least_purity(layer, class_names) if "label purity" in known else 0.0
    return LayerFacts(
        layer=layer.layer,
        numbers={"least label purity": least} if least else {},
        channels=known,
        classes=classes,
        told=told,
        histograms=histograms,
    )


_Told = tuple[tuple[tuple[Number, float], ...], ...]


def _activity(layer: LayerTopPatches, class_names: Sequence[str] | None) -> tuple[_Told, tuple[Histogram | None, ...]]:
    """What drives each channel over the whole data set: known of those that are shown."""
    activity, channels = layer.activity, len(layer.maxima)
    if activity is None:
        return (), ()
    histograms: list[Histogram | None] = [None] * channels
    told: list[tuple[tuple[Number, float], ...]] = [()] * channels
    for place, channel in enumerate(activity.features):
        if int(activity.counts[place].sum()):
            low, width = float(activity.low[place]), float(activity.width[place])
            histograms[channel] = Histogram(low=low, width=width, counts=tuple(activity.counts[place].tolist()))
        if activity.classes is not None and activity.selectivity is not None:
            pairs = zip(activity.classes[place].tolist(), activity.selectivity[place].tolist(), strict=True)
            told[channel] = tuple((label_name(label, class_names), value) for label, value in pairs if label >= 0)
    return tuple(told), tuple(histograms)


def _classes(layer: LayerTopPatches, class_names: Sequence[str] | None) -> tuple[tuple[tuple[Number, float], ...], ...]:
    """Of each channel, the classes among its units that rank first, with their parts of the sum of activations."""
    if layer.labels is None:
        return ()
    weights = layer.activations.double().clamp(min=0).masked_fill(layer.images < 0, 0)
    parts = weights / weights.sum(1, keepdim=True)
    driven = []
    for labels, line in zip(layer.labels.tolist(), parts.tolist(), strict=True):
        sums: dict[int, float] = {}
        for label, part in zip(labels, line, strict=True):
            if part > 0:
                sums[label] = sums.get(label, 0.0) + part
        ordered = sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))
        driven.append(tuple((label_name(label, class_names), part) for label, part in ordered))
    return tuple(driven)
