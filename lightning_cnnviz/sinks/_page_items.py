"""The items of a report in types that JSON has, and the pictures that they show."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lightning_cnnviz.render.image import LOSSLESS_SIDE, encode_tile
from lightning_cnnviz.report import (
    Curve,
    Gallery,
    ImageCrop,
    Item,
    LayerFacts,
    NamedCells,
    Number,
    Picture,
    Row,
    Scalar,
    Series,
    Table,
    Tile,
)
from lightning_cnnviz.sinks._texts import Texts

__all__ = ["Content", "EncodedItem", "Pictures", "data_uri", "facts_json", "parts_of", "plain", "to_json"]

Content = Tensor | str
"""A picture: pixels `(3, H, W)` uint8, or SVG."""

_TABLE_ROWS = 500
_INLINE = 24_000  # characters of a gallery's rows, above which they stand in files of their own
_PART = 120_000  # characters of such a file


class _Put(Protocol):
    """Takes a picture, or one that several tiles share, and returns its name."""

    def __call__(self, content: Content, *, shared: bool = False, whole: bool = False) -> str: ...


@dataclass(frozen=True, kw_only=True)
class EncodedItem:
    """An item as JSON.

    Attributes:
        text: An object, without a gallery's rows.
        shows: The pictures that it shows by itself.
        rows: Of a gallery, each row as an array, the pictures that it shows, and the whole images of those of them that
            are patches with pictures of their own; None for other items.
    """

    text: str
    shows: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] | None = None


class Pictures:
    """The pictures of one report, each of them once.

    Attributes:
        encoded: Data URIs of the pictures by their names.
    """

    def __init__(self) -> None:
        self.encoded = Texts()
        self._names: dict[int, tuple[str, Content]] = {}  # of whole images, which many tiles share

    def describe(self, item: Item) -> EncodedItem:
        """Describe an item that is no scalar."""
        shows: dict[str, None] = {}
        wholes: dict[str, None] = {}

        def put(content: Content, *, shared: bool = False, whole: bool = False) -> str:
            name, _ = self._names.get(id(content)) or (_name_of(content), None)
            if shared:
                self._names[id(content)] = (name, content)
            if name not in self.encoded:
                self.encoded.add(name, data_uri(content))
            (wholes if whole else shows)[name] = None
            return name

        if not isinstance(item, Gallery):
            return EncodedItem(text=to_json(_describe(item, put)), shows=tuple(shows))
        keys: dict[tuple[str, ...], int] = {}
        rows = []
        for row in item.rows:
            shows.clear()
            wholes.clear()
            text = to_json(_describe_row(row, put, keys))
            rows.append((text, tuple(shows), tuple(wholes)))
        return EncodedItem(text=to_json(_describe_gallery(item, keys)), shows=(), rows=tuple(rows))


def plain(value: Number | None) -> Number | None:
    """Turn a number, NumPy's too, into one that JSON can hold; None for NaN and infinity, which it has not."""
    if value is None or isinstance(value, (str, int)):
        return value
    return float(value) if math.isfinite(value) else None


def to_json(value: Any) -> str:
    r"""Encode as JSON that is ASCII, and without `<`: harmless in any script or markup."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def data_uri(content: Content) -> str:
    """Encode a picture as a data URI."""
    media, data = ("image/svg+xml", content.encode()) if isinstance(content, str) else encode_tile(content)
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _describe(item: Item, put: _Put) -> dict[str, Any]:
    head = _head(item)
    if isinstance(item, Picture):
        shown = {"picture": put(item.svg or item.pixels), "size": _extent(item)}
        return head | shown | ({} if item.cells is None else {"cells": _cells(item.cells)})
    if isinstance(item, Curve):
        series = [_describe_series(series) for series in item.series]
        axis: dict[str, Any] = {"names": item.x_names, "log": item.x_log} if item.x_names or item.x_log else {}
        axis |= {"percent": True} if item.percent else {}
        return head | {"x": item.x_label, "y": item.y_label, "series": series} | axis
    if isinstance(item, Table):
        cells = [[_describe_cell(cell, put) for cell in row] for row in item.rows[:_TABLE_ROWS]]
        return head | {"columns": item.columns, "rows": cells, "total": len(item.rows)}
    raise TypeError(f"a page cannot show a {type(item).__name__}")


def _head(item: Item) -> dict[str, Any]:
    head: dict[str, Any] = {"kind": type(item).__name__, "name": item.name}
    if isinstance(item, Scalar):
        raise TypeError("a scalar stands in the head of its look")
    layer = "" if isinstance(item, Table) else item.layer
    return head | {"layer": layer, "caption": item.caption}


def _describe_gallery(item: Gallery, keys: Mapping[tuple[str, ...], int]) -> dict[str, Any]:
    size = next((_extent(tile) for row in item.rows for tile in row.tiles), (0, 0))
    form: dict[str, Any] = {"enlarge": item.enlarge, "columns": item.columns, "size": size, "keys": list(keys)}
    if item.scale is not None:
        form["scale"] = [item.scale.colors, item.scale.low, item.scale.middle, item.scale.high]
    if item.named:
        form["named"] = True
    if item.rows and item.rows[0].tiles and all(_is_ranked(tile) for tile in item.rows[0].tiles):
        form["ranked"] = True
    channels = [row.channel for row in item.rows]
    return _head(item) | {"numbers": _numbers(item.numbers), **form, "channels": channels}


def _is_ranked(tile: Tile) -> bool:
    """Whether it is one of the patches of a unit, with its class: a page names it by its rank and that."""
    return tile.shows == "patch" and tile.rank is not None and "label" in tile.numbers


def _describe_row(row: Row, put: _Put, keys: dict[tuple[str, ...], int]) -> list[Any]:
    """Caption, numbers, tiles."""
    return [row.caption, _numbers(row.numbers), [_describe_tile(tile, put, keys) for tile in row.tiles]]


def _describe_tile(tile: Tile, put: _Put, keys: dict[tuple[str, ...], int]) -> list[Any]:
    """Picture, place in it, caption, numbers without their names, kind, rank, file, whole image and place in that."""
    named = keys.setdefault(tuple(tile.numbers), len(keys))
    numbers = [named, *(_brief(value) for value in tile.numbers.values())]
    source = tile.source
    name, crop = _tile(tile, put)
    ends: list[Any] = [tile.shows, tile.rank]
    if source is None and crop is not None:
        ends += ["", 0]  # of no whole image
    if source is not None and (source.file or _has_own_picture(tile)):
        ends.append(source.file)
    if source is not None and _has_own_picture(tile):
        ends.append([put(source.pixels, shared=True, whole=True), _crop(source)])
    return [name, crop, tile.caption, numbers, *ends]


def _cells(cells: NamedCells) -> dict[str, Any]:
    columns = None if cells.columns == cells.rows else cells.columns
    return {"box": cells.box, "row": cells.row, "rows": cells.rows, "column": cells.column, "columns": columns}


def _describe_series(series: Series) -> dict[str, Any]:
    values = {"x": series.x, "y": series.y, "low": series.low, "high": series.high}
    told = {axis: [_brief(value) for value in line] for axis, line in values.items() if line is not None}
    return {"name": series.name, **told} | ({"reference": True} if series.reference else {})


def _describe_cell(cell: Number | Tile | None, put: _Put) -> Any:
    if isinstance(cell, Tile):
        name, crop = _tile(cell, put)
        return {"picture": name, "crop": crop, "size": _extent(cell), "caption": cell.caption}
    return plain(cell)


def _tile(tile: Tile, put: _Put) -> tuple[str, list[int] | None]:
    """Return the name of a tile's picture, and where the tile lies in it if that is a whole image.

    Whole images are JPEG files unless they are tiny. A patch that is kept without loss by itself would not survive
    that, and has its own picture.
    """
    if tile.source is None or _has_own_picture(tile):
        return put(tile.pixels), _frame(tile)
    return put(tile.source.pixels, shared=True), _crop(tile.source)


def _has_own_picture(tile: Tile) -> bool:
    source = tile.source
    if source is None:
        return False
    return source.apart or max(_extent(tile)) <= LOSSLESS_SIDE < max(_extent(source))


def _frame(tile: Tile) -> list[int] | None:
    """As a crop, where in a tile of its own its picture lies; None for all of it: a page has its own color around."""
    inside = tile.inside
    if tile.source is not None and not tile.source.apart:
        (top, left, bottom, right), (row, column) = tile.source.box, tile.source.offset
        inside = (row, column, row + bottom - top, column + right - left)
    if inside is None or inside == (0, 0, *tile.size):
        return None
    return [*_extent(tile), *inside, *inside[:2]]


def _crop(source: ImageCrop) -> list[int]:
    return [*_extent(source), *source.box, *source.offset]


def facts_json(facts: Sequence[LayerFacts]) -> str:
    """Encode what is known of layers and channels: classes by their numbers in a list."""
    classes: dict[Number, int] = {}
    layers = []
    for each in facts:
        driven, best = (
            [
                [value for name, part in line for value in (classes.setdefault(name, len(classes)), _brief(part))]
                for line in lines
            ]
            for lines in (each.classes, each.told)
        )
        told = {
            "layer": each.layer,
            "numbers": _numbers(each.numbers),
            "channels": [(name, [_brief(value) for value in line]) for name, line in each.channels.items()],
            "classes": driven,
            "told": best,
            "histograms": [part and [_brief(part.low), _brief(part.width), *part.counts] for part in each.histograms],
            "neighbors": [[_brief(value) for pair in line for value in pair] for line in each.neighbors],
        }
        layers.append({name: value for name, value in told.items() if value})
    return to_json({"classes": list(classes), "layers": layers})


def parts_of(
    chunk: str, notes: str, facts: str, items: Sequence[EncodedItem], places: Mapping[str, str]
) -> dict[str, str]:
    """Return the JSON of a look by file: one that has the look's name, and those of what is long.

    Args:
        chunk: The look's name, with which those of its other parts begin.
        notes: As JSON.
        facts: As JSON.
        items: All but scalars.
        places: The pack of each picture.
    """
    parts: dict[str, str] = {}
    texts = []
    for item in items:
        shown = (
            item.shows if item.rows is None else [name for _, *names in item.rows for name in (*names[0], *names[1])]
        )
        packs = {pack: place for place, pack in enumerate(sorted({places[name] for name in shown}))}
        ends = f',"packs":{to_json(list(packs))}'
        if item.rows is not None:
            rows = []
            for text, *names in item.rows:
                own, wholes = (sorted({packs[places[name]] for name in part}) for part in names)
                rows.append(f"{text[:-1]},{to_json(own)}{f',{to_json(wholes)}' if wholes else ''}]")
            ends += _rows_or_parts(chunk, rows, parts)
        texts.append(f"{item.text[:-1]}{ends}}}")
    listed = ",\n".join(texts)
    return {chunk: f'{{"notes":{notes},"facts":{facts},"items":[{listed}]}}', **parts}


def _rows_or_parts(chunk: str, rows: Sequence[str], parts: dict[str, str]) -> str:
    """A gallery's rows, or the names of the parts that they go into and how many rows each has."""
    if sum(map(len, rows)) <= _INLINE:
        return f',"rows":[{",".join(rows)}]'
    groups: list[list[str]] = [[]]
    for row in rows:
        if groups[-1] and sum(map(len, groups[-1])) + len(row) > _PART:
            groups.append([])
        groups[-1].append(row)
    names = []
    for group in groups:
        names.append((f"{chunk}-{len(parts)}", len(group)))
        parts[names[-1][0]] = f"[{','.join(group)}]"
    return f',"parts":{to_json(names)}'


def _brief(value: Number | None) -> Number | None:
    """Six figures, which is more than the page shows."""
    value = plain(value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _extent(image: Tile | Picture | ImageCrop) -> tuple[int, int]:
    height, width = image.size if isinstance(image, Tile) else image.pixels.shape[1:]
    return width, height


def _numbers(numbers: Mapping[str, Number]) -> list[tuple[str, Number | None]]:
    """Keep the order in which they are to be read, which a JavaScript object would not for names like `7`."""
    return [(name, plain(value)) for name, value in numbers.items()]


def _name_of(content: Content) -> str:
    """Name a picture by a hash of its content; at 72 bits no two pictures share one by chance."""
    if isinstance(content, str):
        text = content.encode()
    else:
        text = repr(tuple(content.shape)).encode() + content.cpu().numpy().tobytes()
    return base64.urlsafe_b64encode(hashlib.blake2b(text, digest_size=9).digest()).decode()
