"""One leaf of paper: lines of text and pictures at places that are counted in dots, from the top left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_cnnviz.render._text import INK, PENCIL, fit, fit_numbers, length, one_line
from lightning_cnnviz.render.figures import new_figure
from lightning_cnnviz.render.tables import Side
from lightning_cnnviz.report import Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CAPTION", "FIGURES", "LABEL", "NOTE", "TITLE", "Leaf", "broken", "widest_part"]

TITLE, LABEL, CAPTION, FIGURES, NOTE = 9.0, 7.0, 7.0, 5.5, 6.0
"""Sizes of text, in points."""

_LINE = 1.3
_ASCENT = 0.93  # of DejaVu Sans: so far below the top of its line a text stands


_PARTS = re.compile(r"[^ ./_·+=-]+[./_·+=-]*|[./_·+=-]+")  # a word's parts, each with the signs that end it


@dataclass
class Leaf:
    """What stands on one leaf; a figure is made of it when all is placed.

    Attributes:
        width: In dots.
        dpi: Dots an inch.
        top: Where what is placed next begins; the height of the leaf when it is full.
    """

    width: int
    dpi: int
    top: int = 0
    _texts: list[tuple[int, float, str, dict[str, Any]]] = field(default_factory=list)
    _pictures: list[tuple[int, int, Tensor]] = field(default_factory=list)

    def dots(self, points: float) -> int:
        """Return a length in dots."""
        return max(1, round(points * self.dpi / 72))

    def line(self, points: float) -> int:
        """Return the height of one line of text in dots."""
        return self.dots(points * _LINE)

    def write(
        self,
        x: int,
        top: int,
        text: str,
        points: float,
        color: tuple[int, int, int] = INK,
        *,
        bold: bool = False,
        side: Side = "left",
    ) -> None:
        """Put down one line of text; `x` is its end on that side, `top` the upper edge of its line."""
        style = {"fontsize": points, "color": [part / 255 for part in color], "horizontalalignment": side}
        baseline = top + _ASCENT * points * self.dpi / 72
        if text:
            self._texts.append((x, baseline, one_line(text), style | {"fontweight": "bold" if bold else "normal"}))

    @property
    def holds_pictures(self) -> bool:
        """Whether there is more on it than text."""
        return bool(self._pictures)

    def place(self, left: int, top: int, pixels: Tensor) -> None:
        """Put down a picture `(3, H, W)` uint8, a pixel a dot."""
        self._pictures.append((left, top, pixels))

    def head(self, title: str, caption: str, numbers: Mapping[str, Number] | None = None) -> None:
        """Write a title and below it a caption and figures, and go on under them; nothing is left out."""
        for text, points, bold in ((title, TITLE, True), (caption, CAPTION, False)):
            for line in broken(text, self.width, self.dots(points), bold=bold):
                self.write(0, self.top, line, points, INK if bold else PENCIL, bold=bold)
                self.top += self.line(points)
        figures = fit_numbers(numbers or {}, self.width, self.dots(CAPTION))
        if figures:
            self.write(0, self.top, figures, CAPTION, PENCIL)
            self.top += self.line(CAPTION)
        if title or caption or figures:
            self.top += self.dots(3)

    def foot(self, notes: Sequence[str]) -> None:
        """Write notes below what is there, each a paragraph."""
        self.top += self.dots(3) * bool(notes)
        for note in notes:
            for line in broken(note, self.width, self.dots(NOTE)):
                self.write(0, self.top, line, NOTE, PENCIL)
                self.top += self.line(NOTE)

    def figure(self) -> Figure:
        """Make the figure: text as text, each picture as it is."""
        height = max(self.top, 1)
        with new_figure(self.width / self.dpi, height / self.dpi) as figure:
            figure.set_layout_engine("none")
            figure.set_dpi(self.dpi)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set(xlim=(0, self.width), ylim=(height, 0), autoscale_on=False)
            for left, top, pixels in self._pictures:
                array = np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0))
                extent = (left, left + array.shape[1], top + array.shape[0], top)
                axes.imshow(array, extent=extent, interpolation="none", aspect="auto")
            for x, baseline, text, style in self._texts:
                axes.text(x, baseline, text, **style, verticalalignment="baseline")
            return figure


def broken(text: str, width: int, size: int, *, bold: bool = False) -> list[str]:
    """Break a text into as many lines as it needs: at blanks; in a word wider than a line after a dot or a sign."""
    lines = [""]
    for piece in _pieces(text, width, size, bold):
        longer = lines[-1] + piece
        if length(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(piece.lstrip())
    return [line.rstrip() for line in lines if line.strip()]


def _pieces(text: str, width: int, size: int, bold: bool) -> Iterator[str]:
    """Words, each with the blank before it; and parts of words that are too wide for a line of their own."""
    for number, word in enumerate(one_line(text).split(" ")):
        blank = " " if number else ""
        if length(word, size, bold) <= width:
            yield blank + word
            continue
        for part in _PARTS.findall(word):
            while length(part, size, bold) > width and len(part) > 1:
                kept = max(1, len(fit(part, width, size, bold)) - 1)
                yield blank + part[:kept]
                part, blank = part[kept:], ""
            yield blank + part
            blank = ""


def widest_part(text: str, size: int, *, bold: bool = False) -> int:
    """Return how wide a line must be for `broken` to break no part of a word."""
    return max((length(part, size, bold) for part in _PARTS.findall(one_line(text))), default=0)
