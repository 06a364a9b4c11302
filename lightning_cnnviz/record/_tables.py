"""The numbers of each view's result as columns, an observation a line: what data frames are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.comparison.units import UnitComparison
from lightning_cnnviz.core.images.activation_maps import ActivationMaps
from lightning_cnnviz.core.images.attribution import AttributionMaps
from lightning_cnnviz.core.images.correlation import ChannelCorrelation
from lightning_cnnviz.core.images.filters import LayerFilters
from lightning_cnnviz.core.images.invariance import InvarianceCurves
from lightning_cnnviz.core.images.occlusion import OcclusionMaps
from lightning_cnnviz.core.layer_table.table import LayerTable
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.probe import LayerProbe, ProbeScores
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.report import Report, Table, Tile

__all__ = ["Columns", "columns_of", "report_columns"]

Columns = dict[str, Any]
"""By name, a value for each line, or one for all lines."""

_BOX = ("top", "left", "bottom", "right")
_BOX_3D = ("front", "top", "left", "back", "bottom", "right")
# By how many numbers a box has: of a signal, two.
_SIDES = {2: ("left", "right"), 4: _BOX, 6: _BOX_3D}


def columns_of(view: str, result: Any, display: Display) -> Iterator[Columns]:
    """Yield the numbers of a view's result, part by part.

    Args:
        view: The view.
        result: What it has found; the pixels of mined patches are not needed.
        display: How people see its images, for names.
    """
    if not isinstance(result, ByHead):
        yield from _VIEWS[view](result, display)
        return
    for name, own in zip(result.names, result.results, strict=True):
        for columns in _VIEWS[view](own, display):
            yield {"of": name, **columns}


def report_columns(report: Report) -> Iterator[Columns]:
    """Yield the cells of a report's tables."""
    for item in report.items:
        if isinstance(item, Table):
            cells = zip(*item.rows, strict=True) if item.rows else [()] * len(item.columns)
            columns = zip(item.columns, cells, strict=True)
            yield {"table": item.name} | {name: [_text_of(cell) for cell in column] for name, column in columns}


def _text_of(cell: Any) -> Any:
    return cell.caption if isinstance(cell, Tile) else cell


def _top_patches(result: TopPatches, display: Display) -> Iterator[Columns]:
    """Every unit that ranks, also of feature maps whose patches were not kept."""
    for layer in result:
        features, ranks = (layer.images >= 0).nonzero(as_tuple=True)
        yield _units(layer, features, ranks, display) | {"shown": np.isin(features, layer.features)}


def _deconvnet(result: tuple[TopPatches, Any], display: Display) -> Iterator[Columns]:
    """Every unit that was projected: those whose patches were kept."""
    patches, projection = result
    for layer in patches:
        features = torch.tensor(layer.features, dtype=torch.int64)
        rows, ranks = (layer.images[features] >= 0).nonzero(as_tuple=True)
        yield _units(layer, features[rows], ranks, display) | {"method": projection.method}


def _units(layer: LayerTopPatches, features: Tensor, ranks: Tensor, display: Display) -> Columns:
    images = layer.images[features, ranks]
    labels = None if layer.labels is None else layer.labels[features, ranks]
    boxes = layer.boxes[features, ranks]
    return {
        "layer": layer.layer,
        "feature": features.numpy(),
        "rank": ranks.numpy() + 1,
        "activation": layer.activations[features, ranks].double().numpy(),
        "score": layer.scores[features, ranks].double().numpy(),
        "image": images.numpy(),
        **_labels(labels, display, len(images)),
        "file": [display.files.get(index) for index in images.tolist()],
        **({} if layer.depths is None else {"depth": layer.depths[features, ranks].numpy()}),
        "row": layer.rows[features, ranks].numpy(),
        "column": layer.columns[features, ranks].numpy(),
        **{side: boxes[:, place].numpy() for place, side in enumerate(_BOX if boxes.shape[1] == 4 else _BOX_3D)},
    }


def _labels(labels: Tensor | None, display: Display, count: int) -> Columns:
    """Labels as numbers and names; None where there are none."""
    if labels is None:
        return {"label": [None] * count, "class_name": [None] * count}
    return {"label": labels.tolist(), "class_name": [_named(label, display) for label in labels.tolist()]}


def _named(label: int, display: Display) -> str | None:
    names = display.class_names
    return names[label] if names is not None and 0 <= label < len(names) else None


def _sample(untouched: Classified, display: Display) -> Columns:
    """What the network makes of the images of a sample, a line an image."""
    count, display = len(untouched.targets), display.of(untouched)
    return {
        "image": _indices(count, display),
        **_labels(untouched.targets if untouched.labeled else None, display, count),
        "target": untouched.targets.numpy(),
        "prediction": untouched.predictions.numpy(),
        "probability": untouched.probabilities.double().numpy(),
    }


def _indices(count: int, display: Display) -> Sequence[int]:
    """Data-set indices, or places in the sample where those are not known."""
    return display.indices if len(display.indices) == count else range(count)


def _repeated(columns: Mapping[str, Any], times: int) -> Columns:
    """Each line of an image so many times, next to each other."""
    return {name: np.repeat(np.array(values, dtype=_kind(values)), times) for name, values in columns.items()}


def _kind(values: Any) -> Any:
    return values.dtype if isinstance(values, np.ndarray) else object if None in values else None


def _layer_probe(result: LayerProbe, display: Display) -> Iterator[Columns]:
    for control, scores in ((False, result.scores), (True, result.control or ())):
        for layer in scores:
            heads, splits = layer.accuracy.shape
            yield {
                "layer": layer.layer,
                "control": control,
                "head": np.repeat(np.array(layer.heads, dtype=object), splits),
                "split": np.tile(np.arange(splits), heads),
                "accuracy": layer.accuracy.flatten().numpy(),
                "measure": layer.measure,
                "C": layer.C.flatten().numpy(),
                **_tried(layer),
                "converged": layer.converged.flatten().numpy(),
                "dimensions": layer.dimensions,
                "classes": layer.classes,
                "protocol": layer.protocol.name,
            }


def _tried(layer: ProbeScores) -> Columns:
    """Between which values C was chosen, and whether it lies inside."""
    if layer.tried is None or layer.bracketed is None:
        return dict.fromkeys(("lowest_C", "highest_C", "bracketed"))
    lowest, highest = layer.tried.flatten(0, 1).unbind(-1)
    return {"lowest_C": lowest.numpy(), "highest_C": highest.numpy(), "bracketed": layer.bracketed.flatten().numpy()}


def _online_probe(result: OnlineScores, display: Display) -> Iterator[Columns]:
    yield {
        "layer": list(result.layers),
        "accuracy": result.accuracy.numpy(),
        "measure": result.measure,
        "images": result.images,
        "classes": result.classes,
        "batches": result.batches,
        "left_out": result.left_out.numpy(),
    }


def _layer_table(result: LayerTable, display: Display) -> Iterator[Columns]:
    shapes = ("input_shape", "output_shape", "kernel", "stride", "padding", "dilation", "jump", "receptive_field")
    plain = ("layer", "use", "type", "kind", "groups", "parameters", "macs", "activation_bytes", "shared", "formula")
    yield {
        **{name: [getattr(row, name) for row in result.rows] for name in plain},
        **{name: [_shape(getattr(row, name)) for row in result.rows] for name in shapes},
    }


def _shape(sizes: tuple[float | None, ...] | None) -> str:
    return " x ".join("all" if size is None else f"{size:g}" for size in sizes or ())


def _filters(result: Sequence[LayerFilters], display: Display) -> Iterator[Columns]:
    for layer in result:
        yield {
            "layer": layer.layer,
            "filter": np.arange(len(layer.rms)),
            "rms": layer.rms.double().numpy(),
            "dominant": layer.dominant.numpy(),
            "near_zero": layer.near_zero.numpy(),
        }


def _correlation(result: Sequence[ChannelCorrelation], display: Display) -> Iterator[Columns]:
    """A line a channel, with the other channel that it correlates with most; pairs grow with the square."""
    for layer in result:
        others = layer.correlation.abs().nan_to_num(-1.0).fill_diagonal_(-1.0)
        strength, partner = (
            others.max(1) if len(others) > 1 else (torch.full((len(others),), -1.0), others[:, 0].long())
        )
        known = strength >= 0
        signed = layer.correlation.gather(1, partner.clamp(min=0)[:, None])[:, 0]
        yield {
            "layer": layer.layer,
            "channel": np.arange(len(others)),
            "most_like": [int(other) if there else None for other, there in zip(partner, known, strict=True)],
            "correlation": signed.masked_fill(~known, torch.nan).numpy(),
            "redundant": layer.redundant.numpy(),
            "constant": layer.constant.numpy(),
            "images": layer.images,
        }


def _comparison(result: UnitComparison, display: Display) -> Iterator[Columns]:
    """A line a channel."""
    for layer in result.layers:
        yield {
            "layer": layer.layer,
            "other_layer": layer.other,
            "channel": np.arange(len(layer.partners)),
            "correlation": layer.correlation.double().numpy(),
            "partner": [int(partner) if partner >= 0 else None for partner in layer.partners],
            "partner_correlation": layer.partner_correlation.double().numpy(),
            "cka": layer.cka,
            "chance": layer.chance,
            "images": result.images,
        }


def _activation_maps(result: Sequence[ActivationMaps], display: Display) -> Iterator[Columns]:
    for layer in result:
        count, kept = layer.features.shape
        yield {
            "layer": layer.layer,
            "image": np.repeat(np.array(_indices(count, display)), kept),
            "rank": np.tile(np.arange(1, kept + 1), count),
            "feature": layer.features.flatten().numpy(),
            "peak": layer.peaks.flatten().double().numpy(),
        }


def _invariance(result: InvarianceCurves, display: Display) -> Iterator[Columns]:
    for sweep in result.sweeps:
        for place, layer in enumerate(result.layers):
            count, values = sweep.probabilities.shape
            yield {
                **_repeated(_sample(result.untouched, display), values),
                "layer": layer,
                "transform": sweep.transform,
                "value": np.tile(sweep.values.numpy(), count),
                "raw": sweep.raw[place].flatten().double().numpy(),
                "relative": sweep.relative[place].flatten().double().numpy(),
                "unit": sweep.unit[place].flatten().double().numpy(),
                "transformed_probability": sweep.probabilities.flatten().double().numpy(),
            }


def _occlusion(result: OcclusionMaps, display: Display) -> Iterator[Columns]:
    boxes = result.boxes.flatten(0, 1)
    count, positions = len(result.channels), len(boxes)
    image = _sample(result.untouched, display)
    image |= {"channel": result.channels.numpy(), "activation": result.untouched_activations.double().numpy()}
    yield {
        "layer": result.layer,
        **_repeated(image, positions),
        **{side: np.tile(boxes[:, place].numpy(), count) for place, side in enumerate(_BOX)},
        "occluded_probability": result.probabilities.flatten().double().numpy(),
        "occluded_prediction": result.predictions.flatten().numpy(),
        "occluded_activation": result.activations.flatten().double().numpy(),
    }


def _attribution(result: AttributionMaps, display: Display) -> Iterator[Columns]:
    flat = result.maps.flatten(1).double()
    yield {
        "method": result.method,
        "layer": result.layer,
        **_sample(result.untouched, display),
        "smallest": flat.amin(1).numpy(),
        "largest": flat.amax(1).numpy(),
        "sum": flat.sum(1).numpy(),
    }


def _maximization(result: Sequence[MaximizedLayer], display: Display) -> Iterator[Columns]:
    for layer in result:
        optima, count = layer.optima, len(layer.captions)
        strongest = torch.full((count,), torch.nan) if layer.strongest is None else layer.strongest.activations
        columns = {
            "objective": list(layer.captions),
            **{side: optima.boxes[:, place].numpy() for place, side in enumerate(_SIDES[optima.boxes.shape[1]])},
            "strongest_real": strongest.double().numpy(),
        }
        yield {
            "layer": layer.name,
            **_repeated(columns, optima.starts),
            "start": np.tile(np.arange(optima.starts), count),
            "activation": optima.activations.double().numpy(),
        }


_VIEWS: Mapping[str, Callable[[Any, Display], Iterator[Columns]]] = {
    "layer_table": _layer_table,
    "filters": _filters,
    "top_patches": _top_patches,
    "deconvnet": _deconvnet,
    "correlation": _correlation,
    "comparison": _comparison,
    "activation_maps": _activation_maps,
    "layer_probe": _layer_probe,
    "online_probe": _online_probe,
    "invariance": _invariance,
    "occlusion": _occlusion,
    "attribution": _attribution,
    "maximization": _maximization,
}
