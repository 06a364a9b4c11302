"""Galleries as a dashboard shows them: in a panel of 400 pixels, where every word must still be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from lightning_cnnviz.render._text import INK, PAPER, PENCIL, fit, fit_numbers, line_height, wrap, write
from lightning_cnnviz.render.image import draw_color_bar, from_image, to_image
from lightning_cnnviz.report import ColorScale, Gallery, Number, Row, Tile

__all__ = ["draw_panel", "overview", "places_evenly"]

_WIDTH, _MOST_HEIGHT = 800, 1000
_EDGE, _GAP, _TILE_GAP = 14, 16, 2
# Font sizes in pixels: a panel shows them at half their size, and 8 is the least that can be read.
_TITLE, _CAPTION, _LABEL, _FIGURES = 24, 17, 18, 16
_MOST_ROWS = 16
_MOST_TILES = 9  # of a layer in an overview
_SIDE = 96


@dataclass(frozen=True)
class _Plan:
    """Where everything lies: blocks side by side, tiles side by side in a block, and the size of a tile."""

    across: int
    columns: int
    tile: tuple[int, int]
    block: tuple[int, int]
    label: int
    shown: int

    @property
    def height(self) -> int:
        return math.ceil(self.shown / self.across) * (self.block[1] + _GAP)


def draw_panel(gallery: Gallery, *, title: str) -> Tensor:
    """Draw a gallery 800 pixels wide, with its labels on it in letters that can still be read at half the size.

    Args:
        gallery: What to draw; of many rows the first ones, up to 16.
        title: What stands above it.

    Returns:
        `(3, H, 800)` uint8.

    Example:
        >>> import torch
        >>> tile = Tile(torch.zeros(3, 11, 11, dtype=torch.uint8))
        >>> draw_panel(Gallery("conv1", (Row("channel 0", (tile,) * 9),)), title="Strongest patches").shape[2]
        800
    """
    plan = _planned(gallery)
    caption = gallery.caption
    if not any(row.tiles for row in gallery.rows):
        caption = f"Nothing to show. {caption}"
    elif plan.shown < len(gallery.rows):
        caption = f"First {plan.shown} of {len(gallery.rows)}. {caption}"
    room = _WIDTH - 2 * _EDGE
    lines = [line for line in wrap(caption, room, _CAPTION)[:2] if line]
    bar_at = _EDGE + line_height(_TITLE) + len(lines) * line_height(_CAPTION) + _GAP // 4
    header = bar_at + _GAP // 4 + (0 if gallery.scale is None else line_height(_FIGURES) + _GAP // 2)
    sheet = Image.new("RGB", (_WIDTH, header + plan.height + _EDGE), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (_EDGE, _EDGE - 4), fit(title, room, _TITLE, bold=True), _TITLE, INK, bold=True)
    for number, line in enumerate(lines):
        write(draw, (_EDGE, _EDGE + line_height(_TITLE) + number * line_height(_CAPTION)), line, _CAPTION, PENCIL)
    if gallery.scale is not None:
        draw_color_bar(sheet, gallery.scale, (_EDGE, bar_at), size=_FIGURES)
    for number, row in enumerate(gallery.rows[: plan.shown]):
        down, across = divmod(number, plan.across)
        corner = _EDGE + across * (plan.block[0] + _GAP), header + down * (plan.block[1] + _GAP)
        _draw_block(sheet, draw, row, plan, corner, hard_edges=gallery.enlarge)
    return from_image(sheet)


def overview(galleries: Sequence[Gallery], *, name: str, caption: str = "", strips: bool = False) -> Gallery:
    """Return one gallery of several layers: a row a layer, with up to nine of its pictures, all brought to one size.

    Args:
        galleries: Of each layer.
        name: The new one's name.
        caption: One line that says what is to be seen.
        strips: Whether of each layer its first row is shown as it is, from end to end, instead of the first picture of
            each of its rows. Rows that are about no channel are always shown so.
    """
    chosen = [_chosen(gallery, strips) for gallery in galleries]
    side = 2 * _SIDE if max(map(len, chosen), default=0) == 1 else _SIDE
    scale, of_layers = _common_scale([gallery.scale for gallery in galleries])
    rows = tuple(
        Row(
            gallery.layer or gallery.name,
            tuple(Tile(_fitted(tile.pixels, side, gallery.enlarge)) for tile in tiles),
            {**_said(gallery, tiles), **({} if of_layer is None else {"scale": of_layer})},
        )
        for gallery, tiles, of_layer in zip(galleries, chosen, of_layers, strict=True)
    )
    return Gallery(name, rows, caption=caption, enlarge=False, scale=scale)


def _said(gallery: Gallery, tiles: Sequence[Tile]) -> Mapping[str, Number]:
    """What is said of the one row that stands for a layer: of an image, its label and its scale."""
    row = next((row for row in gallery.rows if row.tiles), None)
    return row.numbers if row is not None and row.channel is None and tiles[0] is row.tiles[0] else {}


def _common_scale(scales: Sequence[ColorScale | None]) -> tuple[ColorScale | None, list[str | None]]:
    """Return what the colors of all layers stand for, and of each what only its own do."""
    known = [scale for scale in scales if scale is not None]
    if not known or len(known) < len(scales) or len({scale.colors for scale in known}) > 1:
        return None, [None if scale is None else f"{scale.low} to {scale.high}" for scale in scales]
    if len(set(known)) == 1:
        return known[0], [None] * len(scales)
    middle = known[0].middle if len({scale.middle for scale in known}) == 1 else ""
    common = ColorScale(known[0].colors, "least", "most, layer by layer", middle)
    return common, [f"{scale.low} to {scale.high}" for scale in known]


def _chosen(gallery: Gallery, strips: bool) -> list[Tile]:
    rows = [row for row in gallery.rows if row.tiles]
    if rows and (strips or rows[0].channel is None):
        tiles = rows[0].tiles
        return [tiles[place] for place in places_evenly(len(tiles), _MOST_TILES)]
    return [row.tiles[0] for row in rows[:_MOST_TILES]]


def places_evenly(count: int, most: int) -> list[int]:
    """Return which of `count` things stand for all: the first, the last and evenly between.

    Example:
        >>> places_evenly(53, 8), places_evenly(3, 8)
        ([0, 7, 15, 22, 30, 37, 45, 52], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)] if most > 1 else [0]


def _fitted(pixels: Tensor, side: int, hard_edges: bool) -> Tensor:
    """A picture in the middle of a square."""
    image = to_image(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(_resized(image, size, hard_edges), ((side - size[0]) // 2, (side - size[1]) // 2))
    return from_image(square)


def _resized(image: Image.Image, size: tuple[int, int], hard_edges: bool) -> Image.Image:
    copying = hard_edges and size[0] >= 2 * image.width
    return image.resize(size, Image.Resampling.NEAREST if copying else Image.Resampling.BICUBIC)


def _planned(gallery: Gallery) -> _Plan:
    """Choose how many blocks stand side by side: those with which the tiles are largest and all is seen."""
    tiles = max((len(row.tiles) for row in gallery.rows), default=1) or 1
    columns = min(gallery.columns or math.ceil(math.sqrt(tiles)), tiles)
    rows = min(len(gallery.rows), _MOST_ROWS)
    plans = [_plan(gallery, tiles, columns, rows, across) for across in range(1, 6) if across <= max(rows, 1)]
    fitting = [plan for plan in plans if plan.height <= _MOST_HEIGHT]
    if fitting:
        return max(fitting, key=lambda plan: plan.tile[0])
    last = plans[-1]
    lines = max(1, _MOST_HEIGHT // (last.block[1] + _GAP))
    return _Plan(last.across, last.columns, last.tile, last.block, last.label, min(rows, lines * last.across))


def _plan(gallery: Gallery, tiles: int, columns: int, rows: int, across: int) -> _Plan:
    sizes = [tile.size for row in gallery.rows for tile in row.tiles[:1]]
    height, width = sizes[0] if sizes else (1, 1)
    block = (_WIDTH - 2 * _EDGE - (across - 1) * _GAP) // across
    side = max(1, (block - (columns - 1) * _TILE_GAP) // columns)
    side = min(side, 4 * _SIDE)
    tile = (side, max(1, round(side * height / max(width, 1))))
    label = (line_height(_LABEL) if any(row.caption for row in gallery.rows) else 0) + (
        line_height(_FIGURES) if any(row.numbers for row in gallery.rows) else 0
    )
    lines = math.ceil(tiles / columns)
    return _Plan(across, columns, tile, (block, label + lines * (tile[1] + _TILE_GAP)), label, rows)


def _draw_block(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, plan: _Plan, corner: tuple[int, int], *, hard_edges: bool
) -> None:
    left, top = corner
    write(draw, (left, top), fit(row.caption, plan.block[0], _LABEL, bold=True), _LABEL, INK, bold=True)
    if row.numbers:
        figures = fit_numbers(row.numbers, plan.block[0], _FIGURES)
        write(draw, (left, top + line_height(_LABEL)), figures, _FIGURES, PENCIL)
    for number, tile in enumerate(row.tiles):
        down, across = divmod(number, plan.columns)
        place = left + across * (plan.tile[0] + _TILE_GAP), top + plan.label + down * (plan.tile[1] + _TILE_GAP)
        sheet.paste(_resized(to_image(tile.pixels), plan.tile, hard_edges), place)
