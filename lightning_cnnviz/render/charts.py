"""Charts: a curve as pixels for sinks that take pictures, and as SVG for the page."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.report import Curve, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["COLORS", "DASHES", "curve_svg", "draw_curve", "house_style", "shorten"]

# Okabe and Ito's colors, told apart with any color vision, without their yellow, which vanishes on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_PENCIL = "#606060"
DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LEGEND_ROWS = 16
_DENSE = 30  # with more points than this, markers would hide the line

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _PENCIL,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",  # text stays text: small, and found by the page's search
    "svg.hashsalt": "lightning_cnnviz",  # the same curve gives the same bytes
    "text.parse_math": False,  # a `$` in a layer's or a class's name is a dollar
}


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with house_style():
        canvas: Any = FigureCanvasAgg(_figure(curve))
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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
    with house_style():
        canvas: Any = FigureCanvasSVG(_figure(curve))
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # What matplotlib writes as a style sheet of its own would hold for the whole page: say it on the element instead.
    text = re.sub(r"<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    label = escape(": ".join(part for part in (curve.name, curve.caption) if part))
    attributes = f'role="img" aria-label="{label}" stroke-linejoin="round" stroke-linecap="butt"'
    return f"<svg {attributes} {text.partition('<svg ')[2]}"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw the same whatever style the user has chosen for plots of their own."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def _figure(curve: Curve) -> Figure:
    """Lay out a chart, without pyplot: its list of open figures would be a trace, and a leak."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    legend_columns = math.ceil(len(curve.series) / _LEGEND_ROWS) if len(curve.series) > 1 else 0
    figure = Figure(figsize=(6.4 + 2.6 * legend_columns, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    lines = [_draw_series(axes, series, number) for number, series in enumerate(curve.series)]
    axes.set_xlabel(shorten(curve.x_label, 80))
    axes.set_ylabel(shorten(curve.y_label, 48))
    if all(value.is_integer() for series in curve.series for value in map(float, series.x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not any(math.isfinite(value) for series in curve.series for value in series.y):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=_PENCIL)
    _draw_title(axes, curve)
    if legend_columns:
        _draw_legend(axes, lines, curve, legend_columns)
    return figure


def _draw_series(axes: Axes, series: Series, number: int) -> Line2D:
    color = COLORS[number % len(COLORS)]
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    (line,) = axes.plot(x, y, color=color, linestyle=dash, linewidth=1.8, markersize=4.5)
    there = np.pad(np.isfinite(y), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]  # between two gaps no line is drawn: only a marker shows the point
    if len(x) <= _DENSE or alone.any():
        line.set_marker(_MARKERS[number % len(_MARKERS)])
        line.set_markevery(np.ones_like(alone) if len(x) <= _DENSE else alone)
    if series.low is not None and series.high is not None:
        low, high = np.asarray(series.low, dtype=float), np.asarray(series.high, dtype=float)
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return line


def _draw_title(axes: Axes, curve: Curve) -> None:
    caption = textwrap.wrap(curve.caption, 84, max_lines=3, placeholder=" …")
    axes.set_title(shorten(curve.name, 60), loc="left", fontsize=12, fontweight="bold", pad=8 + 13.5 * len(caption))
    if caption:
        above: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points"}
        axes.annotate("\n".join(caption), (0, 1), va="bottom", fontsize=9, color=_PENCIL, linespacing=1.3, **above)


def _draw_legend(axes: Axes, lines: list[Line2D], curve: Curve, columns: int) -> None:
    # Named afterwards: some versions of matplotlib leave out a label that begins with an underscore.
    blanks = [" "] * len(lines)
    legend = axes.legend(
        lines, blanks, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, ncols=columns, frameon=False
    )
    for text, series in zip(legend.get_texts(), curve.series, strict=True):
        text.set_text(shorten(series.name, 30))


def shorten(text: str, length: int) -> str:
    """Leave out the middle: the names of layers tell themselves apart at either end."""
    text = " ".join(text.split())
    tail = length // 2
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"
