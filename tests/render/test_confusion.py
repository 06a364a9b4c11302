"""A confusion matrix drawn: colors say the shares, the table and the numbers what sklearn says, at any size."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from torch import Tensor

from lightning_cnnviz.render import confusion
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.report import Picture, Report, Scalar, Table


def item(report: Report, kind: type[Any]) -> Any:
    return next(found for found in report.items if isinstance(found, kind))


def scalars(report: Report) -> dict[str, float]:
    return {report.key(found): found.value for found in report.items if isinstance(found, Scalar)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every matrix that is drawn."""
    kept: list[Any] = []
    draw = confusion.figure_pixels

    def keep(figure: Any) -> Tensor:
        kept.append(figure.axes[0])
        return draw(figure)

    monkeypatch.setattr(confusion, "figure_pixels", keep)
    return kept


def cells(report: Report, axes: Any, classes: int) -> Tensor:
    """The color of each cell, from its upper left part, where no number stands: `(classes, classes, 3)`."""
    pixels = item(report, Picture).pixels
    assert pixels.dtype == torch.uint8
    square = axes.get_window_extent()
    place = (torch.arange(classes) + 0.12) / classes
    rows = (pixels.shape[1] - square.y1 + place * square.height).round().long()
    columns = (square.x0 + place * square.width).round().long()
    return pixels[:, rows][:, :, columns].permute(1, 2, 0)


@pytest.mark.parametrize("classes", [2, 7, 20, 40])
def test_the_darker_the_larger_the_share(drawn: list[Any], classes: int) -> None:
    numbers = torch.Generator().manual_seed(classes)
    matrix = torch.randint(1, 40, (classes, classes), generator=numbers) + torch.eye(classes, dtype=torch.int64) * 300
    report = confusion_report(matrix)
    red = cells(report, drawn[0], classes)[..., 0].double().flatten()
    shares = (matrix / matrix.sum(1, keepdim=True)).double().flatten()
    order = shares.argsort()
    # Blues lose red the more, the darker they are; some steps of the map are equal to 8 bits.
    assert bool((red[order].diff() <= 1).all())
    assert red[order[-1]] < red[order[0]] - 60


def test_rows_are_true_and_columns_predicted(drawn: list[Any]) -> None:
    report = confusion_report(torch.tensor([[10, 0, 0], [0, 0, 10], [0, 0, 10]]))
    dark = cells(report, drawn[0], 3)[..., 0] < 100
    assert dark.tolist() == [[True, False, False], [False, False, True], [False, False, True]]


def test_numbers_are_sklearns() -> None:
    numbers = np.random.default_rng(0)
    true = numbers.integers(0, 6, 500)
    predicted = np.where(numbers.random(500) < 0.6, true, numbers.integers(0, 6, 500))
    report = confusion_report(torch.from_numpy(confusion_matrix(true, predicted)), list("abcdef"))
    assert scalars(report) == pytest.approx(
        {
            "confusion_stats/accuracy": accuracy_score(true, predicted),
            "confusion_stats/mean_class_accuracy": balanced_accuracy_score(true, predicted),
        }
    )
    table = item(report, Table)
    assert report.key(table) == "confusion/most_confused"
    for name, taken_for, images, share, of in table.rows:
        row, column = "abcdef".index(name), "abcdef".index(taken_for)
        assert images == ((true == row) & (predicted == column)).sum()
        assert of == (true == row).sum()
        assert share == pytest.approx(100 * images / of, abs=0.051)
    listed = [row[3] for row in table.rows]
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == 20
    assert "20 of 3" in table.caption or "20 of 2" in table.caption


def test_without_confusions_the_table_is_empty_and_all_is_right() -> None:
    report = confusion_report(torch.eye(3) * 5, ["a", "b", "c"])
    assert item(report, Table).rows == ()
    assert scalars(report) == {"confusion_stats/accuracy": 1.0, "confusion_stats/mean_class_accuracy": 1.0}
    assert "100.0 % of 15 images are right" in item(report, Picture).caption


def test_a_class_without_images_is_blank_named_and_not_counted(drawn: list[Any]) -> None:
    report = confusion_report(torch.tensor([[6, 2, 0], [0, 0, 0], [1, 1, 2]]), ["a", "b", "c"])
    assert scalars(report)["confusion_stats/mean_class_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert any("Without images, so left blank: b." in note for note in report.notes)
    row = cells(report, drawn[0], 3)[1]
    assert bool((row == torch.tensor([0xEF, 0xEF, 0xEC])).all())
    nothing = confusion_report(torch.zeros(3, 3))
    assert scalars(nothing)["confusion_stats/accuracy"] != scalars(nothing)["confusion_stats/accuracy"]


@pytest.mark.parametrize("classes", [2, 6, 12, 25, 26, 60, 61, 200])
def test_numbers_and_names_stand_where_there_is_room(drawn: list[Any], classes: int) -> None:
    confusion_report(
        torch.eye(classes, dtype=torch.int64) * 9 + 1, [f"category of images number {n}" for n in range(classes)]
    )
    (axes,) = drawn
    assert len(axes.texts) == (classes**2 if classes <= 12 else 0)
    across, down = axes.get_xticklabels(), axes.get_yticklabels()
    assert (len(across) == len(down) and across[0].get_text().startswith("catego")) == (classes <= 60)
    assert (len(across) == classes) == (classes <= 25)
    # Nothing is cut off at the border, and no name touches the next one.
    canvas: Any = FigureCanvasAgg(axes.figure)
    shown = [label for label in (*across, *down) if -0.5 <= sum(label.get_position()) <= classes - 0.5]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in (*shown, axes.title, axes.yaxis.label)]
    right, top = axes.figure.bbox.x1, axes.figure.bbox.y1
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= right and box.y1 <= top for box in boxes)
    places = [text.get_window_extent(canvas.get_renderer()) for text in across if text in shown]
    assert all(one.x1 <= two.x0 for one, two in itertools.pairwise(places))
    # All of it can be read where it is shown 400 pixels wide, and numbers stay within their cells.
    width, bar = axes.figure.bbox.width, axes.child_axes[0]
    letters = [*shown, *axes.texts, *bar.get_yticklabels(), axes.title, bar.yaxis.label, axes.xaxis.label]
    assert min(text.get_fontsize() for text in letters) * axes.figure.dpi / 72 * 400 / width > 7.99
    cell = axes.get_window_extent().width / classes
    assert all(text.get_window_extent(canvas.get_renderer()).width < cell for text in axes.texts)


def test_short_names_stand_level_and_long_ones_upright(drawn: list[Any]) -> None:
    confusion_report(torch.eye(10))
    confusion_report(torch.eye(10), ["electric guitar"] * 10)
    assert [axes.get_xticklabels()[0].get_rotation() for axes in drawn] == [0, 90]
    assert [label.get_text() for label in drawn[0].get_yticklabels()] == [str(number) for number in range(10)]


def test_what_has_occurred_is_not_written_as_zero() -> None:
    assert [confusion._percent(share) for share in (0.0, 0.001, 0.0051, 0.994, 1.0)] == ["0", "<1", "1", "99", "100"]


@pytest.mark.parametrize(
    ("matrix", "names", "match"),
    [
        (torch.ones(2, 3), None, r"is \(classes, classes\); this one is \(2, 3\)"),
        (torch.ones(0, 0), None, r"this one is \(0, 0\)"),
        (torch.tensor([[1.0, -1.0], [0.0, 1.0]]), None, "0 or more"),
        (torch.full((2, 2), float("nan")), None, "holds counts"),
        (torch.ones(2, 2), ["a"], "1 class names for a confusion matrix of 2 classes"),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(matrix: Tensor, names: list[str] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        confusion_report(matrix, names)
