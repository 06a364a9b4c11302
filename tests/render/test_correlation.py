from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.images.correlation import ChannelCorrelation
from lightning_cnnviz.render.correlation import _cells, correlation_report
from lightning_cnnviz.report import Picture, Report, Scalar, Table


def result(
    matrix: Tensor, *, order: list[int] | None = None, images: int = 50, left_out: int = 0
) -> ChannelCorrelation:
    count = len(matrix)
    redundant = torch.arange(count) == 1
    return ChannelCorrelation(
        layer="conv",
        correlation=matrix.double(),
        order=torch.tensor(order) if order is not None else torch.arange(count),
        redundant=redundant,
        threshold=0.95,
        images=images,
        left_out=left_out,
    )


def picture(report: Report) -> Picture:
    (item,) = [item for item in report.items if isinstance(item, Picture)]
    return item


def colors(pixels: Tensor) -> set[tuple[int, ...]]:
    return {tuple(color) for color in pixels.flatten(1).T.tolist()}


MATRIX = torch.tensor([[1, -0.97, torch.nan], [-0.97, 1, torch.nan], [torch.nan] * 3])


def test_the_scale_is_fixed_and_constant_channels_are_gray() -> None:
    shown = picture(correlation_report([result(MATRIX)]))
    gray = (0x8F, 0x8F, 0x8B)
    assert {(103, 0, 31), gray} <= colors(shown.pixels)  # r = 1 in the darkest red
    assert "1 of 3 channels (33.3 %) are redundant" in shown.caption
    assert "1 constant, gray" in shown.caption
    weak = torch.eye(3) * 0.5 + 0.5
    without = picture(correlation_report([result(weak)]))
    assert gray not in colors(without.pixels)
    assert "constant" not in without.caption


def test_the_picture_follows_the_order() -> None:
    matrix = torch.eye(3)
    matrix[0, 2] = matrix[2, 0] = -1
    cells = _cells(result(matrix, order=[0, 2, 1]))
    assert cells.tolist() == [[1, -1, 0], [-1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("channels", [1, 4, 41, 700])
def test_it_is_readable_at_any_size(channels: int) -> None:
    shown = picture(correlation_report([result(torch.eye(channels))]))
    height, width = shown.pixels.shape[1:]
    assert 580 <= height <= 1200
    assert height <= width <= 1300


def test_many_channels_are_averaged_and_the_caption_says_so() -> None:
    matrix = torch.eye(2049)
    matrix[2048] = matrix[:, 2048] = torch.nan
    cells = _cells(result(matrix))
    assert cells.shape == (683, 683)
    assert cells[0, 0] == pytest.approx(1 / 3)
    assert cells[-1, -1] == pytest.approx(1 / 2)  # without the constant one
    assert "each cell is the mean over 3 x 3 channels" in picture(correlation_report([result(matrix)])).caption


def test_scalars_and_the_strongest_pairs_with_their_sign() -> None:
    report = correlation_report([result(MATRIX)])
    scalars = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    assert scalars == {"conv/redundant": pytest.approx(1 / 3), "conv/constant": pytest.approx(1 / 3)}
    (table,) = [item for item in report.items if isinstance(item, Table)]
    assert table.rows == (("conv", 0, 1, -0.97),)
    assert report.key(table) == "correlation/most_correlated"


def test_notes_tell_of_chance_and_of_images_that_are_left_out() -> None:
    notes = " ".join(correlation_report([result(MATRIX, images=25, left_out=3)]).notes)
    assert "Over 25 images, unrelated channels reach an |r| of about 0.40 by chance" in notes
    assert "images 3 of 'conv'" in notes


def test_nothing_measured_is_no_zero() -> None:
    report = correlation_report([result(torch.full((2, 2), torch.nan), images=1)])
    assert all(math.isnan(item.value) for item in report.items if isinstance(item, Scalar))
    assert "nothing measured" in picture(report).caption


def test_facts_name_the_channels_that_are_most_alike() -> None:
    correlation = torch.tensor([[1.0, -0.9, 0.2], [-0.9, 1.0, 0.5], [0.2, 0.5, 1.0]], dtype=torch.float64)
    layer = ChannelCorrelation(
        layer="conv",
        correlation=correlation,
        order=torch.arange(3),
        redundant=torch.zeros(3, dtype=torch.bool),
        threshold=0.95,
        images=50,
    )
    (facts,) = correlation_report([layer]).facts
    assert facts.layer == "conv"
    assert facts.neighbors == (((1, -0.9), (2, 0.2)), ((0, -0.9), (2, 0.5)), ((1, 0.5), (0, 0.2)))
