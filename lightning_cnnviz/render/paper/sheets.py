"""A gallery on paper: blocks of tiles under their captions, as large as the width allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from lightning_cnnviz.render._text import PENCIL, fit, fit_numbers, length
from lightning_cnnviz.render.image import from_image, to_image
from lightning_cnnviz.render.paper.leaf import FIGURES, LABEL, Leaf
from lightning_cnnviz.report import Gallery, Row, Tile

__all__ = ["sheet_leaves"]

_PAGE = 9.0  # inches: a sheet is planned to fit on a page of a journal
_LARGEST, _SMALLEST = 1.0, 0.25  # sides of a tile, in inches
_WIDEST_LABEL = 0.8  # inches: so much of a caption is worth room beyond the tiles
_ASPECT = 1.3
_COUNTED = 3  # pixels of fewer dots are no squares to the eye
_TILE_GAP, _BLOCK_GAP = 0.7, 9.0  # points
_FRAME = 226  # light gray between and around tiles: a white one would be lost on white paper


def sheet_leaves(gallery: Gallery, leaf: Leaf, *, title: str, most_height: int | None = None) -> list[Leaf]:
    """Lay out a gallery, every row of it.

    Args:
        gallery: What to lay out; may have no rows.
        leaf: The empty leaf to begin with.
        title: What stands above it.
        most_height: In dots; a longer sheet goes on on another leaf. By default there is one leaf, as long as it takes.
    """
    leaf.head(title, gallery.caption if gallery.rows else f"Nothing to show. {gallery.caption}", gallery.numbers)
    leaves = [leaf]
    plan = _plan(gallery, leaf)
    for start in range(0, len(gallery.rows), plan.across):
        if most_height is not None and leaf.top + plan.height > most_height and leaf.holds_pictures:
            leaf = Leaf(leaf.width, leaf.dpi)
            leaf.head(f"{title} (continued)", "")
            leaves.append(leaf)
        for place, row in enumerate(gallery.rows[start : start + plan.across]):
            _draw_block(leaf, plan, row, place * (plan.width + leaf.dots(_BLOCK_GAP)), hard_edges=gallery.enlarge)
        leaf.top += plan.height + leaf.dots(_BLOCK_GAP)
    return leaves


@dataclass(frozen=True)
class _Plan:
    """How blocks are arranged, in dots: `across` side by side, each with tiles of `tile` (width, height)."""

    across: int
    columns: int
    tile: tuple[int, int]
    label: int
    tile_label: int
    gap: int
    lines: int
    label_width: int

    @property
    def width(self) -> int:
        return max(self.columns * (self.tile[0] + self.gap) + self.gap, self.label_width)

    @property
    def height(self) -> int:
        return self.label + self.lines * (self.tile[1] + self.tile_label + self.gap) + self.gap


def _plan(gallery: Gallery, leaf: Leaf) -> _Plan:
    """Choose the arrangement that fits on a page and is a little wider than high; else the one of smallest tiles."""
    plans = [_arranged(gallery, leaf, across) for across in range(1, max(1, len(gallery.rows)) + 1)]
    # With fewer blocks side by side, there is more room for tiles and captions.
    widest_label = plans[0].label_width
    legible = [p for p in plans if max(p.tile) >= _SMALLEST * leaf.dpi and p.label_width == widest_label] or plans[:1]

    def height(plan: _Plan) -> int:
        return math.ceil(len(gallery.rows) / plan.across) * (plan.height + leaf.dots(_BLOCK_GAP))

    def ugliness(plan: _Plan) -> float:
        empty = -len(gallery.rows) % plan.across
        width = plan.across * (plan.width + leaf.dots(_BLOCK_GAP))
        return abs(math.log(max(1, width) / max(1, height(plan)) / _ASPECT)) + 0.1 * empty

    fitting = [plan for plan in legible if leaf.top + height(plan) <= _PAGE * leaf.dpi]
    return min(fitting, key=ugliness) if fitting else legible[-1]


def _arranged(gallery: Gallery, leaf: Leaf, across: int) -> _Plan:
    tiles = [tile for row in gallery.rows for tile in row.tiles]
    longest = max((len(row.tiles) for row in gallery.rows), default=0)
    columns = gallery.columns or max(1, math.ceil(math.sqrt(longest)))
    gap = leaf.dots(_TILE_GAP)
    room = (leaf.width - (across - 1) * leaf.dots(_BLOCK_GAP)) // across
    size = _tile_size(tiles, (room - gap) // columns - gap, leaf.dpi, hard_edges=gallery.enlarge)
    label = leaf.line(LABEL) * any(row.caption for row in gallery.rows)
    label += leaf.line(FIGURES) * any(row.numbers for row in gallery.rows)
    caption = max((length(tile.caption, leaf.dots(FIGURES)) for tile in tiles), default=0)
    tile_label = leaf.line(FIGURES) + gap if 0 < caption <= size[0] else 0
    captions = [length(row.caption, leaf.dots(LABEL), bold=True) for row in gallery.rows]
    label_width = min(max(captions, default=0), round(_WIDEST_LABEL * leaf.dpi), room)
    return _Plan(across, columns, size, label, tile_label, gap, math.ceil(longest / columns), label_width)


def _tile_size(tiles: list[Tile], room: int, dpi: int, *, hard_edges: bool) -> tuple[int, int]:
    """Width and height of a tile in dots; where pixels keep their edges, each takes the same number of dots."""
    height, width = tiles[0].size if tiles else (1, 1)
    width, height = max(width, 1), max(height, 1)
    scale = min(room / width, _LARGEST * dpi / max(width, height))
    scale = float(int(scale)) if hard_edges and scale >= _COUNTED else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_block(leaf: Leaf, plan: _Plan, row: Row, left: int, *, hard_edges: bool) -> None:
    top = leaf.top
    if row.caption:
        leaf.write(left, top, fit(row.caption, plan.width, leaf.dots(LABEL), bold=True), LABEL, bold=True)
    if row.numbers:
        figures = fit_numbers(row.numbers, plan.width, leaf.dots(FIGURES))
        leaf.write(left, top + plan.label - leaf.line(FIGURES), figures, FIGURES, PENCIL)
    top += plan.label
    for start in range(0, len(row.tiles), plan.columns):
        line = row.tiles[start : start + plan.columns]
        leaf.place(left, top, _side_by_side(line, plan, hard_edges))
        top += plan.tile[1] + plan.gap
        for place, tile in enumerate(line if plan.tile_label else ()):
            leaf.write(left + place * (plan.tile[0] + plan.gap), top + plan.gap, tile.caption, FIGURES, PENCIL)
        top += plan.tile_label


def _side_by_side(tiles: tuple[Tile, ...], plan: _Plan, hard_edges: bool) -> Tensor:
    """Tiles of one line as one picture, framed."""
    (width, height), gap = plan.tile, plan.gap
    line = torch.full((3, height + 2 * gap, len(tiles) * (width + gap) + gap), _FRAME, dtype=torch.uint8)
    for place, tile in enumerate(tiles):
        left = gap + place * (width + gap)
        line[:, gap : gap + height, left : left + width] = _resized(tile.pixels, plan.tile, hard_edges)
    return line


def _resized(pixels: Tensor, size: tuple[int, int], hard_edges: bool) -> Tensor:
    image = to_image(pixels)
    if image.size == size:
        return pixels
    copying = hard_edges and size[0] >= _COUNTED * image.width
    return from_image(image.resize(size, Image.Resampling.NEAREST if copying else Image.Resampling.BICUBIC))
