"""A report as HTML that stands by itself: no script, no request, readable on light and dark, wide and narrow."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from PIL import features
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_cnnviz.render._text import one_line
from lightning_cnnviz.render.charts import curve_svg
from lightning_cnnviz.render.figures import GRID, INK, PENCIL
from lightning_cnnviz.render.image import encode_tile, to_image
from lightning_cnnviz.render.tables import column_sides, scalar_table, written
from lightning_cnnviz.report import ColorScale, Curve, Gallery, Item, Number, Picture, Report, Row, Scalar, Table, Tile

__all__ = ["html_page", "html_part"]

_LARGEST = 112  # pixels of the screen a side of a tile
_MOST_ENLARGED = 8
_PICTURE_DENSITY = 1.25  # pixels of a picture in one of the screen
_LEGIBLE = 640  # narrower, a picture is moved under the finger and not made smaller
_LIGHT = "--paper:#fff;--ink:#1a1b1e;--pencil:#5b6068;--line:#dcdcd8;--even:#f6f6f4"
_DARK = "--paper:#17191c;--ink:#ecedf0;--pencil:#a2a8b3;--line:#3a3e46;--even:#1f2226"
# Where a notebook says which theme it has, that counts, and not what the system prefers.
_LIGHT_PLACES = ('[data-jp-theme-light="true"]', ".vscode-light", '[theme="light"]', '[data-theme="light"]')
_DARK_PLACES = ('[data-jp-theme-light="false"]', ".vscode-dark", '[theme="dark"]', '[data-theme="dark"]')
_STYLE = f"""
.cnnviz{{{_LIGHT};color-scheme:light}}
@media (prefers-color-scheme:dark){{.cnnviz{{{_DARK};color-scheme:dark}}}}
{",".join(f"{place} .cnnviz" for place in _LIGHT_PLACES)}{{{_LIGHT};color-scheme:light}}
{",".join(f"{place} .cnnviz" for place in _DARK_PLACES)}{{{_DARK};color-scheme:dark}}
.cnnviz{{background:var(--paper);color:var(--ink);font:14px/1.4 system-ui,sans-serif;padding:12px 14px;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere;border-radius:6px;text-align:left}}
.cnnviz *{{box-sizing:border-box}}
.cnnviz h2,.cnnviz h3,.cnnviz p{{margin:0;padding:0;color:inherit;font-family:inherit}}
.cnnviz h2{{font-size:18px;line-height:1.3;font-weight:650}}
.cnnviz h3{{font-size:15px;font-weight:650;margin-top:18px}}
.cnnviz .soft{{color:var(--pencil);font-size:12px}}
.cnnviz .bar .colors{{display:inline-block;width:140px;height:12px;margin:0 4px;vertical-align:-2px;
border:1px solid var(--line)}}
.cnnviz .rows{{display:flex;flex-wrap:wrap;gap:14px 18px;margin-top:8px}}
.cnnviz .row{{max-width:100%;min-width:0}}
.cnnviz .row b{{font-size:12.5px;display:block}}
.cnnviz .scroll{{overflow-x:auto;max-width:100%}}
.cnnviz .tiles{{display:grid;gap:2px 2px;margin-top:3px;justify-content:start}}
.cnnviz .tile{{margin:0;min-width:0}}
.cnnviz .tile figcaption{{font-size:10.5px;line-height:1.25;color:var(--pencil);white-space:nowrap;overflow:hidden;
text-overflow:ellipsis}}
.cnnviz img{{display:block;max-width:100%;width:100%;height:auto;margin:0;border:0}}
.cnnviz .pixels{{image-rendering:pixelated}}
.cnnviz .tile img{{outline:1px solid #8883;outline-offset:-1px}}
.cnnviz .picture{{max-width:100%;margin-top:6px;border-radius:4px}}
.cnnviz .chart{{margin-top:6px}}
.cnnviz .chart svg{{max-width:100%;min-width:460px;height:auto;display:block}}
.cnnviz .chart text{{fill:var(--ink)}}
.cnnviz table{{border-collapse:collapse;margin:6px 0 0;font-size:12.5px;color:inherit;border:0}}
.cnnviz th,.cnnviz td{{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border:0;
border-bottom:1px solid var(--line);overflow-wrap:normal;max-width:none;background:none;color:inherit}}
.cnnviz tbody tr,.cnnviz thead{{background:none!important;border:0}}
.cnnviz th{{font-weight:650;vertical-align:bottom}}
.cnnviz .right{{text-align:right}}
.cnnviz .notes{{margin-top:16px;max-width:90ch}}
"""
# A chart's colors that are of the paper and not of a line, by matplotlib's spelling.
_INKS = {"#ffffff": "paper", GRID: "line", PENCIL: "pencil", INK: "ink"}


def html_page(report: Report, items: Sequence[Item]) -> str:
    """Write a whole page with every row of the items."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(report.heading)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark">\n<style>body{margin:0} .cnnviz{min-height:100vh;border-radius:0!important}</style>'
        f"</head><body>{html_part(report, items)}</body></html>\n"
    )


def html_part(report: Report, items: Sequence[Item], *, rows: int | None = None) -> str:
    """Write a part of a page, with its own style.

    Args:
        report: Whose title and notes stand there.
        items: What to show of it.
        rows: At most so many rows of each gallery and table, and tiles no larger than they are shown; else all of it.
    """
    parts = [part for item in items if not isinstance(item, Scalar) for part in _item(item, rows)]
    scalars = [item for item in items if isinstance(item, Scalar)]
    if scalars:
        parts += _item(scalar_table(scalars), rows)
    notes = "".join(f"<p>{_text(note)}</p>" for note in report.notes)
    return (
        f'<div class="cnnviz"><style>{_STYLE}</style><h2>{_text(report.heading)}</h2>\n'
        + "\n".join(parts)
        + (f'\n<div class="notes soft">{notes}</div>' if notes else "")
        + "</div>"
    )


def _item(item: Gallery | Picture | Curve | Table, rows: int | None) -> Iterator[str]:
    total = len(item.rows) if isinstance(item, (Gallery, Table)) else 0
    cut = f"First {rows} of {total}; a saved file has all. " if rows is not None and total > rows else ""
    if not isinstance(item, Curve):  # which brings its own title
        yield f"<h3>{_text(item.name)}</h3>"
    if (cut or item.caption) and not isinstance(item, Curve):
        yield f'<p class="soft">{_text(cut + item.caption)}</p>'
    if isinstance(item, Gallery):
        if item.numbers:
            yield f'<p class="soft">{_figures(item.numbers)}</p>'
        if item.scale is not None:
            yield _color_bar(item.scale)
        yield f'<div class="rows">{"".join(_row(row, item, rows is not None) for row in item.rows[:rows])}</div>'
    elif isinstance(item, Picture):
        width = round(item.pixels.shape[2] / _PICTURE_DENSITY)
        style = f"width:{width}px;min-width:{min(width, _LEGIBLE)}px"
        image = _picture(item)
        yield f'<div class="scroll"><div class="picture" style="{style}">{image}</div></div>'
    elif isinstance(item, Curve):
        yield f'<div class="chart scroll">{_chart(item)}</div>'
    else:
        yield f'<div class="scroll">{_table(item, rows)}</div>'


def _color_bar(scale: ColorScale) -> str:
    colors = f"background:linear-gradient(to right,{','.join(scale.colors)})"
    return (
        f'<p class="soft bar">{_text(scale.low)} <span class="colors" style="{colors}"></span> '
        f"{_text(scale.high)}{_text(f', {scale.middle} in the middle') if scale.middle else ''}</p>"
    )


def _row(row: Row, gallery: Gallery, small: bool) -> str:
    longest = max((len(line.tiles) for line in gallery.rows), default=1)
    columns = gallery.columns or max(1, math.ceil(math.sqrt(longest)))
    tiles = "".join(_tile(tile, gallery, small) for tile in row.tiles)
    width = _shown_width(row.tiles[0].pixels, gallery) if row.tiles else 1
    grid = f"grid-template-columns:repeat({columns},minmax({min(width, 36)}px,{width}px))"
    caption = f"<b>{_text(row.caption)}</b>" if row.caption else ""
    figures = f'<div class="soft">{_figures(row.numbers)}</div>' if row.numbers else ""
    tiles = f'<div class="scroll"><div class="tiles" style="{grid}">{tiles}</div></div>'
    return f'<div class="row">{caption}{figures}{tiles}</div>'


def _tile(tile: Tile, gallery: Gallery, small: bool) -> str:
    said = ", ".join([*([tile.caption] if tile.caption else []), *_sentences(tile.numbers)])
    said += f", {tile.source.file}" if tile.source is not None and tile.source.file else ""
    caption = f"<figcaption>{_text(tile.caption)}</figcaption>" if tile.caption else ""
    width = _shown_width(tile.pixels, gallery)
    pixels = _shrunk(tile.pixels, 2 * width) if small else tile.pixels
    hard = gallery.enlarge and tile.pixels.shape[2] < width
    return f'<figure class="tile" title="{_text(said)}">{_image(pixels, said, hard=hard)}{caption}</figure>'


def _shown_width(pixels: Tensor, gallery: Gallery) -> int:
    """How wide a tile is shown, in pixels of the screen: a small one enlarged by a whole factor."""
    height, width = (max(side, 1) for side in pixels.shape[1:])
    side = max(height, width)
    scale = math.ceil(gallery.tile_side / side) if side < gallery.tile_side else min(1, _LARGEST / side)
    return max(1, round(width * min(scale, _MOST_ENLARGED)))


def _shrunk(pixels: Tensor, width: int) -> Tensor:
    """Make pixels smaller that would not be seen, on a screen of two dots a pixel."""
    if pixels.shape[2] <= width:
        return pixels
    size = max(1, round(pixels.shape[1] * width / pixels.shape[2])), width
    values = interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)
    return values[0].round().clamp(0, 255).byte()


def _image(pixels: Tensor, said: str, *, hard: bool = False, drawn: bool = False) -> str:
    media, data = _encode_drawing(pixels) if drawn else encode_tile(pixels)
    height, width = pixels.shape[1:]
    style = ' class="pixels"' if hard else ""
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return f'<img{style} width="{width}" height="{height}" alt="{_text(said)}" src="{source}">'


def _picture(picture: Picture) -> str:
    said = picture.caption or picture.name
    if not picture.svg:
        return _image(picture.pixels, said, drawn=True)
    height, width = picture.pixels.shape[1:]
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg.encode()).decode()}"
    return f'<img width="{width}" height="{height}" alt="{_text(said)}" src="{source}">'


def _encode_drawing(pixels: Tensor) -> tuple[str, bytes]:
    """Encode what is mostly lines and letters: without loss, which is smaller, unless photographs make it larger."""
    media, smallest = encode_tile(pixels)
    file = io.BytesIO()
    kind = "WEBP" if features.check("webp") else "PNG"
    to_image(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {"optimize": True}))
    return (f"image/{kind.lower()}", file.getvalue()) if file.tell() < len(smallest) else (media, smallest)


def _chart(curve: Curve) -> str:
    """Draw a curve as SVG in the colors of the page."""
    svg = curve_svg(curve).encode(errors="replace").decode()
    for color, name in _INKS.items():
        svg = re.sub(rf"(fill|stroke): {color}", rf"\1: var(--{name})", svg)
    return svg


def _table(table: Table, rows: int | None) -> str:
    lines = table.rows[:rows]
    sides = column_sides(table.columns, [[written(cell) for cell in row] for row in lines])
    classes = ['  class="right"' if side == "right" else "" for side in sides]
    head = "".join(f"<th{side}>{_text(name)}</th>" for side, name in zip(classes, table.columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{side}>{_cell(cell)}</td>" for side, cell in zip(classes, row, strict=True)) + "</tr>"
        for row in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Number | Tile | None) -> str:
    if not isinstance(cell, Tile):
        return _text(written(cell))
    image = _image(cell.pixels, cell.caption, hard=cell.pixels.shape[2] < 48)
    return f'<div style="width:48px">{image}</div>{_text(cell.caption)}'


def _figures(numbers: Mapping[str, Number]) -> str:
    return _text(" · ".join(_sentences(numbers)))


def _sentences(numbers: Mapping[str, Number]) -> list[str]:
    return [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()]


def _text(text: str) -> str:
    """Escape for HTML, also inside quotes."""
    return escape(one_line(text))
