"""Any item of a report as one picture, for sinks that take nothing else."""

from __future__ import annotations

from torch import Tensor

from lightning_cnnviz.render.charts import draw_curve
from lightning_cnnviz.render.image import draw_sheet
from lightning_cnnviz.render.tables import draw_table
from lightning_cnnviz.report import Curve, Gallery, Item, Scalar, Table

__all__ = ["draw_item"]


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
