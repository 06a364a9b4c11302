"""Tables as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["Side", "text_table"]

Side = Literal["left", "right"]


def text_table(
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
        widest: Longer cells lose their beginning: of a layer's path, the end tells more.

    Example:
        >>> print(text_table(("layer", "size"), [("conv1", "7"), ("fc", "11")], ("left", "right")))
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
