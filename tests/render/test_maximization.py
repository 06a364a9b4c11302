"""The report of a maximization: what stands where, by which scale, and what is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.maximization.maximize import Maximization, Strongest
from lightning_cnnviz.core.maximization.optimum import OptimumInvariance
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.render.charts import draw_curve
from lightning_cnnviz.render.image import draw_sheet
from lightning_cnnviz.render.maximization import invariance_items, maximization_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Curve, Gallery, Scalar

PLAIN = Normalization((0.0,), (1.0,))


def result(objectives: int = 2, starts: int = 3, steps: int = 50) -> Maximization:
    count = objectives * starts
    images = torch.linspace(0, 1, count)[:, None, None, None].expand(count, 1, 8, 8).clone()
    activations = torch.tensor([4.0, 6.0, 5.0, 1.0, -2.0, 2.0, *range(count)][:count])
    history = activations[:, None] * torch.linspace(0, 1, steps)
    boxes = torch.tensor([[1, 1, 7, 7]]).expand(objectives, 4)
    names = tuple(f"conv, channel {number}" for number in range(objectives))
    return Maximization(
        objectives=names, starts=starts, images=images, activations=activations, history=history, boxes=boxes
    )


def real(activations: list[float]) -> Strongest:
    boxes = torch.tensor([[0, 3, 4, 9], [2, 2, 8, 8]])[: len(activations)]
    patches = tuple(torch.full((1, 4, 6) if number == 0 else (1, 6, 6), 0.5) for number in range(len(activations)))
    return Strongest(
        objectives=("a", "b"),
        activations=torch.tensor(activations),
        numbers=torch.tensor([7, 9]),
        patches=patches,
        boxes=boxes,
    )


def invariance(curvatures: Tensor | None = None) -> OptimumInvariance:
    turned = torch.tensor([-math.pi / 4, 0.0, math.pi / 4])
    images = torch.rand(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    activations = torch.tensor([[9.0, 10.0, 8.0]] * 4)
    found = torch.tensor([-1.0, -2.0, -90.0, -80.0]) if curvatures is None else curvatures
    return OptimumInvariance(
        objective="conv, channel 1",
        activation=10.0,
        optimum=torch.rand(1, 8, 8),
        alignment=0.99,
        least=2,
        curvatures=found,
        unseen=-10.0,
        residuals=torch.zeros(4),
        directions=torch.rand(4, 1, 8, 8),
        angles=turned,
        images=images,
        activations=activations,
        random=torch.tensor([7.0, 10.0, 7.0]),
        box=torch.tensor([0, 0, 8, 8]),
    )


def layer(**changes: object) -> MaximizedLayer:
    whole = MaximizedLayer(
        name="conv", captions=("channel 0", "channel 1"), optima=result(), strongest=real([2.0, 4.0])
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_starts_stand_strongest_first_with_the_real_image_last() -> None:
    report = maximization_report([layer()], PLAIN, compared=20)
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert (gallery.name, gallery.columns) == ("conv", 4)
    assert [row.caption for row in gallery.rows] == ["channel 0", "channel 1"]
    of_six = maximization_report([layer(channels=(0, 1), among=6)], PLAIN).items[0]
    assert isinstance(of_six, Gallery)
    assert of_six.caption.startswith("2 of 6 feature maps; 3 starts")
    first, second = gallery.rows
    assert [tile.caption for tile in first.tiles] == ["6 = 3x", "5 = 2.5x", "4 = 2x", "real 2"]
    assert [tile.numbers["activation"] for tile in second.tiles] == [2.0, 1.0, -2.0, 4.0]
    assert [tile.numbers["start"] for tile in first.tiles[:3]] == [1, 2, 0]
    assert first.numbers == {"activation": 6.0, "strongest real": 2.0}
    assert first.tiles[-1].numbers["image"] == 7
    # The highest of the first objective is image number 1 of 6, a gray of 1/5.
    assert bool((first.tiles[0].pixels == round(255 / 5)).all())
    assert {tuple(tile.pixels.shape) for row in gallery.rows for tile in row.tiles} == {(3, 6, 6)}
    # A patch that was cut at the upper border lies at the bottom of its tile.
    patch = first.tiles[-1].pixels
    assert bool((patch[:, 2:] == 128).all())
    assert not bool((patch[:, :2] == 128).any())
    assert "20 real images" in gallery.caption
    assert any("strongest of 20 real images" in note for note in report.notes)


def test_smaller_fields_stand_in_the_middle_of_their_tiles() -> None:
    found = replace(result(), boxes=torch.tensor([[1, 1, 7, 7], [3, 3, 5, 5]]))
    gallery = maximization_report([layer(optima=found, strongest=None)], PLAIN).items[0]
    assert isinstance(gallery, Gallery)
    first, second = (row.tiles[0].pixels for row in gallery.rows)
    assert first.shape == second.shape == (3, 6, 6)
    # The highest of the second objective is the last image, which is white.
    assert bool((second[:, 2:4, 2:4] == 255).all())
    assert len(second.unique()) == 2
    assert int((second == 255).sum()) == 3 * 4
    assert [row.tiles[0].inside for row in gallery.rows] == [None, (2, 2, 4, 4)]


def test_blue_is_explained_where_there_are_real_images() -> None:
    assert any("Blue" in note for note in maximization_report([layer()], PLAIN).notes)
    assert not any("Blue" in note for note in maximization_report([layer(strongest=None)], PLAIN).notes)


def test_the_ascent_is_that_of_the_best_start_by_the_scale() -> None:
    curve = maximization_report([layer()], PLAIN).items[1]
    assert isinstance(curve, Curve)
    assert curve.name == "conv/steps"
    assert [series.name for series in curve.series] == ["channel 0", "channel 1"]
    assert [len(series.x) for series in curve.series] == [25, 25]
    assert curve.series[0].x[0] == 1.5
    assert curve.series[0].y[-1] == pytest.approx(3.0, rel=0.05)
    assert curve.series[1].y[-1] == pytest.approx(0.5, rel=0.05)
    assert "strongest real" in curve.y_label


def test_many_objectives_share_a_band() -> None:
    many = MaximizedLayer(name="conv", captions=tuple(f"channel {n}" for n in range(9)), optima=result(9, 1, 3))
    curve = maximization_report([many], PLAIN).items[1]
    assert isinstance(curve, Curve)
    (series,) = curve.series
    assert series.name == "median of 9"
    assert series.low is not None
    assert series.high is not None
    assert series.low[-1] <= series.y[-1] <= series.high[-1]
    assert curve.y_label == "activation"


@pytest.mark.parametrize(("scales", "expected"), [([2.0, 4.0], 1.75), ([2.0, 0.0], math.nan)])
def test_scalars(scales: list[float], expected: float) -> None:
    report = maximization_report([layer(strongest=real(scales))], PLAIN)
    scalars = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    # Of two values torch's median is the lower one.
    assert scalars["conv/activation"] == 2.0
    assert scalars["conv/spread_of_starts"] == pytest.approx(1 / 3)
    assert scalars["conv/of_strongest_real"] == pytest.approx(
        0.5 if not math.isnan(expected) else expected, nan_ok=True
    )


def test_without_real_images() -> None:
    report = maximization_report([layer(strongest=None)], PLAIN)
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert gallery.columns == 3
    assert [tile.caption for tile in gallery.rows[0].tiles] == ["6", "5", "4"]
    assert "real" not in gallery.caption
    assert {item.name for item in report.items if isinstance(item, Scalar)} == {
        "conv/activation",
        "conv/spread_of_starts",
    }


def test_a_scale_that_is_not_positive_gives_no_ratio() -> None:
    gallery = maximization_report([layer(strongest=real([-1.0, 4.0]))], PLAIN).items[0]
    assert isinstance(gallery, Gallery)
    assert gallery.rows[0].tiles[0].caption == "6"
    assert gallery.rows[1].tiles[0].caption == "2 = 0.5x"


def test_invariance_is_a_row_a_direction_with_its_curve() -> None:
    gallery, curve = invariance_items("conv/channel 1", invariance(), PLAIN)
    assert isinstance(gallery, Gallery)
    assert isinstance(curve, Curve)
    assert [row.caption for row in gallery.rows] == ["least effect", "second least effect", "most effect",
                                                     "second most effect"]  # fmt: skip
    assert [tile.caption for tile in gallery.rows[0].tiles] == ["-45° 90%", "0° 100%", "+45° 80%", "direction"]
    assert gallery.rows[2].numbers == {"curvature": -90.0}
    assert [series.name for series in curve.series][-1] == "random directions"
    assert curve.series[0].x == pytest.approx((-45.0, 0.0, 45.0))
    assert curve.series[0].y == (9.0, 10.0, 8.0)


def test_a_linear_unit_is_said_to_be_one() -> None:
    linear = invariance(torch.full((4,), -10.001))
    shown = maximization_report([layer(invariances=((1, linear),))], PLAIN)
    assert not any("invariance" in item.name for item in shown.items)
    assert any("conv, channel 1, is linear" in note for note in shown.notes)
    curved = maximization_report([layer(invariances=((1, invariance()),))], PLAIN)
    assert [item.name for item in curved.items if "invariance" in item.name] == ["conv/channel 1/invariance"] * 2
    assert not any("is linear" in note for note in curved.notes)


def test_everything_can_be_drawn() -> None:
    report = maximization_report([layer(invariances=((0, invariance()),))], PLAIN, compared=3)
    for item in report.items:
        if isinstance(item, Gallery):
            assert draw_sheet(item, title=report.title).dtype == torch.uint8
        if isinstance(item, Curve):
            assert draw_curve(item).shape[0] == 3
