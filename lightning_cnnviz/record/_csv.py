"""The numbers of a report as one tidy table of text: an observation a line, a quantity a column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from lightning_cnnviz.report import Curve, Gallery, Item, Number, Picture, Scalar, Table, Tile

__all__ = ["csv_text"]

_Line = dict[str, "Number | None"]
_PLACES = ("item", "kind", "group", "place")


def csv_text(items: Sequence[Item]) -> str:
    """Write every number of the items.

    The first columns say whose it is: `item`, its name; `kind`, what the line is about; `group`, the caption of the
    row of a gallery, or the line of a curve; `place`, counted from 1 in its group or table. A line has a value in the
    columns that its kind knows, and is empty in the others; what could not be measured (NaN) is empty, too.

    Example:
        >>> print(csv_text([Scalar("accuracy", 0.5), Scalar("loss", 2.0)]), end="")
        item,kind,group,place,value
        accuracy,scalar,,,0.5
        loss,scalar,,,2.0
    """
    lines = [line for item in items for line in _lines(item)]
    columns = dict.fromkeys(_PLACES)
    for line in lines:
        columns.update(dict.fromkeys(line))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def _lines(item: Item) -> Iterator[_Line]:
    if isinstance(item, Scalar):
        yield {"item": item.name, "kind": "scalar", "value": item.value}
    elif isinstance(item, Picture):
        yield {"item": item.name, "kind": "picture"}
    elif isinstance(item, Gallery):
        yield from _gallery_lines(item)
    elif isinstance(item, Curve):
        yield from _curve_lines(item)
    else:
        yield from _table_lines(item)


def _gallery_lines(gallery: Gallery) -> Iterator[_Line]:
    if gallery.numbers:
        yield {"item": gallery.name, "kind": "gallery", **_named(gallery.numbers)}
    for row in gallery.rows:
        if row.numbers:
            yield {"item": gallery.name, "kind": "row", "group": row.caption, **_named(row.numbers)}
        for place, tile in enumerate(row.tiles, start=1):
            head: _Line = {"item": gallery.name, "kind": "tile", "group": row.caption, "place": place}
            yield head | ({"caption": tile.caption} if tile.caption else {}) | _named(tile.numbers) | _file(tile)


def _file(tile: Tile) -> _Line:
    return {"file": tile.source.file} if tile.source is not None and tile.source.file else {}


def _curve_lines(curve: Curve) -> Iterator[_Line]:
    for series in curve.series:
        head: _Line = {"item": curve.name, "kind": "point", "group": series.name}
        for number, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            line: _Line = {"place": number + 1, "x label": curve.x_label, "x": x, "y label": curve.y_label, "y": y}
            if series.low is not None and series.high is not None:
                line |= {"low": series.low[number], "high": series.high[number]}
            yield head | line


def _table_lines(table: Table) -> Iterator[_Line]:
    for place, row in enumerate(table.rows, start=1):
        cells: _Line = {
            name: cell.caption if isinstance(cell, Tile) else cell
            for name, cell in zip(table.columns, row, strict=True)
        }
        yield {"item": table.name, "kind": "line", "place": place, **_named(cells)}


def _named(numbers: Mapping[str, Number | None]) -> _Line:
    """Numbers by their names; one that is called as one of the first columns gets an underscore."""
    return {f"{name}_" if name in _PLACES else str(name): value for name, value in numbers.items()}


def _plain(value: Number | None) -> Number | str:
    """What a cell holds: nothing where nothing was measured, and no line breaks."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return " ".join(value.split()) if isinstance(value, str) else value
