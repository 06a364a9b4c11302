"""A table on paper: every row and every word of it, broken into lines where the width asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lightning_cnnviz.render._text import length
from lightning_cnnviz.render.image import from_image, to_image
from lightning_cnnviz.render.paper.leaf import CAPTION, Leaf, broken, widest_part
from lightning_cnnviz.render.tables import Side, column_sides, written
from lightning_cnnviz.report import Number, Table, Tile

__all__ = ["table_leaves"]

_SMALLEST = 5.0  # points
_COLUMN_GAP, _ROW_GAP = 5.0, 2.5  # points
_TILE = 0.4  # inches


def table_leaves(table: Table, leaf: Leaf, *, title: str, most_height: int | None = None) -> list[Leaf]:
    """Lay out a table; see `sheet_leaves`."""
    leaf.head(title, table.caption if table.rows else f"Nothing to show. {table.caption}")
    leaves = [leaf]
    plan = _plan(table, leaf)
    _draw_line(leaf, plan, table.columns, bold=True)
    for number, row in enumerate(table.rows):
        if most_height is not None and number and leaf.top + _height(leaf, plan, row) > most_height:
            leaf = Leaf(leaf.width, leaf.dpi)
            leaf.head(f"{title} (continued)", "")
            _draw_line(leaf, plan, table.columns, bold=True)
            leaves.append(leaf)
        _draw_line(leaf, plan, row)
    return leaves


@dataclass(frozen=True)
class _Plan:
    """The size of the text in points, and of each column its width in dots and the side at which its cells stand."""

    points: float
    widths: tuple[int, ...]
    sides: tuple[Side, ...]


def _plan(table: Table, leaf: Leaf) -> _Plan:
    """Choose the largest text with which no cell has to be broken, and where there is none, narrower columns."""
    cells = [[written(cell) for cell in row] for row in table.rows]
    sides = tuple(column_sides(table.columns, cells))
    room = leaf.width - leaf.dots(_COLUMN_GAP) * (len(table.columns) - 1)
    points = CAPTION
    while True:
        size = leaf.dots(points)
        heads = [widest_part(name, size, bold=True) for name in table.columns]
        widths = [
            max([head, *(_width(row[place], leaf, points) for row in table.rows)]) for place, head in enumerate(heads)
        ]
        if sum(widths) <= room or points <= _SMALLEST:
            break
        points -= 0.5
    least = [
        max([head, *(_least_width(row[place], leaf, points) for row in table.rows)]) for place, head in enumerate(heads)
    ]
    return _Plan(points, tuple(_narrowed(widths, least, room)), sides)


def _narrowed(widths: list[int], least: list[int], room: int) -> list[int]:
    """Take from the widest columns until all fit, but none of its least width if that can be."""
    least = least if sum(least) <= room else [1] * len(least)
    low, high = 1, max(widths, default=1)

    def at(level: int) -> list[int]:
        return [min(width, max(level, floor)) for width, floor in zip(widths, least, strict=True)]

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(at(middle)) <= room else (low, middle - 1)
    return at(low)


def _least_width(cell: Number | Tile | None, leaf: Leaf, points: float) -> int:
    return _tile_size(cell, leaf)[0] if isinstance(cell, Tile) else widest_part(written(cell), leaf.dots(points))


def _width(cell: Number | Tile | None, leaf: Leaf, points: float) -> int:
    return _tile_size(cell, leaf)[0] if isinstance(cell, Tile) else length(written(cell), leaf.dots(points))


def _tile_size(tile: Tile, leaf: Leaf) -> tuple[int, int]:
    height, width = tile.size
    scale = _TILE * leaf.dpi / max(width, height, 1)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _lines(cell: Number | Tile | None, width: int, leaf: Leaf, points: float, bold: bool) -> list[str]:
    return [] if isinstance(cell, Tile) else broken(written(cell), width, leaf.dots(points), bold=bold)


def _height(leaf: Leaf, plan: _Plan, row: Sequence[Number | Tile | None], *, bold: bool = False) -> int:
    heights = [
        _tile_size(cell, leaf)[1]
        if isinstance(cell, Tile)
        else leaf.line(plan.points) * len(_lines(cell, width, leaf, plan.points, bold))
        for cell, width in zip(row, plan.widths, strict=True)
    ]
    return max(heights, default=0) + leaf.dots(_ROW_GAP)


def _draw_line(leaf: Leaf, plan: _Plan, row: Sequence[Number | Tile | None], *, bold: bool = False) -> None:
    left = 0
    for cell, width, side in zip(row, plan.widths, plan.sides, strict=True):
        if isinstance(cell, Tile):
            tile, size = to_image(cell.pixels), _tile_size(cell, leaf)
            resampling = Image.Resampling.NEAREST if size[0] > tile.width else Image.Resampling.BICUBIC
            leaf.place(left, leaf.top, from_image(tile.resize(size, resampling)))
        for number, line in enumerate(_lines(cell, width, leaf, plan.points, bold)):
            x, top = left + width * (side == "right"), leaf.top + number * leaf.line(plan.points)
            leaf.write(x, top, line, plan.points, bold=bold, side=side)
        left += width + leaf.dots(_COLUMN_GAP)
    leaf.top += _height(leaf, plan, row, bold=bold)
