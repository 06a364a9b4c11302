"""Figures as files: pages of a PDF, or one above the other in an SVG or a PNG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lightning_cnnviz.render.figures import figure_pixels, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pdf_file", "png_file", "svg_file"]

_NO_DATE = dict.fromkeys(("CreationDate", "ModDate"))  # the same figures give the same bytes
_GAP = 12.0  # points, between figures that stand one above the other


def pdf_file(figures: Sequence[Figure], *, dpi: int) -> bytes:
    """Write each figure as a page of its own size, its text as text in an embedded TrueType font."""
    from matplotlib.backends.backend_pdf import PdfPages

    file = io.BytesIO()
    with house_style(), PdfPages(file, metadata=_NO_DATE) as pages:
        for figure in figures:
            pages.savefig(figure, dpi=dpi)
    return file.getvalue()


def png_file(figures: Sequence[Figure], *, width: float, dpi: int) -> bytes:
    """Draw figures one above the other, `width` inches wide; a wider one is drawn smaller."""
    drawn = []
    with house_style():
        for figure in figures:
            figure.set_dpi(dpi * min(1, width / figure.get_figwidth()))
            drawn.append(figure_pixels(figure).permute(1, 2, 0).numpy())
    gap = round(_GAP * dpi / 72)
    across = max(pixels.shape[1] for pixels in drawn)
    height = sum(pixels.shape[0] for pixels in drawn) + gap * (len(drawn) - 1)
    sheet, top = np.full((height, across, 3), 255, np.uint8), 0
    for pixels in drawn:
        sheet[top : top + pixels.shape[0], : pixels.shape[1]] = pixels
        top += pixels.shape[0] + gap
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG", dpi=(dpi, dpi))
    return file.getvalue()


def svg_file(figures: Sequence[Figure], *, width: float, dpi: int) -> bytes:
    """Write figures one above the other, `width` inches wide; a wider one becomes smaller.

    Text is text; the letters that occur come along as a font.
    """
    parts, top, widest = [], 0.0, 0.0
    for number, figure in enumerate(figures):
        scale = 72 * min(1, width / figure.get_figwidth())
        across, down = (scale * side for side in figure.get_size_inches())
        body = _svg_body(figure, dpi)
        # An id is unique in a file; matplotlib counts its groups anew in each figure.
        body = re.sub(r' id="([\w.]+_\d+)"', rf' id="\1-{number}"', body)
        parts.append(f'<svg y="{top:.2f}" width="{across:.2f}" height="{down:.2f}" {body}')
        widest, top = max(widest, across), top + down + _GAP
    height = max(top - _GAP, 1)
    style = f"<style>*{{stroke-linejoin: round; stroke-linecap: butt}}{_font_faces(parts)}</style>"
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1" width="{widest:.2f}pt" height="{height:.2f}pt" '
        f'viewBox="0 0 {widest:.2f} {height:.2f}">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
    )
    return (head + style + "\n".join(parts) + "</svg>\n").encode("utf-8", errors="replace")


def _svg_body(figure: Figure, dpi: int) -> str:
    """Write a figure as SVG, and return it from its `viewBox` on, with its end."""
    file = io.BytesIO()
    with house_style():
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=dpi, metadata=metadata)
    text = file.getvalue().decode()
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("viewBox=") :]


def _font_faces(parts: Sequence[str]) -> str:
    """Embed the letters that occur: a reader without DejaVu Sans sees what was laid out."""
    said = {True: set[str](), False: set[str]()}
    for part in parts:
        for style, text in re.findall(r"<text([^>]*)>(.*?)</text>", part, flags=re.DOTALL):
            said[bool(re.search("font(-weight)?: (bold|700)", style))] |= set(unescape(re.sub(r"<[^>]*>", "", text)))
    faces = (
        f"@font-face{{font-family: 'DejaVu Sans'; font-weight: {700 if bold else 400}; src: "
        f"url(data:font/woff;base64,{_font_subset(''.join(sorted(letters)), bold)}) format('woff')}}"
        for bold, letters in said.items()
        if letters
    )
    return "".join(faces)


@cache
def _font_subset(letters: str, bold: bool) -> str:
    import matplotlib
    from fontTools import subset

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    options = subset.Options(flavor="woff", notdef_outline=True, recalc_timestamp=False)
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB"]  # no ligatures: the layout knows of none
    font = subset.load_font(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, options)
    cutter = subset.Subsetter(options)
    cutter.populate(text=letters)
    cutter.subset(font)
    file = io.BytesIO()
    subset.save_font(font, file, options)
    font.close()
    return base64.b64encode(file.getvalue()).decode()
