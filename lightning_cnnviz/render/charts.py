"""Charts: a curve as pixels, for sinks that take pictures, and as SVG, for web pages."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_cnnviz.render._text import one_line
from lightning_cnnviz.render.figures import PENCIL, figure_pixels, line_style, new_figure, shorten
from lightning_cnnviz.report import Curve, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_figure", "curve_svg", "draw_curve"]

_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LEGEND_ROWS = 16
_WIDTH, _HEIGHT, _LEGEND_WIDTH = 6.4, 4.2, 2.6  # inches
_NARROWEST = 2.6  # inches: where a legend beside it would leave less, it stands below
_CAPTION_LENGTH = 84  # characters, as wide as the axes
_NOTE_LENGTH = 130
# Inches of a slanted name along an axis, and of what stands beside the axis: with many names, a chart is wider.
_NAME_WIDTH, _AROUND_NAMES = 0.19, 1.0
_NAME_LENGTH = 18  # characters of each
_LEVEL = 56  # characters, up to which names stand level
_DENSE = 30  # with more points than this, markers would hide the line


def draw_curve(curve: Curve) -> Tensor:
    """Draw a curve as a picture.

    Args:
        curve: What to draw; NaN leaves a gap.

    Returns:
        `(3, H, W)` uint8.

    Example:
        >>> series = Series("SVM", x=(1, 2, 3), y=(0.45, 0.66, 0.72))
        >>> curve = Curve("accuracy", (series,), x_label="layer", y_label="accuracy")
        >>> draw_curve(curve).shape
        torch.Size([3, 462, 704])
    """
    with _figure(curve) as figure:
        return figure_pixels(figure)


def curve_svg(curve: Curve) -> str:
    """Draw a curve as an `<svg>` element that can stand in an HTML page as it is; text in it stays text.

    Example:
        >>> series = Series("SVM", x=(1, 2, 3), y=(0.45, 0.66, 0.72))
        >>> curve = Curve("accuracy", (series,), x_label="layer", y_label="accuracy")
        >>> curve_svg(curve)[:43]
        '<svg role="img" aria-label="accuracy" strok'
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    with _figure(curve) as figure:
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # matplotlib's style sheet would apply to the whole page: give the element what it says as attributes.
    text = re.sub(r"<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    label = escape(": ".join(part for part in (curve.name, curve.caption) if part))
    attributes = f'role="img" aria-label="{label}" stroke-linejoin="round" stroke-linecap="butt"'
    return f"<svg {attributes} {text.partition('<svg ')[2]}"


def curve_figure(curve: Curve, *, width: float, notes: Sequence[str] = ()) -> Figure:
    """Draw a curve as a figure of matplotlib, `width` inches wide, its legend beside or below it, notes at its foot."""
    with _figure(curve, width) as figure:
        lines = [line for note in notes for line in textwrap.wrap(one_line(note), round(_NOTE_LENGTH * width / _WIDTH))]
        if lines:
            figure.set_figheight(figure.get_figheight() + 0.13 * len(lines))
            figure.supxlabel("\n".join(lines), x=0.01, horizontalalignment="left", fontsize=6, color=PENCIL)
        return figure


@contextmanager
def _figure(curve: Curve, width: float | None = None) -> Iterator[Figure]:
    """Open a figure with the chart in it, as wide as it is told, else as it likes."""
    legend_columns = math.ceil(len(curve.series) / _LEGEND_ROWS) if len(curve.series) > 1 else 0
    if width is None:
        named = _AROUND_NAMES + _NAME_WIDTH * len(curve.x_names)
        width = max(_WIDTH, named) + _LEGEND_WIDTH * legend_columns
    axes_width = width - _LEGEND_WIDTH * legend_columns
    below = axes_width < _NARROWEST
    with new_figure(width, _HEIGHT * min(1, max(width, _NARROWEST) / _WIDTH)) as figure:
        axes = figure.add_subplot()
        own = width if below else axes_width
        room = int((own - _AROUND_NAMES) / _NAME_WIDTH + 1e-6)
        _draw_chart(axes, curve, round(_CAPTION_LENGTH * own / _WIDTH), room)
        if legend_columns:
            columns = max(1, int(width / _LEGEND_WIDTH)) if below else legend_columns
            _draw_legend(axes, curve, columns, below)
            figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(curve.series) / columns) * below)
        yield figure


def _draw_chart(axes: Axes, curve: Curve, caption_length: int, room: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, series in enumerate(curve.series):
        _draw_series(axes, series, number)
    _begin_at_zero(axes, curve)
    axes.set_xlabel(shorten(curve.x_label, 80))
    axes.set_ylabel(shorten(curve.y_label, 48))
    if curve.x_log:
        _log_axis(axes, curve)
    elif curve.x_names:
        _name_axis(axes, curve.x_names, room)
    elif all(value.is_integer() for series in curve.series for value in map(float, series.x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not any(math.isfinite(value) for series in curve.series for value in series.y):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=PENCIL)
    _draw_title(axes, curve, caption_length)


def _name_axis(axes: Axes, names: Sequence[str], room: int) -> None:
    """Put names at 1, 2, 3, ...; of more than there is room for, some, evenly."""
    level = len(names) * min(max(map(len, names)), _NAME_LENGTH) <= _LEVEL
    places = range(0, len(names), 1 if level else math.ceil(len(names) / max(room, 1)))
    shown = [shorten(names[place], _NAME_LENGTH) for place in places]
    slant: dict[str, Any] = {} if level else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks([place + 1 for place in places], shown, fontsize=8, **slant)


def _begin_at_zero(axes: Axes, curve: Curve) -> None:
    """A scale that began at the least of what is above zero would make little look like much."""
    measured = [value for series in curve.series for value in (*series.y, *(series.low or ())) if math.isfinite(value)]
    if measured and 0 < min(measured) < max(measured):
        axes.set_ylim(bottom=0)


def _log_axis(axes: Axes, curve: Curve) -> None:
    """Ticks where something was measured."""
    places = sorted({float(value) for series in curve.series for value in series.x})
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(places, [f"{place:g}" for place in places])


def _draw_series(axes: Axes, series: Series, number: int) -> None:
    style = line_style(number)
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    if series.reference:
        axes.plot(x, y, color=PENCIL, linestyle=(0, (2, 2)), linewidth=1.2)
        return
    (line,) = axes.plot(x, y, **style, linewidth=1.8, markersize=4.5)
    there = np.pad(np.isfinite(y), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]  # between two gaps no line is drawn: only a marker shows the point
    if len(x) <= _DENSE or alone.any():
        line.set_marker(_MARKERS[number % len(_MARKERS)])
        line.set_markevery(np.ones_like(alone) if len(x) <= _DENSE else alone)
    if series.low is not None and series.high is not None:
        low, high = np.asarray(series.low, dtype=float), np.asarray(series.high, dtype=float)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _draw_title(axes: Axes, curve: Curve, caption_length: int) -> None:
    caption = textwrap.wrap(one_line(curve.caption), caption_length, max_lines=3, placeholder=" …")
    axes.set_title(shorten(curve.name, 60), loc="left", fontsize=12, fontweight="bold", pad=8 + 13.5 * len(caption))
    if caption:
        above: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points"}
        axes.annotate("\n".join(caption), (0, 1), va="bottom", fontsize=9, color=PENCIL, linespacing=1.3, **above)


def _draw_legend(axes: Axes, curve: Curve, columns: int, below: bool) -> None:
    # Named afterwards: some versions of matplotlib leave out a label that begins with an underscore.
    blanks = [" "] * len(axes.lines)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    if below:
        figure: Any = axes.figure
        legend = figure.legend(axes.lines, blanks, loc="outside lower left", ncols=columns, frameon=False)
    else:
        legend = axes.legend(axes.lines, blanks, **place, ncols=columns, frameon=False)
    for text, series in zip(legend.get_texts(), curve.series, strict=True):
        text.set_text(shorten(series.name, 30))
