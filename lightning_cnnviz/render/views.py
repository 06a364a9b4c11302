"""From any view's result to its report: one place that knows which function draws what, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.core.top_patches.search import diagnose, without_patches
from lightning_cnnviz.render.activation_maps import activation_maps_report
from lightning_cnnviz.render.attribution import attribution_report
from lightning_cnnviz.render.comparison import comparison_report, comparison_scalars
from lightning_cnnviz.render.correlation import correlation_report, correlation_scalars
from lightning_cnnviz.render.deconvnet import FirstRanked, deconvnet_report
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.filters import filters_report, filters_scalars
from lightning_cnnviz.render.invariance import invariance_report, invariance_scalars
from lightning_cnnviz.render.layer_probe import layer_probe_report, online_probe_report
from lightning_cnnviz.render.layer_table import layer_table_report
from lightning_cnnviz.render.maximization import maximization_report, maximization_scalars
from lightning_cnnviz.render.occlusion import occlusion_report, occlusion_scalars
from lightning_cnnviz.render.top_patches import top_patches_report, top_patches_scalars, top_patches_table
from lightning_cnnviz.report import Picture, Report, Scalar

__all__ = ["VIEW_NAMES", "Drawable", "Seen", "carry_on", "draw_last", "draw_view", "view_scalars"]


class Drawable(Protocol):
    """What one look of a view has seen, as far as drawing needs it."""

    @property
    def result(self) -> Any:
        """What was computed."""

    @property
    def display(self) -> Display:
        """How people see the images behind it."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The monitor's arguments, as plain values."""

    @property
    def epoch(self) -> int:
        """Number of training epochs that were complete."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """A `Drawable` in memory."""

    result: Any
    display: Display = field(default_factory=Display)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class _View:
    """How a view is drawn.

    Attributes:
        draw: From what was seen, and what earlier looks of the series carried on, oldest first.
        carry: From what was seen, what later looks of the series need of it; None for nothing.
        scalars: The report's scalars, made without a picture; None where the report has no pictures to save.
        last: What is shown once more when the run ends, as `draw` from the last look.
    """

    draw: Callable[[Drawable, Sequence[Any]], Report]
    carry: Callable[[Drawable], Any] = lambda seen: None
    scalars: Callable[[Drawable, Sequence[Any]], Sequence[Scalar]] | None = None
    last: Callable[[Drawable, Sequence[Any]], Report] | None = None


def draw_view(view: str, seen: Drawable, carried: Sequence[Any] = ()) -> Report:
    """Draw one look of a view.

    Args:
        view: One of `VIEW_NAMES`.
        seen: What the look has seen.
        carried: What `carry_on` made of each earlier look of its series, oldest first.

    Raises:
        ValueError: There is no such view.
    """
    draw = _view(view).draw
    if not isinstance(seen.result, ByHead):
        return draw(seen, carried)
    reports = {name: draw(each, carried) for name, each in _heads(seen)}
    first = next(iter(reports.values()))
    items = tuple(_under(name, item) for name, report in reports.items() for item in report.items)
    notes = tuple(f"{name}: {note}" for name, report in reports.items() for note in report.notes)
    return replace(first, items=items, notes=notes)


def view_scalars(view: str, seen: Drawable, carried: Sequence[Any] = ()) -> Sequence[Scalar]:
    """Return the scalars of `draw_view`'s report, without drawing a picture; mined patches need no pixels."""
    scalars = _view(view).scalars
    if scalars is not None and isinstance(seen.result, ByHead):
        return [_under(name, item) for name, each in _heads(seen) for item in scalars(each, carried)]
    if scalars is not None:
        return scalars(seen, carried)
    return [item for item in draw_view(view, seen, carried).items if isinstance(item, Scalar)]


def carry_on(view: str, seen: Drawable) -> Any:
    """Return what later looks of the series need of this one: for stability, for strips of evolution; or None."""
    return _view(view).carry(seen)


def draw_last(view: str, seen: Drawable, carried: Sequence[Any] = ()) -> Report | None:
    """Return what is shown once more when a run ends, of its last look; None for nothing."""
    last = _view(view).last
    return None if last is None else last(seen, carried)


def _view(name: str) -> _View:
    if name not in _VIEWS:
        raise ValueError(f"no view is called '{name}'.{suggestion(name, _VIEWS, ' ')} There are {[*_VIEWS]}")
    return _VIEWS[name]


def _heads(seen: Drawable) -> list[tuple[str, Seen]]:
    """What was seen of each head of a network of several."""
    rest: Any = {"display": seen.display, "arguments": seen.arguments, "epoch": seen.epoch}
    return [
        (name, Seen(result=result, **rest)) for name, result in zip(seen.result.names, seen.result.results, strict=True)
    ]


def _under(name: str, item: Any) -> Any:
    """An item of a report under the name of a head."""
    own = f"{name}/{item.name}"
    return item.called(own) if isinstance(item, Picture) else replace(item, name=own)


# Each view: from what was seen to the arguments of its render function.


def _top_patches(seen: Drawable, carried: Sequence[Any]) -> Report:
    diagnostics = diagnose(seen.result, carried[-1] if carried else None)
    shown = seen.display
    return top_patches_report(
        seen.result, diagnostics, shown.normalization, class_names=shown.class_names, files=shown.files
    )


def _top_patches_table(seen: Drawable, carried: Sequence[Any]) -> Report:
    report = _top_patches(seen, carried)
    return replace(report, items=(top_patches_table(seen.result, report),))


def _deconvnet(seen: Drawable, carried: Sequence[Any]) -> Report:
    patches, projection = seen.result
    evolution: dict[str, dict[int, list[FirstRanked]]] = {}
    for look in (*carried, _first_ranked(seen)):
        for layer, features in look.items():
            for feature, first in features.items():
                evolution.setdefault(layer, {}).setdefault(feature, []).append(first)
    normalization, files = seen.display.normalization, seen.display.files
    return deconvnet_report(patches, projection.pixels, projection.method, normalization, evolution, files=files)


def _first_ranked(seen: Drawable) -> dict[str, dict[int, FirstRanked]]:
    """By layer and feature map, the projection of the unit that ranks first."""
    patches, projection = seen.result
    pixels = iter(projection.pixels)
    firsts: dict[str, dict[int, FirstRanked]] = {}
    for layer in patches:
        firsts[layer.layer] = {}
        for feature, line in zip(layer.features, layer.patches, strict=True):
            projected = [next(pixels) for _ in line]
            if projected:
                activation, box = float(layer.activations[feature, 0]), layer.boxes[feature, 0]
                firsts[layer.layer][feature] = FirstRanked(
                    epoch=seen.epoch, activation=activation, box=box, pixels=projected[0]
                )
    return firsts


def _outline(seen: Drawable) -> TopPatches:
    """What is needed to compare later looks with this one."""
    result = without_patches(seen.result)
    return replace(result, layers=tuple(replace(layer, activity=None) for layer in result), sources=())


def _invariance(seen: Drawable, carried: Sequence[Any]) -> Report:
    shown = seen.display.of(seen.result.untouched)
    notes = (shown.normalization.sentence(),)
    return invariance_report(seen.result, shown.examples, class_names=shown.class_names, notes=notes)


def _occlusion(seen: Drawable, carried: Sequence[Any]) -> Report:
    shown = seen.display.of(seen.result.untouched)
    return occlusion_report(
        seen.result,
        shown.pixels,
        shown.indices,
        class_names=shown.class_names,
        fill=shown.fill_pixel,
        notes=(shown.normalization.sentence(),),
    )


def _attribution(seen: Drawable, carried: Sequence[Any]) -> Report:
    shown = seen.display.of(seen.result.untouched)
    notes = (shown.normalization.sentence(),)
    return attribution_report(seen.result, shown.pixels, shown.indices, class_names=shown.class_names, notes=notes)


def _maximization(seen: Drawable, carried: Sequence[Any]) -> Report:
    return maximization_report(seen.result, seen.display.normalization, compared=len(seen.display.indices))


def _filters(seen: Drawable, carried: Sequence[Any]) -> Report:
    return filters_report(seen.result, **{key: seen.arguments[key] for key in ("channels",) if key in seen.arguments})


def _top_patches_scalars(seen: Drawable, carried: Sequence[Any]) -> Sequence[Scalar]:
    return top_patches_scalars(diagnose(seen.result, carried[-1] if carried else None))


def _no_scalars(seen: Drawable, carried: Sequence[Any]) -> Sequence[Scalar]:
    return ()


_VIEWS: Mapping[str, _View] = {
    "layer_table": _View(draw=lambda seen, carried: layer_table_report(seen.result)),
    "filters": _View(draw=_filters, scalars=lambda seen, carried: filters_scalars(seen.result)),
    "top_patches": _View(draw=_top_patches, carry=_outline, scalars=_top_patches_scalars, last=_top_patches_table),
    "deconvnet": _View(draw=_deconvnet, carry=_first_ranked, scalars=_no_scalars),
    "correlation": _View(
        draw=lambda seen, carried: correlation_report(seen.result),
        scalars=lambda seen, carried: correlation_scalars(seen.result),
    ),
    "comparison": _View(
        draw=lambda seen, carried: comparison_report(seen.result),
        scalars=lambda seen, carried: comparison_scalars(seen.result),
    ),
    "activation_maps": _View(
        draw=lambda seen, carried: activation_maps_report(seen.result, seen.display), scalars=_no_scalars
    ),
    "layer_probe": _View(draw=lambda seen, carried: layer_probe_report(seen.result, seen.display.class_names)),
    "online_probe": _View(draw=lambda seen, carried: online_probe_report(seen.result)),
    "invariance": _View(draw=_invariance, scalars=lambda seen, carried: invariance_scalars(seen.result)),
    "occlusion": _View(draw=_occlusion, scalars=lambda seen, carried: occlusion_scalars(seen.result)),
    "attribution": _View(draw=_attribution, scalars=_no_scalars),
    "maximization": _View(draw=_maximization, scalars=lambda seen, carried: maximization_scalars(seen.result)),
}

VIEW_NAMES = tuple(_VIEWS)
"""The views that can be drawn from their results."""
