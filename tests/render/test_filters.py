from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.images.filters import LayerFilters
from lightning_cnnviz.render.filters import filters_report
from lightning_cnnviz.report import Curve, Gallery, Report, Scalar


def layer(kernels: Tensor, name: str = "conv") -> LayerFilters:
    rms = kernels.flatten(1).square().mean(1).sqrt()
    return LayerFilters(layer=name, features=tuple(range(len(kernels))), kernels=kernels, rms=rms)


def gallery(report: Report) -> Gallery:
    item = report.items[0]
    assert isinstance(item, Gallery)
    return item


def test_color_kernels_share_one_scale_and_zero_is_gray() -> None:
    kernels = torch.zeros(2, 3, 2, 2)
    kernels[0, 0, 0, 0], kernels[0, 1, 0, 1], kernels[1, 2, 1, 1] = 2.0, -2.0, 1.0
    rows = gallery(filters_report([layer(kernels)])).rows
    first, second = (tile.pixels for row in rows for tile in row.tiles)
    assert first[:, 0, 0].tolist() == [255, 128, 128]
    assert first[:, 0, 1].tolist() == [128, 0, 128]
    assert second[:, 1, 1].tolist() == [128, 128, 191]  # half as strong
    assert [row.caption for row in rows] == ["filter 0", "filter 1"]
    assert [len(row.tiles) for row in rows] == [1, 1]


def test_the_strongest_weights_alone_lose_contrast() -> None:
    kernels = torch.linspace(0.001, 1, 1200).view(16, 3, 5, 5)
    kernels[3, 0, 0, 0] = 100.0  # one of 1200 does not fade all others
    found = gallery(filters_report([layer(kernels)]))
    scale = float(kernels.flatten().sort().values[1193])
    assert f"one scale up to ±{scale:.3g}" in found.caption
    expected = (127.5 + 127.5 * kernels[8, :, 2, 2] / scale).round()
    assert found.rows[8].tiles[0].pixels[:, 2, 2].tolist() == expected.tolist()


def test_one_channel_is_gray() -> None:
    (row,) = gallery(filters_report([layer(torch.tensor([[[[1.0, -1.0]]]]))])).rows
    assert row.tiles[0].pixels.tolist() == [[[255, 0]]] * 3


def test_deeper_kernels_are_shown_channel_by_channel() -> None:
    kernels = torch.randn(4, 20, 3, 3, generator=torch.Generator().manual_seed(0))
    found = gallery(filters_report([layer(kernels)], channels=5))
    assert [row.caption for row in found.rows] == ["filter 0", "filter 1", "filter 2", "filter 3"]
    assert [len(row.tiles) for row in found.rows] == [5] * 4
    assert found.caption.startswith("4 kernels · 5 of 20 input channels · 3 x 3 · one scale up to ±")
    sign = found.rows[2].tiles[4].pixels[0].float() - 127.5
    assert torch.equal(sign > 0, kernels[2, 4] > 0)


def test_kernels_of_one_pixel_have_no_picture_but_numbers() -> None:
    report = filters_report([layer(torch.randn(4, 8, 1, 1), "squeeze")])
    assert [type(item) for item in report.items] == [Curve, *[Scalar] * 4]
    assert report.notes[-1] == "Kernels of 1 x 1 have no picture: squeeze."


def test_a_filter_that_dominates_is_counted_and_leads_the_curve() -> None:
    kernels = torch.ones(20, 3, 5, 5)
    kernels[7] *= 11
    kernels[3] *= 0.001
    report = filters_report([layer(kernels)])
    scalars = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    names = ("dominant_fraction", "near_zero_fraction", "median_rms", "max_rms")
    expected = dict(zip([f"conv/{name}" for name in names], (0.05, 0.05, 1.0, 11.0), strict=True))
    assert scalars == pytest.approx(expected)
    (curve,) = (item for item in report.items if isinstance(item, Curve))
    assert curve.series[0].x == tuple(range(1, 21))
    assert curve.series[0].y[0] == 11
    assert sorted(curve.series[0].y, reverse=True) == list(curve.series[0].y)
    assert gallery(report).caption.endswith("1 dominate · 1 near zero")


def test_some_of_many_filters_say_so() -> None:
    some = LayerFilters(layer="conv", features=(4, 9), kernels=torch.ones(2, 3, 2, 2), rms=torch.ones(12))
    found = gallery(filters_report([some]))
    assert found.caption.startswith("2 of 12 kernels · 2 x 2")
    assert [row.caption for row in found.rows] == ["filter 4", "filter 9"]


def test_weights_that_are_zero_or_no_numbers_are_drawn_gray() -> None:
    kernels = torch.zeros(2, 3, 2, 2)
    kernels[1] = torch.nan
    for row in gallery(filters_report([layer(kernels)])).rows:
        assert bool((row.tiles[0].pixels == 128).all())
