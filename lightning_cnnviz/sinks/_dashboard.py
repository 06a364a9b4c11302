"""A report as a dashboard is to have it: a handful of keys however many layers there are, and every number in a table.

Knows no product: what it makes are files, tables, lines and numbers under keys, ready to be handed over.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from lightning_cnnviz.render.how_to_read import HOW_TO_READ
from lightning_cnnviz.render.image import LOSSLESS_SIDE, to_image
from lightning_cnnviz.render.panel import draw_panel, overview, places_evenly
from lightning_cnnviz.report import Curve, Gallery, Number, Picture, Report, Row, Scalar, Series, Step, Table, Tile
from lightning_cnnviz.sinks.series import Measured, Summary, key_part, measured, prefix_of

__all__ = [
    "ByDepth",
    "Cells",
    "Content",
    "Encoded",
    "File",
    "Lines",
    "Value",
    "encode_report",
    "short_key",
    "with_looks",
]

_LAYERS = 8  # layers that stand for all as pictures
_PICTURES = 8  # of a set that is about no layer
_TABLE_ROWS = 250
_POINTS = 20  # of a line
_CHART_ROWS = 250
_LONGEST = 90  # letters of a key: files are named after it
_CAPTION = 160  # letters
_BY_LAYER = ("top_patches", "deconvnet")  # each layer has a picture of its own; of other views all layers share one
_NETWORK = "(network)"
_DEPTH = "layer, in order of depth"
_STATIC = ("layer_table",)

_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "top_patches": ("dead_features", "stability", "label_purity"),
    "filters": ("dominant_fraction", "near_zero_fraction"),
    "correlation": ("redundant",),
    "invariance": ("area_relative", "area", "change"),
    "maximization": ("of_strongest_real",),
}
"""Of a view, the numbers that are followed by a key of their own; all others stand in its table of layers."""
_DRAWN_BY_DEPTH: Mapping[str, tuple[str, ...]] = {
    **_FOLLOWED,
    "top_patches": ("dead_fraction", "stability", "label_purity"),
    "filters": ("dominant_fraction",),
    "layer_probe": (),  # has a curve of its own
    "online_probe": (),
}


@dataclass(frozen=True, kw_only=True)
class File:
    """A picture as a file.

    Attributes:
        content: Its bytes.
        type: `"png"` or `"jpg"`.
        size: Width and height.
        caption: One line.
    """

    content: bytes
    type: str
    size: tuple[int, int]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table whose pictures are files."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Number | File | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over a common axis, each with its points as x and y."""

    title: str
    x_label: str
    lines: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]


@dataclass(frozen=True, kw_only=True)
class ByDepth:
    """One number of every layer, in order of depth: of several looks it becomes `Lines`.

    Attributes:
        title: What stands above it.
        position: When it was, in epochs.
        global_step: Likewise, in optimizer steps.
        values: Of the layers; NaN where there is none.
    """

    title: str
    position: int | float
    global_step: int
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number, and which of its values stands for a run; one that does not change is said once."""

    value: float
    summary: Summary
    is_static: bool = False


Content: TypeAlias = "tuple[File, ...] | Cells | Lines | ByDepth | Value"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A report as a dashboard is to have it.

    Attributes:
        source: Whose it is.
        items: What stands under each key.
        legend: What each key shows, and of the view how to read it, for people.
        is_static: Whether it is the same at every look, so that no stage stands in its keys.
    """

    source: str
    items: Mapping[str, Content]
    legend: Mapping[str, str]
    is_static: bool = False

    def under(self, stage: str) -> Encoded:
        """Return it with a stage in its keys."""
        items = {f"{stage}/{key}": item for key, item in self.items.items()}
        return replace(self, items=items, legend={f"{stage}/{key}": text for key, text in self.legend.items()})


def encode_report(report: Report, step: Step) -> Encoded:
    """Draw and encode a report: pictures of eight layers evenly, a table of all, lines over depth, and totals."""
    is_static = report.view in _STATIC
    if is_static:
        step = replace(step, stage="fit")
    prefix = prefix_of(report.view, name=report.name, stage=step.stage)
    items: dict[str, Content] = {}
    legend: dict[str, str] = {}
    for key, content, text in (*_numbers(report, step, prefix), *_curves(report), *_tables(report), *_sheets(report)):
        key = short_key(key if key.startswith(f"{prefix}/") else f"{prefix}/{key}", _LONGEST)
        while key in items:  # a curve may be called like a gallery
            key = f"{key}_{_kind(content)}"
        items[key] = content
        legend[key] = text
    notes = " ".join(report.notes)
    explained = {key: " ".join(part for part in (text, notes) if part) for key, text in legend.items()}
    if items and report.view in HOW_TO_READ:
        explained[report.view] = f"How to read it: {HOW_TO_READ[report.view]}"
    return Encoded(source=report.source, items=items, legend=explained, is_static=is_static)


def with_looks(looks: Sequence[ByDepth]) -> Lines:
    """Return the looks at one number as a line each, over depth: the first, the newest, and those evenly between."""
    depth = max(len(look.values) for look in looks)
    most = max(1, min(6, _CHART_ROWS // max(depth, 1)))
    places = places_evenly(len(looks), most) if most > 1 else [len(looks) - 1]
    lines = {}
    for look in (looks[place] for place in places):
        name = f"epoch {look.position:.6g}"
        if name in lines:  # of epochs whose length is not known
            name = f"{name}, step {look.global_step}"
        lines[name] = _finite([float(x) for x in range(1, len(look.values) + 1)], look.values)
    return Lines(title=looks[-1].title, x_label=_DEPTH, lines=lines)


def short_key(key: str, most: int) -> str:
    """Return a key that is not longer than so many letters: the beginning, and what tells it from others."""
    if len(key) <= most:
        return key
    return f"{key[: max(most - 9, 0)]}_{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"


_Found: TypeAlias = "tuple[str, Content, str]"


def _numbers(report: Report, step: Step, prefix: str) -> Iterator[_Found]:
    """The totals, the table of layers, and each number over depth."""
    scalars = [item for item in report.items if isinstance(item, Scalar)]
    every = measured(scalars, view=report.view, name=report.name, stage=step.stage)
    layers = list(dict.fromkeys(item.layer for item in scalars if item.layer))
    followed = _FOLLOWED.get(report.view) if len(layers) > 1 else None  # the others stand in the table of layers
    for each in every:
        if not each.layer and (followed is None or each.name.rpartition("/")[2] in followed):
            what = f"{each.name} of the network" if _is_total(each, scalars) else each.name
            value = Value(value=each.value, summary=each.summary, is_static=report.view in _STATIC)
            yield each.key, value, f"{report.title}: {what}."
    if len(layers) < 2:
        return
    if not any(_tells_of_layers(item, layers) for item in report.items):
        text = f"{report.title}: every number of every layer, in order of depth."
        yield "layers", _table_of_layers(layers, every), text
    yield from _by_depth(report, step, layers, every)


def _by_depth(report: Report, step: Step, layers: Sequence[str], every: Sequence[Measured]) -> Iterator[_Found]:
    """Each number of the layers in order of depth; what is measured in several ways, as lines of one chart."""
    drawn = _DRAWN_BY_DEPTH.get(report.view)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for each in every:
        way, _, number = each.name.rpartition("/")
        if each.layer and (drawn is None or number in drawn):
            found.setdefault(number, {}).setdefault(way, {})[each.layer] = each.value
    for number, ways in found.items():
        title = f"{report.title}: {number.replace('_', ' ')}"
        ordered = {way: tuple(values.get(layer, math.nan) for layer in layers) for way, values in ways.items()}
        first = next(iter(ordered.values()))
        content: Content = ByDepth(title=title, position=step.position, global_step=step.global_step, values=first)
        if len(ways) > 1:
            depth = [float(place) for place in range(1, len(layers) + 1)]
            lines = {way: _finite(depth, values) for way, values in ordered.items()}
            content = Lines(title=title, x_label=_DEPTH, lines=lines)
        yield f"{key_part(number)}_by_depth", content, f"{title}, layer by layer."


def _is_total(number: Measured, scalars: Sequence[Scalar]) -> bool:
    return all(scalar.name != number.name for scalar in scalars)


def _tells_of_layers(item: object, layers: Sequence[str]) -> bool:
    """Whether it is a table with one row a layer already."""
    return isinstance(item, Table) and [row[0] for row in item.rows] == list(layers)


def _table_of_layers(layers: Sequence[str], every: Sequence[Measured]) -> Cells:
    """A row a layer and a column a number; last, what is measured of the network."""
    names = list(dict.fromkeys(each.name for each in every))
    values = {(each.layer, each.name): each.value for each in every}
    rows: list[tuple[Number | None, ...]] = []
    for depth, layer in enumerate([*layers, ""], start=1):
        cells = tuple(values.get((layer, name)) for name in names)
        if any(cell is not None for cell in cells):
            rows.append((depth if layer else None, layer or _NETWORK, *cells))
    return Cells(columns=("depth", "layer", *names), rows=tuple(rows))


def _tables(report: Report) -> Iterator[_Found]:
    """The report's own tables: without pictures, which stand on the sheets, and not longer than people read."""
    for item in report.items:
        if isinstance(item, Table):
            kept = [at for at in range(len(item.columns)) if not any(isinstance(row[at], Tile) for row in item.rows)]
            rows = _thinned([tuple(row[at] for at in kept) for row in item.rows], item)
            caption = item.caption or item.name
            if len(rows) < len(item.rows):
                caption = f"{len(rows):,} of {len(item.rows):,} rows, all others are in the record. {caption}"
            cells = Cells(columns=tuple(item.columns[at] for at in kept), rows=tuple(rows))
            layers = list(dict.fromkeys(each.layer for each in report.items if isinstance(each, Scalar) and each.layer))
            key = "layers" if layers and _tells_of_layers(item, layers) else _path(item.name)
            yield key, cells, f"{report.title}: {caption}."


def _thinned(rows: list[tuple[Number | Tile | None, ...]], table: Table) -> list[tuple[Number | File | None, ...]]:
    """Of a long table the rows that rank first, then those evenly between."""
    plain = [tuple(cell for cell in row if not isinstance(cell, Tile)) for row in rows]
    if len(plain) > _TABLE_ROWS and "rank" in table.columns:
        rank = table.columns.index("rank")
        plain = [row for row in plain if row[rank] == 1]
    return [plain[place] for place in places_evenly(len(plain), _TABLE_ROWS)]


def _curves(report: Report) -> Iterator[_Found]:
    """The report's curves: those of single layers as lines of one chart."""
    groups: dict[str, list[Curve]] = {}
    for item in report.items:
        if isinstance(item, Curve):
            rest = _rest(item.name, item.layer) if item.layer else item.name.rpartition("/")[2]
            groups.setdefault(rest or "curves", []).append(item)
    for rest, curves in groups.items():
        shown = [curves[place] for place in places_evenly(len(curves), _LAYERS)]
        lines: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
        for curve in shown:
            for series in curve.series:
                for name, line in _with_band(series):
                    own = (curve.layer or curve.name.rpartition("/")[0]) if len(curves) > 1 else ""
                    told = name if len(curve.series) > 1 or not own else ""
                    lines[" ".join(part for part in (own, told) if part)] = line
        first = curves[0]
        title = f"{report.title}: {rest}, {first.y_label}"
        yield _path(rest), Lines(title=title, x_label=first.x_label, lines=lines), f"{title}. {first.caption}"


def _with_band(series: Series) -> Iterator[tuple[str, tuple[tuple[float, ...], tuple[float, ...]]]]:
    """A line, and where it has a band its borders."""
    places = places_evenly(len(series.x), _POINTS)
    yield series.name, _finite([series.x[at] for at in places], [series.y[at] for at in places])
    if series.low is not None and series.high is not None:
        for name, values in (("lower", series.low), ("upper", series.high)):
            yield f"{series.name}, {name}", _finite([series.x[at] for at in places], [values[at] for at in places])


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return tuple(a for a, _ in points), tuple(b for _, b in points)


def _sheets(report: Report) -> Iterator[_Found]:
    """The report's pictures: those of layers on sheets, those of images one after the other."""
    groups: dict[str, list[Gallery]] = {}
    alone: list[Gallery] = []
    pictures = [item for item in report.items if isinstance(item, Picture)]
    for item in report.items:
        if isinstance(item, Picture) and item.layer:
            tile = Tile(item.pixels if item.plain is None else item.plain)
            gallery = Gallery(
                item.layer, (Row(item.layer, (tile,), channel=0),), caption=item.caption, layer=item.layer
            )
            groups.setdefault(_rest(item.name, item.layer), []).append(gallery)
        elif isinstance(item, Gallery) and item.layer:
            groups.setdefault(_rest(item.name, item.layer), []).append(item)
        elif isinstance(item, Gallery):
            alone.append(item)
    for rest, galleries in groups.items():
        shown = [galleries[place] for place in places_evenly(len(galleries), _LAYERS)]
        of = "" if len(shown) == len(galleries) else f"{len(shown)} of {len(galleries)} layers, evenly. "
        if rest == "" and report.view in _BY_LAYER:
            files = [_sheet(report, gallery, gallery.name) for gallery in shown]
            yield "pictures", _files(files), f"{report.title}, layer by layer. {of}".strip()
            continue
        if rest == "invariance":  # a strip a direction: of the deepest unit alone
            yield rest, _files([_sheet(report, shown[-1], shown[-1].name)]), f"{report.title}: {shown[-1].caption}."
            continue
        # What is said of one layer alone, as numbers of its own, is said with its name.
        alike = len({gallery.caption for gallery in shown}) == 1
        common = shown[-1].caption if alike else ""
        each = common or "; ".join(f"{gallery.layer}: {gallery.caption}" for gallery in shown)
        sheet = overview(shown, name=rest or report.view, caption=(of + common).strip(), strips=rest == "evolution")
        text = f"{report.title}{f': {rest}' if rest else ''}. {of}{each}."
        yield _path(rest) if rest else "pictures", _files([_sheet(report, sheet, rest)]), text
    loose = [item for item in pictures if not item.layer]
    for item in alone:
        yield _path(item.name), _files([_sheet(report, item, item.name)]), f"{report.title}: {item.caption}."
    if len(loose) == 1:
        yield _path(loose[0].name), _of_one_kind(loose), f"{report.title}: {loose[0].caption}."
        return
    kinds: dict[str, list[Picture]] = {}
    for item in loose:
        kinds.setdefault("distances" if _is_of_distances(item) else "pictures", []).append(item)
    for kind, items in kinds.items():
        key = "more_pictures" if kind == "pictures" and "" in groups else kind
        yield key, _of_one_kind(items), f"{report.title}: {items[0].caption}."


def _is_of_distances(picture: Picture) -> bool:
    """Whether it is one of the charts beside the pictures of images: of another size, it has a key of its own."""
    return picture.name.rpartition("/")[2].split(" ")[0] == "distances"


def _of_one_kind(pictures: Sequence[Picture]) -> tuple[File, ...]:
    shown = [pictures[place] for place in places_evenly(len(pictures), _PICTURES)]
    return _files([(item.pixels, f"{item.name} · {item.caption}") for item in shown])


def _sheet(report: Report, gallery: Gallery, name: str) -> tuple[Tensor, str]:
    title = " · ".join(part for part in (report.heading, name) if part)
    return draw_panel(gallery, title=title), f"{name or report.title} · {gallery.caption}"


def _files(pictures: Sequence[tuple[Tensor, str]]) -> tuple[File, ...]:
    """Encode pictures that stand under one key, all of one size: dashboards show others wrongly."""
    height = max(pixels.shape[1] for pixels, _ in pictures)
    width = max(pixels.shape[2] for pixels, _ in pictures)
    padded = []
    for pixels, caption in pictures:
        whole = pixels[:, :1, -1:].expand(3, height, width).clone()  # what is beside it is of its own paper's color
        whole[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        padded.append(_file(whole, caption))
    return tuple(padded)


def _kind(content: Content) -> str:
    return {Cells: "table", Lines: "chart", ByDepth: "chart", Value: "number"}.get(type(content), "pictures")


def _rest(name: str, layer: str) -> str:
    """What of an item's name says neither its layer nor its channel."""
    if not layer:
        return name
    rest = name.removeprefix(layer).strip("/")
    return rest.rpartition("/")[2]


def _path(name: str) -> str:
    return "/".join(key_part(part) for part in name.split("/"))


def _file(pixels: Tensor, caption: str) -> File:
    """Encode pixels: as JPEG, since a PNG costs a third of a second a megapixel, but for tiny pictures."""
    image, buffer = to_image(pixels), io.BytesIO()
    caption = " ".join(caption.split())
    caption = caption if len(caption) <= _CAPTION else f"{caption[: _CAPTION - 1]}…"
    if max(image.size) <= LOSSLESS_SIDE:
        image.save(buffer, "PNG")
        return File(content=buffer.getvalue(), type="png", size=image.size, caption=caption)
    # Full color resolution: half of it smears the color edges of small filters.
    image.save(buffer, "JPEG", quality=75, subsampling=0)
    return File(content=buffer.getvalue(), type="jpg", size=image.size, caption=caption)
