"""What maximizes units of signals is drawn as curves with axes, of volumes as slices; also after it was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz import load, save
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.maximization.plan import (
    MaximizedLayer,
    input_bounds,
    maximize_plan,
    plan_classes,
    plan_layers,
)
from lightning_cnnviz.record._tables import columns_of
from lightning_cnnviz.render.display import Display, display_of_sample
from lightning_cnnviz.render.maximization import maximization_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patch_slices import draw_patch_slices
from lightning_cnnviz.render.signals import CHART_SIZE, draw_signal
from lightning_cnnviz.report import Gallery, Report

SIZES = {1: (2, 24), 3: (1, 5, 8, 9)}


def made(axes: int) -> tuple[list[MaximizedLayer], Normalization]:
    """A layer and the classes."""
    torch.manual_seed(0)
    kind: Any = nn.Conv1d if axes == 1 else nn.Conv3d
    pool: Any = nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool3d
    model = nn.Sequential(kind(SIZES[axes][0], 3, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(3, 2))
    images = torch.rand(6, *SIZES[axes])
    display = display_of_sample(Sample(images=images, labels=None, indices=torch.arange(6)), None)
    assert {pixels.shape[0] for pixels in display.pixels} == {3}
    bounds = input_bounds(images, *display.mean_and_std)
    plans = [*plan_layers(model, images[:1], features=2), plan_classes(model, images, 2)]
    options: Any = {"bounds": bounds, "steps": 3, "starts": 2}
    return [maximize_plan(model, plan, images, **options) for plan in plans if plan], display.normalization


def galleries(report: Report) -> list[Gallery]:
    return [item for item in report.items if isinstance(item, Gallery)]


def pixels_of(report: Report) -> list[Tensor]:
    return [tile.pixels for gallery in galleries(report) for row in gallery.rows for tile in row.tiles]


def test_signals_are_curves_of_one_scale_a_layer() -> None:
    layers, normalization = made(1)
    report = maximization_report(layers, normalization, compared=6)
    first = galleries(report)[0]
    assert not first.enlarge
    assert {tile.size for row in first.rows for tile in row.tiles} == {CHART_SIZE}
    assert "3 samples; last, the strongest of 6 real images" in first.caption
    optima, real = layers[0].optima, layers[0].strongest
    assert real is not None
    values = torch.cat(
        [*(optima.seen(number).flatten() for number in range(4)), *(part.flatten() for part in real.patches)]
    )
    low, high = float(values.min()), float(values.max())
    best = optima.ranked(1)[0]
    begin, end = optima.boxes[1].tolist()
    wanted = draw_signal(optima.seen(best), low=low, high=high, first=begin, window=(begin, end))
    assert torch.equal(first.rows[1].tiles[0].pixels, wanted)
    assert any("Signals are curves, a line for each of 2 channels" in note for note in report.notes)
    assert not any("Inputs are shown" in note for note in report.notes)


def test_of_chosen_channels_alone_there_are_lines() -> None:
    layers, normalization = made(1)
    chosen = maximization_report(layers, normalization.shows(1, 2))
    assert any("channel 1 of 2" in note for note in chosen.notes)
    (classes,) = (gallery for gallery in galleries(chosen) if gallery.name == layers[1].name == "classes")
    optima, tile = layers[1].optima, classes.rows[0].tiles[0]
    best = optima.images[optima.ranked(0)[0], 1:2]
    everything = [optima.images[:, 1], *(part[1] for part in layers[1].strongest.patches)]  # type: ignore[union-attr]
    low, high = (float(end) for end in torch.cat([part.flatten() for part in everything]).aminmax())
    assert torch.equal(tile.pixels, draw_signal(best, low=low, high=high))


def test_volumes_are_three_slices() -> None:
    layers, normalization = made(3)
    report = maximization_report(layers, normalization, compared=6)
    first, optima = galleries(report)[0], layers[0].optima
    assert "3 x 3 x 3 px" in first.caption
    best = optima.ranked(0)[0]
    box = optima.boxes[0].tolist()
    wanted = draw_patch_slices(optima.seen(best), box, (3, 3, 3), normalization.to_pixels, clip=False)
    assert torch.equal(first.rows[0].tiles[0].pixels, wanted)
    assert any("Three slices" in note for note in report.notes)


@pytest.mark.parametrize("axes", [1, 3])
def test_what_was_kept_is_drawn_as_before(axes: int, tmp_path: Path) -> None:
    layers, normalization = made(axes)
    save(layers, tmp_path / "layers")
    before, after = (maximization_report(each, normalization) for each in (layers, load(tmp_path / "layers")))
    assert before.notes == after.notes
    for one, other in zip(pixels_of(before), pixels_of(after), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("axes", [1, 3])
def test_its_numbers_are_a_table(axes: int) -> None:
    layers, normalization = made(axes)
    first, classes = columns_of("maximization", layers, Display(normalization=normalization))
    sides = ("left", "right") if axes == 1 else ("front", "top", "left", "back", "bottom", "right")
    boxes = torch.stack([torch.as_tensor(first[side]) for side in sides], 1)
    assert torch.equal(boxes, layers[0].optima.boxes.repeat_interleave(2, 0))
    assert classes["right"].tolist() == [SIZES[axes][-1]] * 4


def test_signals_may_have_the_values_that_they_take() -> None:
    bounds = input_bounds(torch.tensor([[[-3.0, 1.0], [0.0, 2.0]], [[0.0, 0.0], [4.0, 1.0]]]), (0.0,), (1.0,))
    assert (bounds.low, bounds.high) == ([-3.0, 0.0], [1.0, 4.0])
    assert input_bounds(torch.rand(2, 3, 4, 4), (0.5,), (0.25,)).low == [-2.0]
