"""Figures of several panels, composed with matplotlib, as pixels; and values as colors over an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.render._text import one_line
from lightning_cnnviz.report import ColorScale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "GRID",
    "INK",
    "LEAST_FONT",
    "PENCIL",
    "PICTURE_WIDTH",
    "class_color",
    "class_label",
    "color_scale",
    "figure_pixels",
    "fit_square",
    "house_style",
    "kept_figures",
    "layer_notes",
    "line_style",
    "new_figure",
    "overlaid",
    "scores_note",
    "shorten",
    "show_pixels",
    "target_label",
    "task_notes",
]

# Okabe and Ito's colors, told apart with any color vision, without their yellow, which vanishes on white.
# What is drawn in the house's own colors can be told by them, and has others on a dark page.
INK, PENCIL, GRID = "#010101", "#606060", "#e4e4e4"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
# Over an image a color is itself in both themes, also in the legend beside it.
_CLASS_COLORS = (*COLORS[:-1], "#303030")
_DASHES = ("-", "--", ":", "-.")
PICTURE_WIDTH, LEAST_FONT = 7.27, 10.5
"""Inches and points of figures of several panels: at half their width, 400 pixels, letters still have 8."""

_DPI = 110
_MARGIN = 0.12  # inches
_COLORS_OF_SCALE = 17  # one of them in the middle
# Above and below zero: bright enough to be seen on a dark image.
_FOR, _AGAINST = (230, 40, 30), (40, 110, 240)

_ROWS = 8  # images whose labels are listed


_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": PENCIL,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 10,
    "image.composite_image": False,  # pictures in vector files stay as they are, and apart
    "pdf.fonttype": 42,  # TrueType: what Type 3 draws can neither be searched nor edited everywhere
    "grid.color": GRID,
    "legend.edgecolor": GRID,
    "svg.fonttype": "none",  # text stays text: small, and found by the page's search
    "svg.hashsalt": "lightning_cnnviz",  # the same curve gives the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a layer's or a class's name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Open an empty figure in the house's style, in inches; draw, and take `figure_pixels`, inside the block."""
    from matplotlib.figure import Figure  # not pyplot: its list of open figures would be a trace, and a leak

    with house_style():
        yield Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and write figures in the house's style, whatever style the user has chosen for plots of their own.

    Silent about letters that the font has not: they are shown as boxes.
    """
    from matplotlib import style

    with style.context(["default", _STYLE]), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing from")
        yield


_KEPT: ContextVar[list[tuple[Tensor, Figure]] | None] = ContextVar("kept figures", default=None)


@contextmanager
def kept_figures() -> Iterator[list[tuple[Tensor, Figure]]]:
    """Collect what `figure_pixels` draws inside the block: the pixels, and the figure they were drawn from.

    For whoever wants lines and text where a report has pixels.
    """
    kept: list[tuple[Tensor, Figure]] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def figure_pixels(figure: Figure) -> Tensor:
    """Draw a figure: `(3, H, W)` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # as it is laid out now it stays: that takes as long as all else
    pixels = torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1).contiguous()
    kept = _KEPT.get()
    if kept is not None:
        kept.append((pixels, figure))
    return pixels


def fit_square(figure: Figure, axes: Axes, side: float) -> tuple[float, float]:
    """Make a figure just as large as a square of `side` inches for its axes, and what stands around it, need.

    Returns:
        Its width and height, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    canvas: Any = FigureCanvasAgg(figure)
    box: Any = axes.get_tightbbox(canvas.get_renderer())
    box = box.padded(_MARGIN * figure.dpi)
    width, height = box.width / figure.dpi, box.height / figure.dpi
    figure.set_size_inches(width, height)
    left, bottom = -box.x0 / figure.dpi, -box.y0 / figure.dpi
    axes.set_position((left / width, bottom / height, side / width, side / height))
    return width, height


def line_style(number: int) -> dict[str, Any]:
    """Return color and dashes of the n-th line, the same in all charts."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": _DASHES[number // len(COLORS) % len(_DASHES)]}


def class_color(number: int) -> tuple[float, float, float]:
    """Return the color of the n-th class of a map, red, green and blue from 0 to 1."""
    from matplotlib.colors import to_rgb

    return to_rgb(_CLASS_COLORS[number % len(_CLASS_COLORS)])


def show_pixels(axes: Axes, pixels: Tensor, title: str = "") -> None:
    """Show pixels `(3, H, W)` uint8 without axes."""
    height, width = pixels.shape[-2:]
    axes.imshow(pixels.permute(1, 2, 0).cpu().numpy(), extent=(0, width, height, 0), interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=LEAST_FONT, loc="left")


def class_label(names: Sequence[str] | None, number: int, length: int = 28) -> str:
    """Return the name of a class, short enough for a legend; its number where there is none.

    The number -1 stands for no class, where a network's scores are not finite.
    """
    if number < 0:
        return "no class"
    named = names is not None and 0 <= number < len(names)
    return shorten(str(names[number]), length) if named and names is not None else f"class {number}"


def target_label(classified: Classified, number: int, names: Sequence[str] | None, length: int = 28) -> str:
    """Return the name of what is followed of an image: its class, or that it is a value."""
    if not classified.task.has_classes:
        return classified.target_name
    return class_label(names, int(classified.targets[number]), length)


def layer_notes(layer: str, behind: int) -> tuple[str, ...]:
    """Return what is said of a default layer that is not the one that the head pools."""
    if not behind:
        return ()
    return (
        f"'{layer}' is the last layer that returns feature maps, but not what the head pools: {behind} layers with "
        "weights behind it work on tokens, which have no rows and columns to be shown. It was chosen since none was "
        "named.",
    )


def task_notes(classified: Classified, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return what a report says of the network's task, and of images with several labels, or without any."""
    said = [classified.task.sentence()]
    present, probabilities = classified.present, classified.all_probabilities
    if present is not None and probabilities is not None:
        of_maps = classified.task.kind == "segmentation"
        if classified.numbers is not None:
            said.append("Images are those that have the class; scores and probabilities are means over its pixels.")
        elif of_maps:
            said.append(
                "Of the classes in an image the one of the most pixels is followed, class 0 (mostly the background) "
                "only where it is alone; scores and probabilities are means over its pixels."
            )
        else:
            said.append("Of an image's labels the most probable one is followed.")
        rows = [
            ", ".join(f"{class_label(names, place)} {float(row[place]):.2f}" for place in there.nonzero().flatten())
            for there, row in zip(present[:_ROWS], probabilities, strict=False)
        ]
        if not of_maps:
            said.append("p of each label, image by image: " + "; ".join(row or "no label" for row in rows) + ".")
    if classified.unlabeled is not None:
        many = f"{int(classified.unlabeled.sum())} of {len(classified)}"
        said.append(f"{many} images have no label: the predicted class is followed.")
    return tuple(said)


def scores_note(classified: Classified) -> tuple[str, ...]:
    """Return the sentence that says of how many images the network's scores are not finite; none where all are."""
    lost = int((~classified.scored).sum())
    if not lost:
        return ()
    return (
        f"Not finite: the network's scores are NaN or infinite for {lost} of {len(classified)} images, so that these "
        "have no most probable class and no probability, and means over the images are NaN.",
    )


def overlaid(pixels: Tensor, values: Tensor, *, signed: bool) -> Tensor:
    """Lay values `(H, W)` over pixels `(3, H, W)` uint8 as colors: the stronger, the less of the image shows.

    Values are from 0 to 1, or if `signed` from -1 to 1: red above zero, blue below.
    """
    shown = values.clamp(-1 if signed else 0, 1)
    weight = 0.85 * shown.abs().sqrt()
    gray = pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    if signed:
        # One color for each sign: a color scale that passes through white would lie on the image like a haze.
        colored = torch.where(shown > 0, _level(_FOR), _level(_AGAINST))
    else:
        from matplotlib import colormaps

        colored = torch.from_numpy(colormaps["inferno"](shown.numpy())[..., :3]).permute(2, 0, 1).float() * 255
    return (gray * (1 - weight) + colored * weight).round().clamp(0, 255).to(torch.uint8)


def color_scale(what: str, *, signed: bool) -> ColorScale:
    """Return what the colors of `overlaid` stand for, on white if signed, else on black."""
    values = torch.linspace(-1 if signed else 0, 1, _COLORS_OF_SCALE)[None]
    blank = torch.full((3, *values.shape), 255 if signed else 0, dtype=torch.uint8)
    shown = overlaid(blank, values, signed=signed)[:, 0].T.tolist()
    colors = tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shown)
    low, middle = (f"against {what}", "nothing") if signed else ("nothing", "")
    return ColorScale(colors, low, f"for {what}", middle)


def _level(color: tuple[int, int, int]) -> Tensor:
    return torch.tensor(color, dtype=torch.float32).view(3, 1, 1)


def shorten(text: str, length: int) -> str:
    """Leave out the middle: the names of layers tell themselves apart at either end."""
    text = one_line(text)
    tail = length // 2
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"
