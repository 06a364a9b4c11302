"""A confusion matrix as a report: which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_cnnviz.render.figures import figure_pixels, fit_square, new_figure, shorten
from lightning_cnnviz.report import Picture, Report, Scalar, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["confusion_report"]

_MOST_NUMBERS, _MOST_NAMES = 25, 60  # classes, up to which cells carry numbers, and axes names
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

    Numbers stand in the cells for up to 25 classes, names at the axes for up to 60. Scalars are the accuracy, and the
    mean over the classes of each one's accuracy, 0 to 1; NaN where images are missing in the matrix.

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
    names = [str(name) for name in class_names] if class_names is not None else [str(n) for n in range(len(counts))]
    totals = counts.sum(1)
    fractions = counts / totals.clamp(min=1)[:, None]
    seen = totals > 0
    right = counts.diagonal().sum() / counts.sum()  # NaN where there is no image
    caption = _caption(float(right), int(counts.sum()))
    lost = f"Not finite: {unscored:,} images are left out, since the network's scores of them are NaN or infinite"
    items = (
        Picture(
            "matrix", _drawn(counts, fractions, seen, names), caption=f"{caption}. {lost}" if unscored else caption
        ),
        _pairs(counts, fractions, names),
        Scalar("accuracy", math.nan if unscored else float(right)),
        Scalar("mean_class_accuracy", math.nan if unscored else float(fractions.diagonal()[seen].mean())),
    )
    notes = (f"{lost}.", *_notes(seen, names)) if unscored else _notes(seen, names)
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


def _drawn(counts: Tensor, fractions: Tensor, seen: Tensor, names: Sequence[str]) -> Tensor:
    """Draw the matrix: `(3, H, W)` uint8."""
    from matplotlib.colors import PowerNorm

    classes, side = len(names), _side(len(names))
    with new_figure(side, side) as figure:
        axes = figure.add_subplot()
        shown = (100 * fractions).masked_fill(~seen[:, None], math.nan).numpy()
        # By the square root: among many classes, a few percent are what is to be seen.
        image = axes.imshow(shown, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto", interpolation="nearest")
        axes.set_facecolor(_BLANK)
        _label_axes(axes, [shorten(name, 24) for name in names])
        if classes <= _MOST_NUMBERS:
            _write_numbers(axes, counts, fractions, seen)
        bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.12 / side, 0, 0.16 / side, 1)), ticks=_TICKS)
        bar.set_label("% of the true class")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        total = int(counts.sum())
        right = f"{100 * float(counts.diagonal().sum()) / total:.1f} % right" if total else "none classified"
        axes.set_title(f"{classes} classes, {total:,} images, {right}", loc="left", fontsize=12, fontweight="bold")
        fit_square(figure, axes, side)
        return figure_pixels(figure)


def _side(classes: int) -> float:
    """Inches of the square of cells."""
    if classes <= _MOST_NUMBERS:
        return max(3.2, 0.42 * classes)
    # Cells of whole pixels, down to two.
    return max(2, round(1000 / classes)) * classes / _DPI


def _font_size(classes: int) -> float:
    return 10 if classes <= 12 else 9 if classes <= _MOST_NUMBERS else 7.5


def _label_axes(axes: Axes, names: Sequence[str]) -> None:
    classes = len(names)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    if classes > _MOST_NAMES:
        axes.set_ylabel(f"true class, 0 to {classes - 1}")
        axes.set_xlabel(f"taken for, 0 to {classes - 1}")
        return
    axes.set_ylabel("true class")
    axes.set_xlabel("taken for")
    size = _font_size(classes)
    level = max(len(name) for name in names) * size / 100 <= _side(classes) / classes  # names stand side by side
    axes.set_xticks(range(classes), names, fontsize=size, rotation=0 if level else 90)
    axes.set_yticks(range(classes), names, fontsize=size)
    # Thin lines of paper between the cells.
    axes.set_xticks([place - 0.5 for place in range(1, classes)], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, classes)], minor=True)
    axes.grid(visible=True, which="minor", color="white", linewidth=1.2 if classes <= _MOST_NUMBERS else 0.5)
    axes.tick_params(which="both", length=0)


def _write_numbers(axes: Axes, counts: Tensor, fractions: Tensor, seen: Tensor) -> None:
    """Write percentages into the cells; of few classes, with the number of images below."""
    classes = len(counts)
    roomy = classes <= 6
    size = 11 if roomy else 9 if classes <= 12 else 8
    for row, column in seen[:, None].expand_as(counts).nonzero().tolist():
        count, fraction = int(counts[row, column]), float(fractions[row, column])
        if count == 0 and not roomy:
            continue
        text = f"{100 * fraction:.1f} %\n{count:,}" if roomy else _percent(fraction)
        bold, color = "bold" if row == column else "normal", "white" if fraction > _DARK else "#202020"
        cell = axes.text(column, row, text, ha="center", va="center", fontsize=size, linespacing=1.4)
        cell.set(color=color, fontweight=bold)


def _percent(fraction: float) -> str:
    """Whole percent; not "0" for what has occurred."""
    return "<1" if 0 < fraction < 0.005 else f"{100 * fraction:.0f}"
