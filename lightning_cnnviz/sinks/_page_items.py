"""The items of a report in types that JSON has, and the pictures that they show."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_cnnviz.render.charts import curve_svg
from lightning_cnnviz.render.image import LOSSLESS_SIDE, encode_tile
from lightning_cnnviz.report import Curve, Gallery, ImageCrop, Item, Number, Picture, Row, Scalar, Table, Tile

__all__ = ["Content", "Pictures", "data_uri", "plain", "to_json"]

Content = Tensor | bytes
"""A picture: pixels `(3, H, W)` uint8, or the text of an SVG."""

_TABLE_ROWS = 500
_Put = Callable[[Content], str]


class Pictures:
    """The pictures of one report, each of them once.

    Attributes:
        contents: The pictures by their names.
    """

    def __init__(self) -> None:
        self.contents: dict[str, Content] = {}
        self._names: dict[int, tuple[str, Content]] = {}  # of tensors that were seen, which lets them be shared

    def describe(self, item: Item) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Describe an item that is no scalar; return the names of its pictures, too."""
        shows: dict[str, None] = {}

        def put(content: Content) -> str:
            if id(content) not in self._names:
                self._names[id(content)] = (_name_of(content), content)
            name, _ = self._names[id(content)]
            self.contents.setdefault(name, content)
            shows[name] = None
            return name

        return _describe(item, put), tuple(shows)


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
    media, data = encode_tile(content) if isinstance(content, Tensor) else ("image/svg+xml", content)
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _describe(item: Item, put: _Put) -> dict[str, Any]:
    head: dict[str, Any] = {"kind": type(item).__name__, "name": item.name}
    if isinstance(item, Scalar):
        raise TypeError("a scalar stands in the head of its look")
    head["caption"] = item.caption
    if isinstance(item, Gallery):
        size = next((_extent(tile) for row in item.rows for tile in row.tiles), (0, 0))
        rows = [_describe_row(row, put) for row in item.rows]
        form = {"enlarge": item.enlarge, "columns": item.columns, "size": size}
        return head | {"numbers": _numbers(item.numbers), **form, "rows": rows}
    if isinstance(item, Picture):
        return head | {"picture": put(item.pixels), "size": _extent(item)}
    if isinstance(item, Curve):
        return head | {"picture": put(curve_svg(item).encode(errors="replace"))}
    if isinstance(item, Table):
        cells = [[_describe_cell(cell, put) for cell in row] for row in item.rows[:_TABLE_ROWS]]
        return head | {"columns": item.columns, "rows": cells, "total": len(item.rows)}
    raise TypeError(f"a page cannot show a {type(item).__name__}")


def _describe_row(row: Row, put: _Put) -> dict[str, Any]:
    return {
        "caption": row.caption,
        "numbers": _numbers(row.numbers),
        "tiles": [[*_tile(tile, put), tile.caption, _numbers(tile.numbers)] for tile in row.tiles],
    }


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
    source = tile.source
    if source is None:
        return put(tile.pixels), None
    if max(_extent(tile)) <= LOSSLESS_SIDE < max(_extent(source)):
        return put(tile.pixels), None
    return put(source.pixels), [*_extent(source), *source.box, *source.offset]


def _extent(image: Tile | Picture | ImageCrop) -> tuple[int, int]:
    return image.pixels.shape[2], image.pixels.shape[1]  # width, height


def _numbers(numbers: Mapping[str, Number]) -> list[tuple[str, Number | None]]:
    """Keep the order in which they are to be read, which a JavaScript object would not for names like `7`."""
    return [(name, plain(value)) for name, value in numbers.items()]


def _name_of(content: Content) -> str:
    """Name a picture by a hash of its content; at 72 bits no two pictures share one by chance."""
    if isinstance(content, Tensor):
        content = repr(tuple(content.shape)).encode() + content.cpu().numpy().tobytes()
    return base64.urlsafe_b64encode(hashlib.blake2b(content, digest_size=9).digest()).decode()
