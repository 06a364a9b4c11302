"""Any item of a report as one picture, for sinks that take nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_cnnviz.render.charts import draw_curve
from lightning_cnnviz.render.image import draw_sheet
from lightning_cnnviz.render.tables import draw_table
from lightning_cnnviz.report import Curve, Gallery, Item, Scalar, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_figure", "draw_item"]

_DPI = 100


def draw_item(item: Item, *, title: str) -> Tensor:
    """Draw an item as one picture: a gallery as a sheet with its labels on it, a curve as a chart, a table as its rows.

    A picture is itself, and a curve has its own name for a title. A scalar is a table of one number.

    Args:
        item: What to draw; may be empty.
        title: What stands above it.

    Returns:
        `(3, H, W)` uint8.

    Example:
        >>> draw_item(Scalar("accuracy", 0.5), title="Accuracy").shape
        torch.Size([3, 144, 480])
    """
    if isinstance(item, Gallery):
        return draw_sheet(item, title=title)
    if isinstance(item, Curve):
        return draw_curve(item)
    if isinstance(item, Scalar):
        item = Table(item.name, ("name", "value"), ((item.name, item.value),))
    return draw_table(item, title=title) if isinstance(item, Table) else item.pixels


def as_figure(picture: np.ndarray[Any, Any]) -> Figure:
    """Return a figure of matplotlib's that is a picture `(H, W, 3)` uint8, pixel by pixel, for what takes no other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.figimage(picture)
    return figure
