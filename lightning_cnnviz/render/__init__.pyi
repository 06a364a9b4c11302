from .charts import curve_svg as curve_svg
from .charts import draw_curve as draw_curve
from .image import draw_sheet as draw_sheet
from .normalization import Normalization as Normalization
from .normalization import find_normalization as find_normalization
from .top_patches import top_patches_report as top_patches_report
from .top_patches import top_patches_table as top_patches_table
