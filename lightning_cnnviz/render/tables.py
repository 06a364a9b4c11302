"""Tables as plain text, for a terminal, and as a picture, for sinks that take nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from PIL import Image, ImageDraw
from torch import Tensor

from lightning_cnnviz.render._text import INK, PAPER, draw_header, fit, length, line_height, write
from lightning_cnnviz.render.image import from_image, to_image
from lightning_cnnviz.render.layout import EDGE
from lightning_cnnviz.report import Number, Scalar, Table, Tile

__all__ = ["NOT_KNOWN", "Side", "aligned_text", "column_sides", "draw_table", "scalar_table", "table_text", "written"]

Side = Literal["left", "right"]

NOT_KNOWN = "\N{EN DASH}"
_MOST_ROWS = 60  # of a picture
_SIZE, _COLUMN_GAP, _ROW_GAP = 13, 18, 6
_WIDEST, _NARROWEST_SHEET = 260, 480
_TILE_SIDE = 48


def table_text(table: Table, *, widest: int = 60) -> str:
    """Return a table as plain text, with numbers at the right of their columns; of a tile, its caption.

    Args:
        table: The table.
        widest: Longer cells lose their beginning: of a layer's path, the end tells more.

    Example:
        >>> print(table_text(Table("layers", ("layer", "weights"), (("conv1", 23232), ("fc", 4096)))))
        layer  weights
        -----  -------
        conv1   23,232
        fc       4,096
    """
    cells = [[written(cell) for cell in row] for row in table.rows]
    return aligned_text(table.columns, cells, column_sides(table.columns, cells), widest=widest)


def aligned_text(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: Sequence[Side],
    *,
    widest: int = 40,
) -> str:
    """Return rows of cells under their headings, aligned, with a rule below the headings and no blanks at line ends.

    Args:
        columns: The headings.
        rows: The cells.
        align: For each column, at which side its cells stand.
        widest: Longer cells lose their beginning.

    Example:
        >>> print(aligned_text(("layer", "size"), [("conv1", "7"), ("fc", "11")], ("left", "right")))
        layer  size
        -----  ----
        conv1     7
        fc       11
    """
    cells = [[cell if len(cell) <= widest else "…" + cell[1 - widest :] for cell in row] for row in rows]
    widths = [max(len(line[place]) for line in (columns, *cells)) for place in range(len(columns))]

    def line(parts: Sequence[str]) -> str:
        padded = [
            part.rjust(width) if side == "right" else part.ljust(width)
            for part, width, side in zip(parts, widths, align, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def draw_table(table: Table, *, title: str) -> Tensor:
    """Draw a table as one picture, tiles included; of a long one, the first rows, and how many there are.

    Args:
        table: What to draw; may have no rows.
        title: What stands above it.

    Returns:
        `(3, H, W)` uint8.

    Example:
        >>> draw_table(Table("layers", ("layer", "weights"), (("conv1", 23232),)), title="Layers").shape
        torch.Size([3, 144, 480])
    """
    rows = table.rows[:_MOST_ROWS]
    sides = column_sides(table.columns, [[written(cell) for cell in row] for row in rows])
    cells = [[_text(name, bold=True) for name in table.columns], *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(cell.width for cell in column) for column in zip(*cells, strict=True)]
    heights = [max((cell.height for cell in line), default=0) + _ROW_GAP for line in cells]
    width = max(_NARROWEST_SHEET, 2 * EDGE + sum(widths) + _COLUMN_GAP * (len(widths) - 1))
    cut = f"First {len(rows)} of {len(table.rows)}. " if len(rows) < len(table.rows) else ""
    header = draw_header(title, f"{cut if rows else 'Nothing to show. '}{table.caption}", {}, width)
    sheet = Image.new("RGB", (width, header.height + sum(heights) + EDGE), PAPER)
    sheet.paste(header)
    top = header.height
    for line, height in zip(cells, heights, strict=True):
        left = EDGE
        for cell, column, side in zip(line, widths, sides, strict=True):
            sheet.paste(cell, (left + (column - cell.width if side == "right" else 0), top))
            left += column + _COLUMN_GAP
        top += height
    return from_image(sheet)


def _cell(cell: Number | Tile | None) -> Image.Image:
    if not isinstance(cell, Tile):
        return _text(written(cell))
    image = to_image(cell.pixels)
    scale = _TILE_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)


def _text(text: str, *, bold: bool = False) -> Image.Image:
    text = fit(text, _WIDEST, _SIZE, bold)
    image = Image.new("RGB", (max(1, length(text, _SIZE, bold)), line_height(_SIZE)), PAPER)
    write(ImageDraw.Draw(image), (0, 0), text, _SIZE, INK, bold)
    return image


def written(cell: Number | Tile | None) -> str:
    """Write a cell as text: numbers with their thousands apart, of a tile its caption."""
    if isinstance(cell, Tile):
        return cell.caption
    if cell is None:
        return NOT_KNOWN
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:g}" if isinstance(cell, float) else str(cell)


def column_sides(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Side]:
    """Say for each column at which side its cells stand: at the right, where all are numbers."""
    return [
        "right" if rows and all(_is_number(row[place]) for row in rows) else "left" for place in range(len(columns))
    ]


def scalar_table(scalars: Sequence[Scalar]) -> Table:
    """Put scalars into one table, a line each."""
    rows = tuple((scalar.name, scalar.value if scalar.measured else None) for scalar in scalars)
    return Table("numbers", ("name", "value"), rows)


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in ("+", "-", NOT_KNOWN, "")
