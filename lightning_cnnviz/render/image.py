"""Pixels: small pictures as files, and a gallery as one sheet with its labels on it."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from lightning_cnnviz.render._text import INK, PAPER, PENCIL, draw_header, fit, fit_numbers, length, line_height, write
from lightning_cnnviz.render.layout import EDGE, SheetPlan, SheetSizes, plan_sheet
from lightning_cnnviz.report import ColorScale, Gallery, Row

__all__ = ["LOSSLESS_SIDE", "decode_tile", "draw_color_bar", "draw_sheet", "encode_tile", "from_image", "to_image"]

LOSSLESS_SIDE = 32
"""Up to this many pixels a side a PNG is lossless *and* hardly larger than a JPEG with its 600 bytes of tables."""

_LABEL, _FIGURES = 13, 11  # font sizes in pixels
_WIDEST_LABEL = 120
_BAR = 140  # pixels
_MOST_PIXELS = 100_000_000


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


def decode_tile(content: bytes) -> Tensor:
    """Return the pixels `(3, H, W)` uint8 of what `encode_tile` has encoded.

    Raises:
        ValueError: It is no PNG or JPEG, is damaged, or has more than 100 million pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"a picture of {image.width} x {image.height} pixels")
            return from_image(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no picture: {error}") from error


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
    sheet = Image.new("RGB", (plan.size[0], header.height + plan.size[1]), PAPER)
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
                write(draw, (left, top + height + 1), fit(tile.caption, width, _FIGURES), _FIGURES, PENCIL)
    return from_image(sheet)


def draw_color_bar(sheet: Image.Image, scale: ColorScale, corner: tuple[int, int], *, size: int) -> None:
    """Draw on one line what the colors of tiles stand for: a bar between the words for its ends.

    Args:
        sheet: What is drawn on, as wide as the line may be with the same margin on both sides.
        scale: The colors.
        corner: Left and top of the line.
        size: Of the letters, in pixels.
    """
    (start, top), draw = corner, ImageDraw.Draw(sheet)
    room = sheet.width - 2 * start
    width = min(_BAR, room // 3)
    low = fit(scale.low, (room - width) // 2 - 8, size)
    left = start + (length(low, size) + 8 if low else 0)
    colors = [ImageColor.getrgb(color) for color in scale.colors]
    places = np.linspace(0, len(colors) - 1, width)
    levels = np.stack([np.interp(places, range(len(colors)), band) for band in zip(*colors, strict=True)], 1)
    bar = Image.fromarray(np.tile(levels.round().astype(np.uint8), (line_height(size) - 2, 1, 1)))
    sheet.paste(bar, (left, top + 1))
    draw.rectangle((left - 1, top, left + width, top + bar.height + 1), outline=PENCIL)
    write(draw, (start, top), low, size, PENCIL)
    middle = f", {scale.middle} in the middle" if scale.middle else ""
    right = left + width + 8
    write(draw, (right, top), fit(scale.high + middle, start + room - right, size), size, PENCIL)


def to_image(pixels: Tensor) -> Image.Image:
    """Make an image of PIL's from `(3, H, W)` uint8 pixels."""
    # NumPy reorders the axes: for so little data, torch's threads cost more than they gain.
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0)))


def from_image(image: Image.Image) -> Tensor:
    """Make `(3, H, W)` uint8 pixels from an RGB image of PIL's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _resize(image: Image.Image, plan: SheetPlan, hard_edges: bool) -> Image.Image:
    if image.size == plan.tile:
        return image
    # PIL widens the bicubic kernel while shrinking: no aliasing, at two thirds of Lanczos's time.
    copying = hard_edges and plan.scale > 1 and plan.scale == int(plan.scale)
    return image.resize(plan.tile, Image.Resampling.NEAREST if copying else Image.Resampling.BICUBIC)


def _measure(gallery: Gallery) -> SheetSizes:
    """Measure the tiles, and the room that text needs."""
    tiles = [tile for row in gallery.rows for tile in row.tiles]
    height, width = tiles[0].size if tiles else (1, 1)
    captions = [length(row.caption, _LABEL, bold=True) for row in gallery.rows]
    label_height = line_height(_LABEL) * any(captions)
    label_height += line_height(_FIGURES) * any(row.numbers for row in gallery.rows)
    return SheetSizes(
        rows=len(gallery.rows),
        tiles=max((len(row.tiles) for row in gallery.rows), default=0),
        tile_width=max(width, 1),
        tile_height=max(height, 1),
        label_width=min(max(captions, default=0), _WIDEST_LABEL),
        label_height=label_height + 2 if label_height else 0,
        tile_label_width=max((length(tile.caption, _FIGURES) for tile in tiles), default=0),
        tile_label_height=line_height(_FIGURES) + 2,
        columns=gallery.columns or 0,
        wanted_side=gallery.tile_side,
    )


def _draw_header(gallery: Gallery, title: str, plan: SheetPlan) -> Image.Image:
    """Draw title, caption and numbers of a gallery, as wide as the sheet."""
    caption = gallery.caption
    if plan.shown < len(gallery.rows):
        caption = f"First {plan.shown} of {len(gallery.rows)}. {caption}"
    elif not any(row.tiles for row in gallery.rows):
        caption = f"Nothing to show. {caption}"
    header = draw_header(title, caption, gallery.numbers, plan.size[0])
    return header if gallery.scale is None else _with_color_bar(header, gallery.scale)


def _with_color_bar(header: Image.Image, scale: ColorScale) -> Image.Image:
    """Add a line with what the colors of tiles stand for."""
    sheet = Image.new("RGB", (header.width, header.height + line_height(_FIGURES) + 8), PAPER)
    sheet.paste(header)
    draw_color_bar(sheet, scale, (EDGE, header.height - 10), size=_FIGURES)
    return sheet


def _draw_label(draw: ImageDraw.ImageDraw, row: Row, plan: SheetPlan, number: int, header_height: int) -> None:
    left, top = plan.block_corner(number)
    width, _ = plan.block
    bottom = header_height + top + plan.sizes.label_height - 2
    if row.numbers:
        bottom -= line_height(_FIGURES)
        write(draw, (left, bottom), fit_numbers(row.numbers, width, _FIGURES), _FIGURES, PENCIL)
    if row.caption:
        caption = fit(row.caption, width, _LABEL, bold=True)
        write(draw, (left, bottom - line_height(_LABEL)), caption, _LABEL, INK, bold=True)
