"""Text in pictures: how long it is, how it is cut and broken, and writing it."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_cnnviz.render.layout import EDGE
from lightning_cnnviz.report import Number

PAPER, INK, PENCIL = (244, 244, 242), (24, 24, 24), (96, 96, 96)  # not white: patches of white sky must show
_TITLE, _CAPTION = 22, 14  # font sizes in pixels
_MOST_LINES = 3
_FOLDER = re.compile(r"n\d{8}_(?=\D)")


def draw_header(title: str, caption: str, numbers: Mapping[str, Number], width: int) -> Image.Image:
    """Draw what stands above a sheet or a table: a title, and below it a caption and numbers."""
    room = width - 2 * EDGE
    lines = [line for line in (*wrap(caption, room, _CAPTION), fit_numbers(numbers, room, _CAPTION)) if line]
    height = EDGE + line_height(_TITLE) + 4 + len(lines) * line_height(_CAPTION) + 14
    header = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(header)
    write(draw, (EDGE, EDGE - 4), fit(title, room, _TITLE, bold=True), _TITLE, INK, bold=True)
    for number, line in enumerate(lines):
        write(draw, (EDGE, EDGE + line_height(_TITLE) + number * line_height(_CAPTION)), line, _CAPTION, PENCIL)
    return header


def fit_numbers(numbers: Mapping[str, Number], width: int, size: int) -> str:
    """Write as many figures as fit whole: a number cut short would be another number."""
    texts = [f"{name} {_figure(value)}" for name, value in numbers.items()]
    for count in range(len(texts), 0, -1):
        line = one_line(" · ".join(texts[:count]) + (" …" if count < len(texts) else ""))
        if length(line, size) <= width:
            return line
    return "…" if texts else ""


def _figure(value: Number) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def wrap(text: str, width: int, size: int) -> list[str]:
    """Break a text into at most three lines; what is left over ends in an ellipsis."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < _MOST_LINES - 1:
        count = max((n for n in range(1, len(words) + 1) if length(" ".join(words[:n]), size) <= width), default=1)
        lines.append(fit(" ".join(words[:count]), width, size))
        words = words[count:]
    return [*lines, fit(" ".join(words), width, size)]


def fit(text: str, width: int, size: int, bold: bool = False) -> str:
    """Shorten a text to one line of a width, with an ellipsis if anything had to go."""
    text = one_line(text)
    if length(text, size, bold) <= width:
        return text
    kept = bisect_right(range(len(text)), width, key=lambda n: length(text[:n].rstrip() + "…", size, bold))
    return text[: max(kept - 1, 0)].rstrip() + "…"


def one_line(text: str) -> str:
    """Write a text on one line, as people read it.

    What no font can show goes: control characters, and parts of characters. Classes that are called by folders of
    ImageNet (`n02106166_Border_collie`) are called by their names; files (`n02106166_3.JPEG`) are not.
    """
    whole = text.encode(errors="replace").decode()  # parts: as in names of damaged files
    words = "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in whole).split()
    return " ".join(word[10:].replace("_", " ") if _FOLDER.match(word) and "/" not in word else word for word in words)


def length(text: str, size: int, bold: bool = False) -> int:
    """Say how many pixels wide a text is."""
    return math.ceil(_font(size, bold).getlength(one_line(text)))


def line_height(size: int) -> int:
    """Say how many pixels one line takes."""
    return math.ceil(size * 1.35)


def write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int],
    bold: bool = False,
) -> None:
    """Write one line; `corner` is its left and top."""
    draw.text(corner, text, fill=color, font=_font(size, bold))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib  # for the one font that is surely there

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
