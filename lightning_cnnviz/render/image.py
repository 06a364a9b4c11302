"""Pixels: small pictures as files, and a gallery as one sheet with its labels on it."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_cnnviz.render.layout import EDGE, SheetPlan, SheetSizes, plan_sheet
from lightning_cnnviz.report import Gallery, Number, Row

__all__ = ["LOSSLESS_SIDE", "draw_sheet", "encode_tile", "to_image"]

LOSSLESS_SIDE = 32
"""Up to this many pixels a side a PNG is lossless *and* hardly larger than a JPEG with its 600 bytes of tables."""

_PAPER, _INK, _PENCIL = (244, 244, 242), (24, 24, 24), (96, 96, 96)  # not white: patches of white sky must show
_TITLE, _CAPTION, _LABEL, _FIGURES = 22, 14, 13, 11  # font sizes in pixels
_WIDEST_LABEL = 120
_HEADER_LINES = 3


def encode_tile(pixels: Tensor) -> tuple[str, bytes]:
    """Encode a small picture for a page: tiny ones without loss, others as JPEG with full color resolution.

    Args:
        pixels: `(3, H, W)` uint8.

    Returns:
        The media type, `"image/png"` or `"image/jpeg"`, and the file's bytes.
    """
    image = to_image(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        image.save(buffer, "PNG", optimize=True)
        return "image/png", buffer.getvalue()
    # 4:4:4: the usual halved color resolution smears exactly the fine color edges that first layers look for.
    image.save(buffer, "JPEG", quality=88, subsampling=0)
    return "image/jpeg", buffer.getvalue()


def draw_sheet(gallery: Gallery, *, title: str) -> Tensor:
    """Draw a gallery as one picture with its labels on it, as in Fig. 2 of Zeiler and Fergus (2013).

    Each row becomes a block of tiles under its caption and numbers. Small tiles are enlarged, pixel by pixel if the
    gallery asks for it; large ones are shrunk. A gallery too large for one sheet says "first n of m".

    Args:
        gallery: What to draw; may have no rows.
        title: What stands above it.

    Returns:
        `(3, H, W)` uint8.

    Example:
        >>> from lightning_cnnviz.report import Tile
        >>> tile = Tile(torch.zeros(3, 11, 11, dtype=torch.uint8))
        >>> draw_sheet(Gallery("conv1", (Row("channel 0", (tile,) * 9),)), title="Strongest patches").shape
        torch.Size([3, 318, 480])
    """
    plan = plan_sheet(_measure(gallery))
    header = _draw_header(gallery, title, plan)
    sheet = Image.new("RGB", (plan.size[0], header.height + plan.size[1]), _PAPER)
    sheet.paste(header)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(gallery.rows[: plan.shown]):
        _draw_label(draw, row, plan, number, header.height)
        for index, tile in enumerate(row.tiles):
            left, top = plan.tile_corner(number, index)
            top += header.height
            sheet.paste(_resize(to_image(tile.pixels), plan, gallery.enlarge), (left, top))
            if plan.tile_label_height:
                width, height = plan.tile
                _write(draw, (left, top + height + 1), _fit(tile.caption, width, _FIGURES), _FIGURES, _PENCIL)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """Hand `(3, H, W)` uint8 pixels over to PIL."""
    # numpy turns the axes: of so little data, torch's threads only get in each other's way.
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0)))


def _resize(image: Image.Image, plan: SheetPlan, hard_edges: bool) -> Image.Image:
    if image.size == plan.tile:
        return image
    # PIL widens the bicubic kernel while shrinking: no aliasing, at two thirds of Lanczos's time.
    copying = hard_edges and plan.scale > 1 and plan.scale == int(plan.scale)
    return image.resize(plan.tile, Image.Resampling.NEAREST if copying else Image.Resampling.BICUBIC)


def _measure(gallery: Gallery) -> SheetSizes:
    """Say how large tiles are and how much room text needs."""
    tiles = [tile for row in gallery.rows for tile in row.tiles]
    height, width = tiles[0].pixels.shape[1:] if tiles else (1, 1)
    captions = [_length(row.caption, _LABEL, bold=True) for row in gallery.rows]
    label_height = _line(_LABEL) * any(captions) + _line(_FIGURES) * any(row.numbers for row in gallery.rows)
    return SheetSizes(
        rows=len(gallery.rows),
        tiles=max((len(row.tiles) for row in gallery.rows), default=0),
        tile_width=max(width, 1),
        tile_height=max(height, 1),
        label_width=min(max(captions, default=0), _WIDEST_LABEL),
        label_height=label_height + 2 if label_height else 0,
        tile_label_width=max((_length(tile.caption, _FIGURES) for tile in tiles), default=0),
        tile_label_height=_line(_FIGURES) + 2,
        columns=gallery.columns or 0,
        wanted_side=gallery.tile_side,
    )


def _draw_header(gallery: Gallery, title: str, plan: SheetPlan) -> Image.Image:
    """Draw title, caption and numbers of a gallery, as wide as the sheet."""
    width = plan.size[0] - 2 * EDGE
    caption = gallery.caption
    if plan.shown < len(gallery.rows):
        caption = f"First {plan.shown} of {len(gallery.rows)}. {caption}"
    elif not any(row.tiles for row in gallery.rows):
        caption = f"Nothing to show. {caption}"
    lines = [*_wrap(caption, width, _CAPTION), _fit_figures(gallery.numbers, width, _CAPTION)]
    lines = [line for line in lines if line]
    height = EDGE + _line(_TITLE) + 4 + len(lines) * _line(_CAPTION) + 14
    header = Image.new("RGB", (plan.size[0], height), _PAPER)
    draw = ImageDraw.Draw(header)
    _write(draw, (EDGE, EDGE - 4), _fit(title, width, _TITLE, bold=True), _TITLE, _INK, bold=True)
    for number, line in enumerate(lines):
        _write(draw, (EDGE, EDGE + _line(_TITLE) + number * _line(_CAPTION)), line, _CAPTION, _PENCIL)
    return header


def _draw_label(draw: ImageDraw.ImageDraw, row: Row, plan: SheetPlan, number: int, header_height: int) -> None:
    left, top = plan.block_corner(number)
    width, _ = plan.block
    bottom = header_height + top + plan.sizes.label_height - 2
    if row.numbers:
        bottom -= _line(_FIGURES)
        _write(draw, (left, bottom), _fit_figures(row.numbers, width, _FIGURES), _FIGURES, _PENCIL)
    if row.caption:
        caption = _fit(row.caption, width, _LABEL, bold=True)
        _write(draw, (left, bottom - _line(_LABEL)), caption, _LABEL, _INK, bold=True)


def _fit_figures(numbers: Mapping[str, Number], width: int, size: int) -> str:
    """Write as many figures as fit whole: a number cut short would be another number."""
    texts = [f"{name} {_figure(value)}" for name, value in numbers.items()]
    for count in range(len(texts), 0, -1):
        line = " · ".join(texts[:count]) + (" …" if count < len(texts) else "")
        if _length(line, size) <= width:
            return line
    return "…" if texts else ""


def _figure(value: Number) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _wrap(text: str, width: int, size: int) -> list[str]:
    """Break a text into at most three lines; what is left over ends in an ellipsis."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < _HEADER_LINES - 1:
        count = max((n for n in range(1, len(words) + 1) if _length(" ".join(words[:n]), size) <= width), default=1)
        lines.append(_fit(" ".join(words[:count]), width, size))
        words = words[count:]
    return [*lines, _fit(" ".join(words), width, size)]


def _fit(text: str, width: int, size: int, bold: bool = False) -> str:
    """Shorten a text to one line of a width, with an ellipsis if anything had to go."""
    text = " ".join(text.split())
    if _length(text, size, bold) <= width:
        return text
    kept = bisect_right(range(len(text)), width, key=lambda n: _length(text[:n].rstrip() + "…", size, bold))
    return text[: max(kept - 1, 0)].rstrip() + "…"


def _length(text: str, size: int, bold: bool = False) -> int:
    return math.ceil(_font(size, bold).getlength(" ".join(text.split())))


def _line(size: int) -> int:
    return math.ceil(size * 1.35)


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int],
    bold: bool = False,
) -> None:
    draw.text(corner, text, fill=color, font=_font(size, bold))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib  # for the one font that is surely there

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
