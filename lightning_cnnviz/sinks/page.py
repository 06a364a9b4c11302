"""The local page: one HTML file, written again after each look, that opens from disk and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from torch import Tensor

from lightning_cnnviz.render.charts import curve_svg
from lightning_cnnviz.render.image import encode_tile
from lightning_cnnviz.report import Curve, Gallery, Item, Number, Picture, Report, Row, Scalar, Step, Table, Tile
from lightning_cnnviz.sinks.base import Sink

__all__ = ["PageSink"]

_TABLE_ROWS = 500
_Put = Callable[[Tensor | bytes], str]


@dataclass(frozen=True)
class _Item:
    json: str
    pictures: frozenset[str]


@dataclass
class _Look:
    notes: tuple[str, ...] = ()
    items: dict[str, _Item] = field(default_factory=dict)


@dataclass
class _View:
    """Everything that one monitor has shown."""

    title: str = ""
    label: str = ""
    looks: dict[Step, _Look] = field(default_factory=dict)
    left_out: set[Step] = field(default_factory=set)

    def steps(self) -> list[Step]:
        """The looks' steps, oldest first."""
        return sorted(self.looks, key=lambda step: (step.global_step, step.epoch))


class PageSink(Sink):
    """Keeps one `index.html` up to date that shows every look of every view that writes here.

    The file is whole at any moment, so it may stay open in a browser while training runs; a reload shows what is new.
    One sink may serve several monitors. A look is identified by its view, its monitor's name and its step: what is
    written again under all three is replaced item by item. Each picture is stored once, however many looks show it.

    Args:
        directory: Where `index.html` goes; by default `cnnviz` in the trainer's log folder.
        max_megabytes: Above this size of the data, every second one of the inner looks is left out, again and again,
            and the page says how many. Each view's newest look stays, whatever its size.

    Example:
        >>> PageSink("runs/page", max_megabytes=20).path.as_posix()
        'runs/page/index.html'
    """

    is_default: ClassVar[bool] = True

    def __init__(self, directory: str | Path | None = None, *, max_megabytes: float = 64) -> None:
        if not max_megabytes > 0:
            raise ValueError(f"max_megabytes must be above 0, not {max_megabytes}")
        self._given = None if directory is None else Path(directory)
        self._directory = self._given
        self._most_bytes = max_megabytes * 1_000_000
        self._views: dict[str, _View] = {}
        self._pictures: dict[str, str] = {}  # hash of the content -> data URI

    @property
    def path(self) -> Path:
        """The page itself, `index.html`.

        Raises:
            RuntimeError: No directory was given, and `open` has not been called.
        """
        if self._directory is None:
            raise RuntimeError("this PageSink has no directory yet: give it one, or call open() first")
        return self._directory / "index.html"

    @property
    def address(self) -> str:
        """The page, to be opened in a browser; "" before it is known where it goes."""
        return f"open {self.path} in a browser" if self._directory is not None else ""

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Decide where the page goes; what it shows is kept, unless the place has changed."""
        directory = self._given or Path(folder) / "cnnviz"
        if self._directory not in (None, directory):
            self._views, self._pictures = {}, {}
        self._directory = directory

    def write(self, report: Report, step: Step) -> None:
        """Add the report to the page.

        Raises:
            OSError: The page cannot be written. It is then as it was; a later call would write this report too.
        """
        path = self.path
        items = {f"{type(item).__name__} {item.name}": self._store(item) for item in report.items}
        view = self._views.setdefault(report.source, _View())
        view.title = report.heading
        view.label = " · ".join(part for part in (report.view.replace("_", " "), report.name) if part)
        look = view.looks.setdefault(step, _Look())
        look.notes = tuple(dict.fromkeys((*look.notes, *report.notes)))
        look.items.update(items)
        view.left_out.discard(step)
        self._thin(keep=step)
        _replace(path, _template().generate(views=self._views_json(), pictures=self._pictures))

    def _store(self, item: Item) -> _Item:
        used: set[str] = set()

        def put(content: Tensor | bytes) -> str:
            name = _name_of(content)
            if name not in self._pictures:
                self._pictures[name] = _data_uri(content)
            used.add(name)
            return name

        return _Item(_json(_describe(item, put)), frozenset(used))

    def _thin(self, keep: Step) -> None:
        """Leave out looks until the data is small enough: inner ones first, then all but the newest."""
        while self._tidy() > self._most_bytes:
            inner = [(view, step) for view in self._views.values() for step in view.steps()[1:-1:2] if step != keep]
            older = [(view, step) for view in self._views.values() for step in view.steps()[:-1] if step != keep]
            if not older:
                return
            for view, step in inner or older:
                del view.looks[step]
                view.left_out.add(step)

    def _tidy(self) -> int:
        """Forget pictures that no look shows any more, and count the bytes that are left."""
        looks = [look for view in self._views.values() for look in view.looks.values()]
        items = [item for look in looks for item in look.items.values()]
        used = frozenset[str]().union(*(item.pictures for item in items))
        self._pictures = {name: uri for name, uri in self._pictures.items() if name in used}
        return sum(map(len, self._pictures.values())) + sum(len(item.json) for item in items)

    def _views_json(self) -> str:
        views = []
        for source, view in self._views.items():
            looks = []
            for step in view.steps():
                look = view.looks[step]
                when = {"epoch": step.epoch, "step": step.global_step, "stage": step.stage, "notes": look.notes}
                looks.append(_with_list(when, "items", (item.json for item in look.items.values())))
            head = {"view": source, "label": view.label, "title": view.title, "left_out": len(view.left_out)}
            views.append(_with_list(head, "looks", looks))
        return "[" + ",\n".join(views) + "]"


def _describe(item: Item, put: _Put) -> dict[str, Any]:
    """Describe an item in types that JSON has; `put` stores a picture and returns its name."""
    head: dict[str, Any] = {"kind": type(item).__name__, "name": item.name}
    if isinstance(item, Scalar):
        return head | {"value": _plain(item.value)}
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
    tiles = [(put(tile.pixels), tile.caption, _numbers(tile.numbers)) for tile in row.tiles]
    return {"caption": row.caption, "numbers": _numbers(row.numbers), "tiles": tiles}


def _describe_cell(cell: Number | Tile | None, put: _Put) -> Any:
    if isinstance(cell, Tile):
        return {"picture": put(cell.pixels), "size": _extent(cell), "caption": cell.caption}
    return _plain(cell)


def _extent(image: Tile | Picture) -> tuple[int, int]:
    return image.pixels.shape[2], image.pixels.shape[1]  # width, height


def _numbers(numbers: Mapping[str, Number]) -> list[tuple[str, Number | None]]:
    """Keep the order in which they are to be read, which a JavaScript object would not for names like `7`."""
    return [(name, _plain(value)) for name, value in numbers.items()]


def _plain(value: Number | None) -> Number | None:
    """Turn a number, NumPy's too, into one that JSON can hold; None for NaN and infinity, which it has not."""
    if value is None or isinstance(value, (str, int)):
        return value
    return float(value) if math.isfinite(value) else None


def _json(value: Any) -> str:
    r"""Encode as JSON that can stand inside `<script>`: with `<` as `\u003c` nothing can end the element early."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _with_list(head: dict[str, Any], key: str, parts: Iterable[str]) -> str:
    """Encode `head`, with a list of what is JSON already as its last member."""
    return f'{_json(head)[:-1]},"{key}":[' + ",\n".join(parts) + "]}"


def _name_of(content: Tensor | bytes) -> str:
    """Name a picture by a hash of its content; at 72 bits no two pictures share one by chance."""
    if isinstance(content, Tensor):
        content = repr(tuple(content.shape)).encode() + content.cpu().numpy().tobytes()
    return base64.urlsafe_b64encode(hashlib.blake2b(content, digest_size=9).digest()).decode()


def _data_uri(content: Tensor | bytes) -> str:
    media, data = encode_tile(content) if isinstance(content, Tensor) else ("image/svg+xml", content)
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _replace(path: Path, pieces: Iterable[str]) -> None:
    """Write a file so that whoever reads it finds the old one or the new one, and never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


@cache
def _template() -> Template:
    loader = PackageLoader("lightning_cnnviz", "sinks")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja", globals={"style": style, "script": script})
