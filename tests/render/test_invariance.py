"""Invariance curves as a report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from render.classified import classified, has_color, pictures, scalars
from torch import Tensor

from lightning_cnnviz.core.images.invariance import InvarianceCurves, Sweep
from lightning_cnnviz.render.figures import class_color, kept_figures
from lightning_cnnviz.render.invariance import EXAMPLES, examples_at, invariance_report


def curves(count: int = 3, layers: int = 2, **changes: Any) -> InvarianceCurves:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    distances = values.float().abs().expand(layers, count, 5) * torch.arange(1.0, layers + 1).view(-1, 1, 1)
    probabilities = (0.8 - 0.35 * values.float().abs()).expand(count, 5)
    sweep = Sweep(
        transform="shift",
        label="shift, pixels",
        identity=0,
        values=values,
        raw=distances,
        relative=distances / 4,
        unit=distances / 8,
        probabilities=probabilities,
    )
    names = tuple(f"layer{number}" for number in range(layers))
    return InvarianceCurves(layers=names, untouched=classified(count), sweeps=(replace(sweep, **changes),))


def examples(count: int, size: int = 20) -> dict[str, list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "shift": [
            [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(5)]
            for _ in range(count)
        ]
    }


def test_two_pictures_a_transform_with_a_line_an_image() -> None:
    report = invariance_report(curves(), examples(3), class_names=["hen", "cock", "jay", "kite"], notes=("A note.",))
    assert report.view == "invariance"
    assert list(pictures(report)) == ["shift", "shift/distances"]
    picture = pictures(report)["shift"]
    assert picture.caption.startswith("shift, pixels: probability of the true class, a line an image")
    assert "0 of 3 images classified correctly" in picture.caption
    for number in range(3):
        assert has_color(picture.pixels, class_color(number))
    assert not has_color(picture.pixels, class_color(3))
    assert report.notes[-1] == "A note."
    assert "the paper's" in report.notes[0]


def test_areas_and_half_widths_are_means_over_the_images() -> None:
    found = scalars(invariance_report(curves(), {}))
    # Mean heights of |x| from -2 to 2; 0.8 has halved at 0.4 / 0.35 on either side.
    assert found["shift/layer0/area_raw"] == pytest.approx(1.0)
    assert found["shift/layer1/area_relative"] == pytest.approx(0.5)
    assert found["shift/layer1/area_unit"] == pytest.approx(0.25)
    assert found["shift/p_true/area"] == pytest.approx(0.8 - 0.35)
    assert found["shift/p_true/half_width"] == pytest.approx(0.4 / 0.35, rel=1e-5)
    assert len(found) == 2 * 3 + 2


def test_without_labels_it_is_the_class_that_was_found() -> None:
    report = invariance_report(replace(curves(), untouched=classified(3, labeled=False)), {})
    assert "shift/p_predicted/area" in scalars(report)
    caption = pictures(report)["shift"].caption
    assert caption.endswith("probability of the predicted class, a line an image")


def test_an_image_without_features_does_not_hide_the_others() -> None:
    whole = curves()
    relative = whole.sweeps[0].relative.clone()
    relative[0, 1] = math.nan
    found = scalars(invariance_report(curves(relative=relative), {}))
    assert found["shift/layer0/area_relative"] == pytest.approx(0.25)
    found = scalars(invariance_report(curves(relative=torch.full_like(relative, math.nan), identity=None), {}))
    assert math.isnan(found["shift/layer0/area_relative"])
    assert math.isnan(found["shift/p_true/half_width"])


@pytest.mark.parametrize("count", [1, 5, 8, 9, 40])
def test_any_number_of_images_can_be_drawn(count: int) -> None:
    report = invariance_report(curves(count), examples(min(count, 8)), class_names=["a long name of a class " * 3] * 4)
    sizes = [picture.pixels.shape for picture in pictures(report).values()]
    assert {size[2] for size in sizes} == {799}
    assert min(size[1] for size in sizes) > 350


def test_further_layers_go_to_pictures_of_their_own() -> None:
    report = invariance_report(curves(layers=7), examples(3))
    assert list(pictures(report)) == [
        "shift",
        "shift/distances",
        "shift/distances from layer3",
        "shift/distances from layer6",
    ]


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 1]), (5, [0, 1, 2, 3, 4]), (25, [0, 4, 8, 12, 16, 20, 24])])
def test_examples_are_even_with_the_first_and_the_last(count: int, expected: list[int]) -> None:
    assert examples_at(torch.arange(float(count))) == expected
    assert len(expected) <= EXAMPLES


@pytest.mark.parametrize(("count", "height"), [(1, 400), (2, 450), (8, 814), (20, 814)])
def test_pictures_are_as_high_as_their_images_need_and_name_every_line(count: int, height: int) -> None:
    with kept_figures() as kept:
        report = invariance_report(curves(count), examples(min(count, 8)), class_names=["hen", "cock", "jay", "kite"])
    scores, distances = (figure for _, figure in kept)
    assert pictures(report)["shift"].pixels.shape[1] <= height
    renderer = FigureCanvasAgg(scores).get_renderer()  # type: ignore[no-untyped-call]
    (names,) = [legend for axes in scores.axes for legend in [axes.get_legend()] if legend is not None]
    assert names.get_window_extent(renderer).y0 >= 0
    (below,) = distances.legends
    assert below.get_title().get_text().startswith("image's true class")
    assert [text.get_text() for text in below.get_texts()] == [
        ["hen", "cock", "jay", "kite"][n % 4] for n in range(min(count, 8))
    ]
    assert distances.get_suptitle() == "Shift: distance of features"
