"""From results to reports, and from reports to pixels."""

from lightning_cnnviz.render.charts import curve_svg, draw_curve
from lightning_cnnviz.render.image import draw_sheet
from lightning_cnnviz.render.normalization import Normalization, find_normalization
from lightning_cnnviz.render.top_patches import top_patches_report, top_patches_table

__all__ = [
    "Normalization",
    "curve_svg",
    "draw_curve",
    "draw_sheet",
    "find_normalization",
    "top_patches_report",
    "top_patches_table",
]
