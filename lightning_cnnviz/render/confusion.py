"""A confusion matrix as a report: which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_cnnviz.render._text import one_line
from lightning_cnnviz.render.display import readable_names
from lightning_cnnviz.render.figures import (
    LEAST_FONT,
    PICTURE_WIDTH,
    figure_pixels,
    fit_square,
    new_figure,
    shorten,
)
from lightning_cnnviz.render.vector import late_svg
from lightning_cnnviz.report import NamedCells, Picture, Report, Scalar, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_report"]

_MOST_NAMES = 60  # classes, up to which axes carry names
_ROUGHLY = 5.0  # inches of the square, before it is known what stands around it
# In heights of a letter: what a cell needs for a whole percentage, for one with a decimal, and a name's line.
_NUMBER, _PERCENTAGE, _NAME = 2.25, 5.2, 1.25
_PAIRS = 20
_DARK = 0.3  # fraction above which the color is so dark that text on it is white
_TICKS = (0, 1, 5, 10, 25, 50, 75, 100)
_BLANK = "#efefec"  # a class without images
_DPI = 110


def confusion_report(
    matrix: Tensor,
    class_names: Sequence[str] | None = None,
    *,
    title: str = "Which classes are taken for which",
    unscored: int = 0,
) -> Report:
    """Draw a confusion matrix as fractions of each true class, with a table of the pairs that are confused most.

    Numbers stand in the cells of up to about 16 classes, names at the axes for up to 60: of many, some evenly. Scalars
    are the accuracy, and the mean over the classes of each one's accuracy, 0 to 1; NaN where images are missing in the
    matrix.

    Args:
        matrix: `(classes, classes)`, how many images of each true class, a row, were taken for each class, a column.
        class_names: Of the classes.
        title: What stands above the report.
        unscored: How many images are missing in the matrix, since the network's scores of them are not finite.

    Raises:
        ValueError: The matrix is not square, has a negative count, or does not have a name for each class.

    Example:
        >>> report = confusion_report(torch.tensor([[8, 2], [1, 9]]), ["cat", "dog"])
        >>> [table.rows[0] for table in report.items if isinstance(table, Table)]
        [('cat', 'dog', 2, 20.0, 10)]
    """
    counts = torch.as_tensor(matrix).detach().cpu().to(torch.float64)
    _check(counts, class_names)
    names = [*readable_names([str(n) for n in range(len(counts))] if class_names is None else class_names)]
    shown = [one_line(name) for name in names]
    totals = counts.sum(1)
    fractions = counts / totals.clamp(min=1)[:, None]
    seen = totals > 0
    right = counts.diagonal().sum() / counts.sum()  # NaN where there is no image
    caption = _caption(float(right), int(counts.sum()))
    lost = f"Not finite: {unscored:,} images are left out, since the network's scores of them are NaN or infinite"
    drawn, svg, box = _drawn(counts, fractions, seen, shown)
    cells = NamedCells(box=box, row="true class", rows=tuple(names), column="taken for", columns=tuple(names))
    items = (
        Picture("matrix", drawn, caption=f"{caption}. {lost}" if unscored else caption, svg=svg, cells=cells),
        _pairs(counts, fractions, names),
        Scalar("accuracy", math.nan if unscored else float(right)),
        Scalar("mean_class_accuracy", math.nan if unscored else float(fractions.diagonal()[seen].mean())),
    )
    notes = (f"{lost}.", *_notes(seen, shown)) if unscored else _notes(seen, shown)
    return Report("confusion", title=title, items=items, notes=notes)


def _check(counts: Tensor, class_names: Sequence[str] | None) -> None:
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts):
        raise ValueError(f"a confusion matrix is (classes, classes); this one is {tuple(counts.shape)}")
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise ValueError("a confusion matrix holds counts, 0 or more; normalized ones (normalize=...) are no counts")
    if class_names is not None and len(class_names) != len(counts):
        raise ValueError(f"{len(class_names)} class names for a confusion matrix of {len(counts)} classes")


def _caption(right: float, images: int) -> str:
    if not images:
        return "No image was classified"
    return f"{100 * right:.1f} % of {images:,} images are right; each row is one true class"


def _notes(seen: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    notes = ["Percentages are of the images of the true class: a row sums to 100 %."]
    missing = [name for name, there in zip(names, seen.tolist(), strict=True) if not there]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        notes.append(f"Without images, so left blank: {', '.join(missing[:8])}{more}.")
    return tuple(notes)


def _pairs(counts: Tensor, fractions: Tensor, names: Sequence[str]) -> Table:
    """The wrong cells, from the largest fraction down; of equal ones, those of more images first."""
    totals = counts.sum(1)
    wrong = [(row, column) for row, column in counts.nonzero().tolist() if row != column]
    wrong.sort(key=lambda cell: (-float(fractions[cell]), -float(counts[cell]), cell))
    rows = tuple(
        (
            names[row],
            names[column],
            int(counts[row, column]),
            round(100 * float(fractions[row, column]), 1),
            int(totals[row]),
        )
        for row, column in wrong[:_PAIRS]
    )
    columns = ("true class", "taken for", "images", "in % of the class", "images of the class")
    more = f"the first {_PAIRS} of {len(wrong):,} pairs that occur" if len(wrong) > _PAIRS else "every pair that occurs"
    return Table("most_confused", columns, rows, caption=f"Most confused: {more}")


# The picture


@dataclass(frozen=True)
class _Size:
    """How large it is drawn: letters that can be read when it is shown 400 pixels wide.

    Attributes:
        side: Inches of the square of cells.
        scale: Of letters.
    """

    side: float
    scale: float = 1.0

    @property
    def font(self) -> float:
        return LEAST_FONT * self.scale

    def letters(self, classes: int) -> float:
        """How many heights of a letter a cell has."""
        return 72 * self.side / classes / self.font


def _drawn(
    counts: Tensor, fractions: Tensor, seen: Tensor, names: Sequence[str]
) -> tuple[Tensor, Any, tuple[float, float, float, float]]:
    """Draw the matrix: `(3, H, W)` uint8, as SVG, and the box of its cells, see `NamedCells`."""
    with new_figure(_ROUGHLY, _ROUGHLY) as figure:
        axes = _fill(figure, counts, fractions, seen, names, _Size(_ROUGHLY))
        size = _size(len(names), PICTURE_WIDTH - (fit_square(figure, axes, _ROUGHLY)[0] - _ROUGHLY))
    with new_figure(size.side, size.side) as figure:
        axes = _fill(figure, counts, fractions, seen, names, size)
        fit_square(figure, axes, size.side)
        place: Any = axes.get_position()
        return figure_pixels(figure), late_svg(figure), (place.x0, 1 - place.y1, place.width, place.height)


def _size(classes: int, side: float) -> _Size:
    """Given the side that there is room for; of many classes, cells of whole pixels, down to two."""
    if classes <= _MOST_NAMES:
        return _Size(side)
    whole = max(2, round(side * _DPI / classes)) * classes / _DPI
    return _Size(whole, max(1.0, whole / side))


def _fill(figure: Figure, counts: Tensor, fractions: Tensor, seen: Tensor, names: Sequence[str], size: _Size) -> Axes:
    from matplotlib.colors import PowerNorm

    classes, total = len(names), int(counts.sum())
    axes = figure.add_subplot()
    shown = (100 * fractions).masked_fill(~seen[:, None], math.nan).numpy()
    # By the square root: among many classes, a few percent are what is to be seen.
    image = axes.imshow(shown, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto", interpolation="nearest")
    axes.set_facecolor(_BLANK)
    _label_axes(axes, [shorten(name, 24 if classes <= 12 else 14) for name in names], size)
    if size.letters(classes) >= _NUMBER:
        _write_numbers(axes, counts, fractions, seen, size)
    place = (1 + 0.12 * size.scale / size.side, 0, 0.16 * size.scale / size.side, 1)
    bar = figure.colorbar(image, cax=axes.inset_axes(place), ticks=_TICKS)
    bar.set_label("% of the true class", fontsize=size.font)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=size.font)
    right = f"{100 * float(counts.diagonal().sum()) / total:.1f} % right" if total else "none classified"
    title = f"{classes} classes, {total:,} images, {right}"
    axes.set_title(title, loc="left", fontsize=1.1 * size.font, fontweight="bold")
    return axes


def _label_axes(axes: Axes, names: Sequence[str], size: _Size) -> None:
    classes = len(names)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    if classes > _MOST_NAMES:
        axes.set_ylabel(f"true class, 0 to {classes - 1}", fontsize=size.font)
        axes.set_xlabel(f"taken for, 0 to {classes - 1}", fontsize=size.font)
        axes.tick_params(labelsize=size.font)
        return
    axes.set_ylabel("true class", fontsize=size.font)
    axes.set_xlabel("taken for", fontsize=size.font)
    # Of names for which there is no room, some evenly.
    places = range(0, classes, math.ceil(_NAME / size.letters(classes)))
    shown = [names[place] for place in places]
    level = 0.72 * max(map(len, shown)) <= size.letters(classes) * places.step  # names stand side by side
    axes.set_xticks(places, shown, fontsize=size.font, rotation=0 if level else 90)
    axes.set_yticks(places, shown, fontsize=size.font)
    # Thin lines of paper between the cells.
    axes.set_xticks([place - 0.5 for place in range(1, classes)], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, classes)], minor=True)
    axes.grid(visible=True, which="minor", color="white", linewidth=1.2 if classes <= 25 else 0.5)
    axes.tick_params(which="both", length=0)


def _write_numbers(axes: Axes, counts: Tensor, fractions: Tensor, seen: Tensor, size: _Size) -> None:
    """Write percentages into the cells; where there is room, with the number of images below."""
    roomy = size.letters(len(counts)) >= _PERCENTAGE
    for row, column in seen[:, None].expand_as(counts).nonzero().tolist():
        count, fraction = int(counts[row, column]), float(fractions[row, column])
        if count == 0 and not roomy:
            continue
        text = f"{100 * fraction:.1f} %\n{count:,}" if roomy else _percent(fraction)
        bold, color = "bold" if row == column else "normal", "white" if fraction > _DARK else "#202020"
        cell = axes.text(column, row, text, ha="center", va="center", fontsize=size.font, linespacing=1.4)
        cell.set(color=color, fontweight=bold)


def _percent(fraction: float) -> str:
    """Whole percent; not "0" for what has occurred."""
    return "<1" if 0 < fraction < 0.005 else f"{100 * fraction:.0f}"
