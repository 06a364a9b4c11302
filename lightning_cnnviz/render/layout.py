"""The layout of a sheet: where everything lies on it, computed from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EDGE", "SheetPlan", "SheetSizes", "plan_sheet"]

EDGE = 24
_TILE_GAP = 2
_BLOCK_GAP = 22
_SMALLEST_WIDTH = 480  # room for a title
_LARGEST_SIDE = 2250  # with the largest header, 2400
_COMFORTABLE_SIDE = 1600  # what large tiles may fill; beyond it they shrink first
_COMFORTABLE_TILE = 112
_ASPECT = 1.2
_SHRUNK_SIDES = (224, 192, 160, 144, 128, 112, 96, 80, 64, 48, 32, 24)


@dataclass(frozen=True)
class SheetSizes:
    """What a plan starts from, in pixels: one tile as it is, and the heights that text needs.

    Attributes:
        rows: Number of rows of the gallery, each of which becomes a block.
        tiles: Number of tiles in the longest row.
        tile_width: Width of one tile.
        tile_height: Height of one tile.
        label_width: Width below which a block's label would have to be cut.
        label_height: Height of the label above each block.
        tile_label_width: Width of the longest caption of a tile; 0 if there are none.
        tile_label_height: Height of the caption under each tile, where there is room for it.
        columns: Number of tiles side by side in a block; 0 for as nearly a square as possible.
        wanted_side: To so many pixels a side small tiles are enlarged, where there is room.
    """

    rows: int
    tiles: int
    tile_width: int
    tile_height: int
    label_width: int = 0
    label_height: int = 0
    tile_label_width: int = 0
    tile_label_height: int = 0
    columns: int = 0
    wanted_side: int = 64

    @property
    def block_columns(self) -> int:
        """Number of tiles side by side in a block."""
        return self.columns or max(1, math.ceil(math.sqrt(self.tiles)))


@dataclass(frozen=True)
class SheetPlan:
    """Where everything of a sheet lies, in pixels from the lower edge of its header.

    Attributes:
        sizes: What the plan was made from.
        scale: How much tiles are enlarged: by a whole number, or to just the side that was wanted.
        columns: Number of blocks side by side.
        shown: Number of rows of the gallery that the sheet has room for, normally all of them.
    """

    sizes: SheetSizes
    scale: float
    columns: int
    shown: int

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of a tile as drawn."""
        return max(1, round(self.sizes.tile_width * self.scale)), max(1, round(self.sizes.tile_height * self.scale))

    @property
    def tile_label_height(self) -> int:
        """Height of the caption under each tile; 0 where there is no room for it."""
        wide_enough = self.tile[0] >= min(self.sizes.tile_label_width, 96)
        return self.sizes.tile_label_height if self.sizes.tile_label_width and wide_enough else 0

    @property
    def block_columns(self) -> int:
        """Number of tiles side by side in a block."""
        return self.sizes.block_columns

    @property
    def block(self) -> tuple[int, int]:
        """Width and height of a block with its label, without the gap to the next."""
        columns, (width, height) = self.block_columns, self.tile
        rows = math.ceil(self.sizes.tiles / columns)
        tiles_width = columns * (width + _TILE_GAP) - _TILE_GAP
        tiles_height = rows * (height + self.tile_label_height + _TILE_GAP) - _TILE_GAP
        return max(tiles_width, self.sizes.label_width), tiles_height + self.sizes.label_height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet without its header."""
        width, height = self.block
        across = self.columns * (width + _BLOCK_GAP) - _BLOCK_GAP
        down = math.ceil(self.shown / self.columns) * (height + _BLOCK_GAP) - _BLOCK_GAP
        return max(across + 2 * EDGE, _SMALLEST_WIDTH), max(down, 0) + EDGE

    def block_corner(self, row: int) -> tuple[int, int]:
        """Left and top of a block's label."""
        (width, height), (down, across) = self.block, divmod(row, self.columns)
        return EDGE + across * (width + _BLOCK_GAP), down * (height + _BLOCK_GAP)

    def tile_corner(self, row: int, index: int) -> tuple[int, int]:
        """Left and top of a tile."""
        (left, top), (width, height), (down, across) = (
            self.block_corner(row),
            self.tile,
            divmod(index, self.block_columns),
        )
        top += self.sizes.label_height + down * (height + self.tile_label_height + _TILE_GAP)
        return left + across * (width + _TILE_GAP), top


def plan_sheet(sizes: SheetSizes) -> SheetPlan:
    """Choose the largest tiles and the arrangement of blocks with which everything fits on one sheet.

    Small tiles are enlarged by whole factors, large ones shrunk; rows are left out only if the smallest legible
    tiles still do not fit, and then `shown` tells.
    """
    plan = SheetPlan(sizes, 1, 1, 0)
    for scale in _scales(sizes):
        limit = _LARGEST_SIDE if scale * _side(sizes) <= _COMFORTABLE_TILE else _COMFORTABLE_SIDE
        plan = _best_arrangement(sizes, scale, limit)
        if max(plan.size) <= limit:
            return plan
    width, height = plan.block
    columns = max(1, (_LARGEST_SIDE - 2 * EDGE + _BLOCK_GAP) // (width + _BLOCK_GAP))
    rows = max(1, (_LARGEST_SIDE - EDGE + _BLOCK_GAP) // (height + _BLOCK_GAP))
    return SheetPlan(sizes, plan.scale, columns, min(columns * rows, sizes.rows))


def _scales(sizes: SheetSizes) -> Iterator[float]:
    """Scales to try, largest first: whole factors while enlarging, so that every pixel stays a square, if they fit."""
    side = _side(sizes)
    wanted = max(sizes.wanted_side, 128 // sizes.block_columns)
    if side <= _SHRUNK_SIDES[0]:
        smallest = math.ceil(_SHRUNK_SIDES[-1] / side)
        largest = max(smallest, math.ceil(wanted / side))
        yield largest
        if smallest < wanted / side < largest:
            yield wanted / side
        yield from range(largest - 1, smallest - 1, -1)
    yield from (shrunk / side for shrunk in _SHRUNK_SIDES if shrunk < side)


def _side(sizes: SheetSizes) -> int:
    return max(sizes.tile_width, sizes.tile_height)


def _best_arrangement(sizes: SheetSizes, scale: float, limit: int) -> SheetPlan:
    width, _ = SheetPlan(sizes, scale, 1, sizes.rows).block
    most = min(max(1, _LARGEST_SIDE // (width + _BLOCK_GAP)), max(1, sizes.rows))
    plans = [SheetPlan(sizes, scale, columns, sizes.rows) for columns in range(1, most + 1)]
    return min([plan for plan in plans if max(plan.size) <= limit] or plans, key=_ugliness)


def _ugliness(plan: SheetPlan) -> float:
    """How far the blocks are from a full rectangle a little wider than high."""
    (width, height), rows = plan.block, math.ceil(plan.shown / plan.columns)
    aspect = (plan.columns * (width + _BLOCK_GAP)) / max(1, rows * (height + _BLOCK_GAP))
    empty = rows * plan.columns - plan.shown
    return abs(math.log(aspect / _ASPECT)) + (0.6 + empty / plan.shown if empty else 0)
