"""Figures of several panels as SVG, in the colors of the theme in which they are read."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from lightning_cnnviz.render.figures import GRID, INK, PENCIL, house_style
from lightning_cnnviz.render.image import encode_tile, from_image

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["figure_svg", "late_svg"]

# What is drawn in the house's colors, by theme; all else, as what lies over an image, has its own in both.
_PAPER = "#fefefe"  # in place of white, while a figure is written
_DRAWN = {"ink": INK, "pencil": PENCIL, "paper": _PAPER, "grid": GRID}
_LIGHT = {**_DRAWN, "paper": "#ffffff"}
_DARK = {"ink": "#ecedf0", "pencil": "#a7adb8", "paper": "#1c1e22", "grid": "#33363d"}


def figure_svg(figure: Figure) -> str:
    """Return a figure that was drawn as SVG: in light colors, or in dark ones where the reader's theme is dark.

    Letters are outlines, so that they look as they were laid out; images in it are as small as they are on a page.

    Example:
        >>> from lightning_cnnviz.render.figures import figure_pixels, new_figure
        >>> with new_figure(2, 1) as figure:
        ...     pixels, svg = figure_pixels(figure), figure_svg(figure)
        >>> "prefers-color-scheme: dark" in svg
        True
    """
    from matplotlib import rc_context

    file = io.BytesIO()
    with house_style(), rc_context({"svg.fonttype": "path"}), _paper_by_theme(figure):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    for name, color in _DRAWN.items():
        text = text.replace(color, f"var(--{name})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"data:image/png;base64,([\w+/=\s]+)", lambda found: _small_uri(found[1]), text)
    style = f"<style>:root{{fill:var(--ink);{_variables(_LIGHT)}}}"
    style += f"@media (prefers-color-scheme: dark){{:root{{{_variables(_DARK)}}}}}</style>"
    end = text.index(">") + 1
    return f"{text[:end]}{style}{text[end:]}"


def late_svg(figure: Figure) -> Any:
    """Return what draws a figure as SVG when it is asked for, as `Picture` takes it in place of the text."""
    return partial(figure_svg, figure)


@contextmanager
def _paper_by_theme(figure: Figure) -> Iterator[None]:
    """Tell the white of paper apart from that of lines over images."""
    from matplotlib.colors import to_rgba

    found: list[Any] = figure.findobj(include_self=True)
    papers = [part.get_frame() if hasattr(part, "get_frame") else part.patch for part in found if _has_paper(part)]
    before = [paper.get_facecolor() for paper in papers]
    for paper, color in zip(papers, before, strict=True):
        paper.set_facecolor(to_rgba(_PAPER, color[3]) if color[:3] == (1, 1, 1) else color)
    try:
        yield
    finally:
        for paper, color in zip(papers, before, strict=True):
            paper.set_facecolor(color)


def _has_paper(part: Artist) -> bool:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.legend import Legend

    return isinstance(part, Axes | FigureBase | Legend)


def _variables(colors: dict[str, str]) -> str:
    return ";".join(f"--{name}:{color}" for name, color in colors.items())


def _small_uri(encoded: str) -> str:
    """An image that is opaque as the page would keep it, if that is smaller."""
    content = base64.b64decode(encoded)
    media = "image/png"
    with Image.open(io.BytesIO(content)) as image:
        opaque = image.mode == "RGB" or (image.mode == "RGBA" and image.getextrema()[3] == (255, 255))
        if opaque:
            other = encode_tile(from_image(image.convert("RGB")))
            media, content = min((media, content), other, key=lambda each: len(each[1]))
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
