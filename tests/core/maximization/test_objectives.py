"""Objectives are numbers of a pass, and add up as numbers do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_cnnviz.core.maximization.objectives import (
    ChannelActivation,
    ClassScore,
    Objective,
    Reader,
    Reading,
    UnitActivation,
)
from lightning_cnnviz.core.network.hooks import analysis_mode

MAPS = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
SCORES = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
READING = Reading(images=torch.zeros(4, 1, 8, 8), maps={"a": MAPS}, centers={"a": (2, 3)}, scores=SCORES)
WEIGHTS = st.floats(-3, 3).map(lambda value: round(value, 3))


def test_each_reads_its_number() -> None:
    assert torch.equal(UnitActivation("a", 1)(READING), MAPS[:, 1, 2, 3])
    assert torch.equal(UnitActivation("a", 1, 4, 0)(READING), MAPS[:, 1, 4, 0])
    assert torch.equal(ChannelActivation("a", 2)(READING), MAPS[:, 2].mean((1, 2)))
    assert torch.equal(ClassScore(6)(READING), SCORES[:, 6])
    assert torch.equal(UnitActivation("a", 1).anywhere(READING), MAPS[:, 1].flatten(1).amax(1))
    assert torch.equal(UnitActivation("a", 1, 4, 0).anywhere(READING), MAPS[:, 1, 4, 0])


@given(WEIGHTS, WEIGHTS, WEIGHTS)
def test_they_add_up(first: float, second: float, third: float) -> None:
    a, b, c = UnitActivation("a", 0), ChannelActivation("a", 1), ClassScore(2)
    combined = first * a - (b * second + third * -c)
    expected = first * a(READING) - second * b(READING) + third * c(READING)
    assert torch.allclose(combined(READING), expected, atol=1e-5)
    assert set(combined.layers) == {"a"}
    assert combined.reads_scores


def test_they_say_what_they_are() -> None:
    texts = {
        str(-UnitActivation("conv1", 3)): "-conv1, channel 3",
        str(
            2 * UnitActivation("conv1", 3, 0, 1) - ChannelActivation("b", 2)
        ): "2 * conv1, channel 3 at (0, 1) - mean of b, channel 2",
        str(ClassScore(1) + ClassScore(2, "tench")): "class 1 + class 2 (tench)",
    }
    assert all(made == expected for made, expected in texts.items())
    with pytest.raises(TypeError, match="unsupported operand"):
        UnitActivation("a", 1) + 2  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
        UnitActivation("a", 1) * UnitActivation("a", 2)  # type: ignore[operator]
    with pytest.raises(ValueError, match="give both, or neither"):
        UnitActivation("a", 1, row=2)


def test_the_parts_of_a_reading_are_its_images() -> None:
    parts = READING.split(3)
    assert [len(part.images) for part in parts] == [3, 1]
    for objective in (UnitActivation("a", 1), ClassScore(0)):
        assert torch.equal(torch.cat([objective(part) for part in parts]), objective(READING))


def test_several_layers_in_one_pass_survive_writing_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    images = torch.randn(5, 1, 8, 8)
    objectives: list[Objective] = [UnitActivation("0", 1), UnitActivation("2", 0), UnitActivation("4", 1)]
    with analysis_mode(model):
        reading = Reader(model, objectives, images[:1])(images)
        assert torch.allclose(reading.maps["0"], model[0](images), atol=1e-6)
        assert torch.allclose(reading.maps["4"][:, :, 0, 0], model(images), atol=1e-6)
    assert bool((reading.maps["0"] < 0).any())


def test_the_center_is_the_middle_unit_that_sees_most() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    with analysis_mode(model):
        reader = Reader(model, [UnitActivation("1", 0)], torch.zeros(1, 1, 9, 7))
        assert reader(torch.zeros(1, 1, 9, 7)).centers == {"1": (4, 3)}
        assert reader.unit_box(UnitActivation("1", 0)).tolist() == [2, 1, 7, 6]
        assert reader.unit_box(UnitActivation("1", 0, 0, 0)).tolist() == [0, 0, 3, 3]
