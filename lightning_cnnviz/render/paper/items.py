"""Any item of a report as figures for paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from lightning_cnnviz.render.charts import curve_figure
from lightning_cnnviz.render.image import from_image, to_image
from lightning_cnnviz.render.paper.leaf import Leaf
from lightning_cnnviz.render.paper.sheets import sheet_leaves
from lightning_cnnviz.render.paper.tables import table_leaves
from lightning_cnnviz.render.tables import scalar_table
from lightning_cnnviz.report import Curve, Gallery, Picture, Scalar, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["item_figures"]

_NATURAL_DPI = 110  # with so many pixels an inch a picture is shown where there is room
_LEAST = 1.5  # inches


def item_figures(
    item: Gallery | Picture | Curve | Table | Sequence[Scalar],
    *,
    title: str,
    width: float,
    notes: Sequence[str] = (),
    dpi: int = 300,
    page_height: float | None = None,
) -> list[Figure]:
    """Draw an item as figures of matplotlib, all of a stated width; of scalars, a table of all of them.

    A curve is drawn as lines. Of a gallery, a table or a picture all text is text, and tiles stand in it as pictures
    with `dpi` dots an inch. Nothing is left out.

    Args:
        item: What to draw; may be empty.
        title: What stands above it; a curve has its own name.
        width: In inches.
        notes: What stands below it, each a paragraph.
        dpi: Dots an inch.
        page_height: In inches; what is longer goes on in another figure. By default there is one, as long as it takes.
    """
    if isinstance(item, Curve):
        return [curve_figure(item, width=width, notes=notes)]
    leaf = Leaf(round(width * dpi), dpi)
    most = None if page_height is None else round(page_height * dpi)
    if isinstance(item, Gallery):
        leaves = sheet_leaves(item, leaf, title=title, most_height=most)
    elif isinstance(item, Picture):
        leaves = [_picture_leaf(item, leaf, title)]
    else:
        table = item if isinstance(item, Table) else scalar_table(item)
        leaves = table_leaves(table, leaf, title=title, most_height=most)
    leaves[-1].foot(notes)
    return [leaf.figure() for leaf in leaves]


def _picture_leaf(picture: Picture, leaf: Leaf, title: str) -> Leaf:
    leaf.head(title, picture.caption)
    image = to_image(picture.pixels)
    wanted = max(image.width * leaf.dpi / _NATURAL_DPI, _LEAST * leaf.dpi)
    scale = min(wanted, leaf.width) / max(image.width, 1)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    leaf.place(0, leaf.top, from_image(image.resize(size, Image.Resampling.BICUBIC)))
    leaf.top += size[1]
    return leaf
