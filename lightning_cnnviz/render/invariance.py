"""Invariance curves as a report, in the layout of Fig. 5 of Zeiler & Fergus (2013)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from lightning_cnnviz.core.images.invariance import DistanceKind, InvarianceCurves, Sweep, area, half_width
from lightning_cnnviz.core.images.transforms import PixelScale, TransformSpec, resolve_transforms
from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.figures import (
    LEAST_FONT,
    PICTURE_WIDTH,
    figure_pixels,
    line_style,
    new_figure,
    scores_note,
    shorten,
    target_label,
    task_notes,
)
from lightning_cnnviz.render.vector import late_svg
from lightning_cnnviz.report import Item, Picture, Report, Scalar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "EXAMPLES",
    "EXAMPLE_IMAGES",
    "examples_at",
    "invariance_report",
    "invariance_scalars",
    "transformed_examples",
]

EXAMPLES = 7
"""Examples of each image along a sweep."""

EXAMPLE_IMAGES = 8
"""More images than these have lines, but no examples."""

_KINDS: tuple[DistanceKind, ...] = get_args(DistanceKind)
# As they are drawn, from above: first what can be compared between layers.
_KIND_LABELS: dict[DistanceKind, str] = {
    "relative": "relative |g - f| / |f|",
    "unit": "between unit vectors",
    "raw": "as it is |g - f|",
}
# More layers go to a picture of their own.
_LAYERS_SHOWN = 3
# In inches.
_HEIGHT, _EXAMPLES_WIDTH, _TITLE = 7.4, 4.3, 0.24
_EXAMPLE, _LINE_NAME = 1.2, 0.43  # at most of an image's examples; of a line's name with its numbers
_ABOVE_NAMES, _AROUND_EXAMPLES = 3.1, 1.0
_LEGEND_COLUMNS = 3
# Between examples, as a fraction of their distance.
_GAP = 0.04


def examples_at(values: Tensor) -> list[int]:
    """Return which values of a sweep are shown as examples: evenly, with the first and the last."""
    count = min(EXAMPLES, len(values))
    return [round(n * (len(values) - 1) / max(1, count - 1)) for n in range(count)]


def transformed_examples(
    transforms: TransformSpec | Sequence[TransformSpec], images: Tensor, display: Display
) -> dict[str, tuple[tuple[Tensor, ...], ...]]:
    """Return by transform, for each of the first images its copies along the sweep as pixels `(3, H, W)` uint8.

    Args:
        transforms: See `measure_invariance`.
        images: `(N, C, H, W)`, in the network's values; those are shown that there is room for.
        display: How images are shown; has a fill.
    """
    assert display.fill is not None, "a sample has one"
    images, scale = images[:EXAMPLE_IMAGES].float(), PixelScale(*display.mean_and_std)
    found = {}
    for transform in resolve_transforms(transforms, images, display.fill):
        places = examples_at(torch.tensor(transform.values))
        with keep_random_state():  # the user's own transform may draw from it
            copies = [scale.apply(transform, images, transform.values[place]) for place in places]
        found[transform.name] = tuple(
            tuple(display.normalization.to_pixels(copy[number]) for copy in copies) for number in range(len(images))
        )
    return found


def invariance_report(
    curves: InvarianceCurves,
    examples: Mapping[str, Sequence[Sequence[Tensor]]],
    *,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Draw each transform as examples with the probability beside them, and as distances at each layer.

    Args:
        curves: What was measured.
        examples: By transform, for each image its copies `(3, H, W)` uint8 at the values of `examples_at`.
        class_names: Names of the classes.
        notes: What else a reader needs to know, for example how the network's input is shown.
    """
    items: list[Item] = []
    for sweep in curves.sweeps:
        drawn, svg = _draw_scores(curves, sweep, examples.get(sweep.transform, ()), class_names)
        items.append(Picture(sweep.transform, drawn, caption=_caption(curves, sweep), svg=svg))
        for start in range(0, len(curves.layers), _LAYERS_SHOWN):
            layers = list(range(start, min(start + _LAYERS_SHOWN, len(curves.layers))))
            name = f"{sweep.transform}/distances" + (f" from {curves.layers[start]}" if start else "")
            caption = f"{sweep.label}: distance of features by layer, a line an image"
            drawn, svg = _draw_distances(curves, sweep, layers, class_names)
            items.append(Picture(name, drawn, caption=caption, svg=svg))
        items += _sweep_scalars(curves, sweep)
    explained: tuple[str, ...] = (
        "f are the features of the image as it is, g those of its transformed copy; distances are Euclidean: "
        "relative to the length of f, between f and g scaled to length one (0 to 2), and as they are (the paper's).",
        "Areas are divided by the width of the sweep (mean heights); half width is how far from its identity a "
        "transform may go before the probability is half of its own: the mean of both sides where the sweep has both, "
        "and at most as far as the sweep goes.",
    )
    strange = (*scores_note(curves.untouched), *_features_note(curves))
    explained += task_notes(curves.untouched, class_names)
    return Report("invariance", title="Invariance", items=tuple(items), notes=(*strange, *explained, *notes))


def _features_note(curves: InvarianceCurves) -> tuple[str, ...]:
    """Say what else is not finite: features, and scores of copies alone."""
    scored = curves.untouched.scored
    lost = [
        layer
        for number, layer in enumerate(curves.layers)
        if not all(bool(sweep.finite[number].all()) for sweep in curves.sweeps)
    ]
    copies = [
        sweep.transform for sweep in curves.sweeps if not bool(sweep.probabilities.isfinite().all(1)[scored].all())
    ]
    said = [f"Not finite: features are NaN or infinite at {', '.join(lost)}; means there are NaN."] if lost else []
    if copies:
        said.append(f"Not finite: the network's scores of copies are NaN or infinite along {', '.join(copies)}.")
    return tuple(said)


def _caption(curves: InvarianceCurves, sweep: Sweep) -> str:
    untouched = curves.untouched
    right = int((untouched.predictions == untouched.targets)[untouched.has_label].sum())
    lost = int((~untouched.scored).sum())
    many = int(untouched.has_label.sum())
    right_ones = f", {right} of {many} images classified correctly as they are" if untouched.labeled else ""
    if lost:
        right_ones = f"; the scores of {lost} of {len(untouched)} images are not finite"
    followed = f"probability of the {untouched.target_name}" if untouched.task.has_classes else untouched.target_name
    return f"{sweep.label}: {followed}, a line an image{right_ones}"


def invariance_scalars(curves: InvarianceCurves) -> list[Scalar]:
    """Return means over the images of each sweep, to follow over time; NaN where one is not finite."""
    return [scalar for sweep in curves.sweeps for scalar in _sweep_scalars(curves, sweep)]


def _sweep_scalars(curves: InvarianceCurves, sweep: Sweep) -> list[Scalar]:
    items: list[Scalar] = []
    for number, layer in enumerate(curves.layers):
        for kind in _KINDS:
            areas = area(sweep.distances(kind)[number], sweep.values)
            # An image without features at a layer has no relative distances there; one that is NaN makes the mean so.
            mean = float(areas.nanmean()) if bool(sweep.finite[number].all()) else math.nan
            items.append(Scalar(f"{sweep.transform}/{layer}/area_{kind}", mean, layer=layer))
    target = curves.untouched.key
    if not curves.untouched.task.has_classes:
        change = (sweep.probabilities - curves.untouched.probabilities[:, None]).abs()
        return [*items, Scalar(f"{sweep.transform}/{target}/change", float(area(change, sweep.values).mean()))]
    items.append(Scalar(f"{sweep.transform}/{target}/area", float(area(sweep.probabilities, sweep.values).mean())))
    widths = half_width(sweep.probabilities, sweep.values, sweep.identity, curves.untouched.probabilities)
    items.append(Scalar(f"{sweep.transform}/{target}/half_width", float(widths.mean())))
    return items


def _draw_scores(
    curves: InvarianceCurves,
    sweep: Sweep,
    examples: Sequence[Sequence[Tensor]],
    class_names: Sequence[str] | None,
) -> tuple[Tensor, Any]:
    """Examples on the left; beside them the probability, and the name of each line."""
    labels = [target_label(curves.untouched, number, class_names, 22) for number in range(len(curves.untouched))]
    examples = examples[:EXAMPLE_IMAGES]
    height = _height_of(examples, len(labels))
    with new_figure(PICTURE_WIDTH, height) as figure:
        halves: Any = figure.subfigures(1, 2, width_ratios=(_EXAMPLES_WIDTH, PICTURE_WIDTH - _EXAMPLES_WIDTH))
        left, right = halves
        _draw_examples(left, sweep, examples, labels, height)
        above, below = right.subplots(2, 1, height_ratios=(2.2, height - 2.2))
        _draw_probability(above, curves, sweep)
        _draw_legend(below, curves, sweep, labels)
        return figure_pixels(figure), late_svg(figure)


def _height_of(examples: Sequence[Sequence[Tensor]], lines: int) -> float:
    """Of the picture with examples, in inches: as much as they and the names of the lines need."""
    height, width = examples[0][0].shape[-2:] if examples else (1, 1)
    row = min(_EXAMPLE, _TITLE + _EXAMPLES_WIDTH / EXAMPLES / width * height)
    return min(_HEIGHT, max(_AROUND_EXAMPLES + len(examples) * row, _ABOVE_NAMES + lines * _LINE_NAME))


def _draw_distances(
    curves: InvarianceCurves, sweep: Sweep, layers: Sequence[int], class_names: Sequence[str] | None
) -> tuple[Tensor, Any]:
    """A column a layer, a row a kind of distance; below them the name of each line."""
    with new_figure(PICTURE_WIDTH, _HEIGHT) as figure:
        title = sweep.transform.replace("_", " ").capitalize()
        figure.suptitle(f"{title}: distance of features", x=0.02, ha="left", fontsize=14, fontweight="bold")
        columns = min(_LAYERS_SHOWN, len(curves.layers))
        panels = figure.subplots(len(_KINDS), columns, sharex=True, squeeze=False)
        for row, (kind, label) in enumerate(_KIND_LABELS.items()):
            for column, layer in enumerate(layers):
                axes = panels[row, column]
                _draw_lines(axes, sweep.values, sweep.distances(kind)[layer])
                if column == 0:
                    axes.set_ylabel(label, fontsize=LEAST_FONT)
                if row == 0:
                    axes.set_title(shorten(curves.layers[layer], 20), loc="left", fontsize=11, fontweight="bold")
                if row == len(_KINDS) - 1:
                    axes.set_xlabel(sweep.label, fontsize=LEAST_FONT)
            if kind != "raw":  # lengths differ from layer to layer, and are no scale to share
                highest = max(axes.get_ylim()[1] for axes in panels[row, : len(layers)])
                for axes in panels[row, : len(layers)]:
                    axes.set_ylim(0, highest)
            for axes in panels[row, len(layers) :]:
                axes.set_axis_off()
        _name_lines(figure, curves, class_names)
        return figure_pixels(figure), late_svg(figure)


def _name_lines(figure: Figure, curves: InvarianceCurves, class_names: Sequence[str] | None) -> None:
    """Name the lines below the panels; of many images the first ones."""
    from matplotlib.lines import Line2D

    count = len(curves.untouched)
    shown = min(count, EXAMPLE_IMAGES)
    labels = [target_label(curves.untouched, number, class_names, 18) for number in range(shown)]
    more = f" (first {shown} of {count})" if count > shown else ""
    figure.legend(
        [Line2D([], [], linewidth=2.2, **line_style(number)) for number in range(shown)],
        labels,
        title=f"image's {curves.untouched.target_name}{more}",
        loc="outside lower left",
        ncols=_LEGEND_COLUMNS,
        alignment="left",
        frameon=False,
        fontsize=LEAST_FONT,
        title_fontsize=LEAST_FONT,
    )


def _draw_lines(axes: Axes, values: Tensor, lines: Tensor) -> None:
    for number, line in enumerate(lines):
        axes.plot(values.numpy(), line.numpy(), linewidth=1.7, **line_style(number))
    axes.set_xlim(float(values[0]), float(values[-1]))
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=LEAST_FONT, labelbottom=True)
    axes.locator_params(nbins=4)


def _draw_probability(axes: Axes, curves: InvarianceCurves, sweep: Sweep) -> None:
    _draw_lines(axes, sweep.values, sweep.probabilities)
    if curves.untouched.task.has_classes:
        axes.set_ylim(0, 1.02)
    else:
        axes.relim()
        axes.autoscale(axis="y")
    axes.set_ylabel("probability" if curves.untouched.task.has_classes else "value", fontsize=LEAST_FONT)
    axes.set_xlabel(sweep.label, fontsize=LEAST_FONT)
    axes.set_title(textwrap.fill(curves.untouched.quantity, 24), loc="left", fontsize=11, fontweight="bold")


def _draw_legend(axes: Axes, curves: InvarianceCurves, sweep: Sweep, labels: Sequence[str]) -> None:
    """Name each line, with what is to be read from it as a number."""
    untouched, sign = curves.untouched, "p " if curves.untouched.task.has_classes else ""
    widths = half_width(sweep.probabilities, sweep.values, sweep.identity, untouched.probabilities)
    if not untouched.task.has_classes:
        widths = torch.full_like(widths, math.nan)  # half of a value says nothing
    axes.set_axis_off()
    lines = [axes.plot([], [], linewidth=2.2, **line_style(number))[0] for number in range(len(labels))]
    texts = []
    for label, p, width in zip(labels, curves.untouched.probabilities.tolist(), widths.tolist(), strict=True):
        half = "" if width != width else f", half width {width:.3g}"
        texts.append(f"{label}\n{sign}{p:.3g}{half}" if math.isfinite(p) else f"{label}\nscores not finite")
    shown = 2 * EXAMPLE_IMAGES if len(texts) > EXAMPLE_IMAGES else EXAMPLE_IMAGES
    if len(texts) > EXAMPLE_IMAGES:
        texts = [text.partition("\n")[0] for text in texts]
    more = f" (first {shown} of {len(texts)})" if len(texts) > shown else ""
    legend = axes.legend(
        lines[:shown],
        texts[:shown],
        title=textwrap.fill(f"image's {curves.untouched.target_name}{more}", 28),
        loc="upper left",
        bbox_to_anchor=(-0.2, 1),
        alignment="left",
        frameon=False,
        fontsize=LEAST_FONT,
        title_fontsize=LEAST_FONT,
    )
    legend.set_in_layout(False)  # long names would leave the axes no room


def _draw_examples(
    figure: SubFigure | Figure,
    sweep: Sweep,
    examples: Sequence[Sequence[Tensor]],
    labels: Sequence[str],
    picture_height: float,
) -> None:
    """One row an image, one column a value of the sweep; placed by hand, so that tiles are as large as they can be."""
    left = 0.05
    title = sweep.transform.replace("_", " ").capitalize()
    figure.text(left / _EXAMPLES_WIDTH, 1 - 0.12 / picture_height, title, va="top", fontsize=14, fontweight="bold")
    if not examples:
        return
    rows, columns = len(examples), len(examples[0])
    size = examples[0][0].shape[-2:]
    room = min((picture_height - _AROUND_EXAMPLES) / rows, _EXAMPLE) - _TITLE
    width = min((_EXAMPLES_WIDTH - left) / columns, room / size[0] * size[1]) * (1 - _GAP)
    height, pitch = width / size[1] * size[0], width / (1 - _GAP)
    # One axes for all of them: axes are slow. Above each row is room for its title.
    strips = [_strip(copies) for copies in examples]
    head = size[0] * _TITLE / height  # in pixels of an example
    top, down, across = picture_height - 0.4, rows * (size[0] + head), strips[0].shape[2]
    bottom = top - height * down / size[0]
    box = (left / _EXAMPLES_WIDTH, bottom / picture_height, width * across / size[1] / _EXAMPLES_WIDTH)
    axes = figure.add_axes((*box, (top - bottom) / picture_height))
    for row, strip in enumerate(strips):
        begin = row * (size[0] + head) + head
        extent = (0, across, begin + size[0], begin)
        axes.imshow(strip.permute(1, 2, 0).numpy(), extent=extent, interpolation="antialiased", aspect="auto")
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    for row, label in enumerate(labels[:rows]):
        above = top - row * (top - bottom) / rows - _TITLE + 0.03
        color = line_style(row)["color"]
        figure.text(
            left / _EXAMPLES_WIDTH, above / picture_height, label, va="bottom", fontsize=LEAST_FONT, color=color
        )
    for column, place in enumerate(examples_at(sweep.values)):
        middle = (left + column * pitch + width / 2) / _EXAMPLES_WIDTH
        value = f"{float(sweep.values[place]):.3g}"
        figure.text(middle, (bottom - 0.05) / picture_height, value, ha="center", va="top", fontsize=LEAST_FONT)
    middle = (left + (columns - 1) * pitch / 2 + width / 2) / _EXAMPLES_WIDTH
    figure.text(middle, (bottom - 0.3) / picture_height, sweep.label, ha="center", va="top", fontsize=LEAST_FONT)


def _strip(copies: Sequence[Tensor]) -> Tensor:
    """Copies side by side."""
    height, width = copies[0].shape[-2:]
    gap = torch.full((3, height, round(width * _GAP / (1 - _GAP))), 255, dtype=torch.uint8)
    return torch.cat([part for copy in copies for part in (gap, copy)][1:], 2)
