"""Reading feature maps: means that no batch changes, and strongest units in the order of ties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.brute_force import brute_force_top_k
from torch import Tensor

from lightning_cnnviz.core.top_patches import _reading
from lightning_cnnviz.core.top_patches._reading import read_at_once, read_later, spatial_means, strongest_units

sizes = st.integers(1, 40)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 5), sizes, sizes, st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_map_has_the_same_mean_in_any_batch(count: int, channels: int, height: int, width: int, seed: int) -> None:
    maps = noise(count, channels, height, width, seed=seed)
    means = spatial_means(maps)
    assert means.dtype == torch.float64
    for image in range(count):
        assert torch.equal(spatial_means(maps[image : image + 1]), means[image : image + 1])
        assert torch.equal(spatial_means(maps[image:].flip(0)), means[image:].flip(0))
    last = maps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(spatial_means(last), means)
    for image in range(count):
        for channel in range(channels):
            exact = math.fsum(maps[image, channel].flatten().tolist()) / (height * width)
            assert float(means[image, channel]) == pytest.approx(exact, rel=1e-12, abs=1e-14)


def test_means_of_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = noise(5, 3, 11, 7)
    whole = spatial_means(maps)
    monkeypatch.setattr(_reading, "_CHUNK", 2 * 77)
    assert torch.equal(spatial_means(maps), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_keep_to_what_is_finite_and_leave_other_maps_alone(dtype: torch.dtype) -> None:
    maps = noise(4, 2, 3, 5).to(dtype)
    before, clean = maps.clone(), spatial_means(maps)
    assert torch.equal(maps, before)
    maps[1, 0, 2, 2], maps[1, 0, 0, 1], maps[2, 1, 1, 1] = torch.nan, torch.inf, -torch.inf
    maps[3, 0] = torch.nan
    means = spatial_means(maps)
    for image, channel in ((1, 0), (2, 1)):
        finite = [value for value in maps[image, channel].flatten().tolist() if math.isfinite(value)]
        assert float(means[image, channel]) == pytest.approx(math.fsum(finite) / len(finite), rel=1e-12)
    assert float(means[3, 0]) == -torch.inf
    others = torch.ones(4, 2, dtype=torch.bool)
    others[1, 0] = others[2, 1] = others[3, 0] = False
    assert torch.equal(means[others], clean[others])


def test_the_largest_numbers_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    assert spatial_means(torch.full((1, 1, 64, 64), largest)).tolist() == [[largest]]


@pytest.mark.parametrize("rank_by", ["max", "mean"])
@pytest.mark.parametrize("units", [1, 3, 40])
def test_what_is_deferred_reads_the_same(rank_by: _reading.RankBy, units: int) -> None:
    maps = noise(4, 3, 4, 5).mul(3).round()
    maps[1, 2, 0, 0], maps[3, 0] = torch.nan, -torch.inf

    def admit(scores: Tensor) -> Tensor:
        return torch.tensor([1, 5, 9])

    first, second = read_at_once(maps, rank_by, units, admit), read_later(maps, rank_by, units)(admit)
    assert first.nonfinite is not None
    assert first.nonfinite.nonzero().tolist() == [[1, 2], [3, 0]]
    for name in ("nonfinite", "maxima", "entering", "scores", "activations", "positions"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.scores.shape == first.activations.shape == first.positions.shape == (3, units)
    # The tenth map is the one without any number.
    assert bool((first.scores[2] == -torch.inf).all())
    assert bool((first.scores[:, 20:] == -torch.inf).all())


@pytest.mark.parametrize("units", [1, 2])
def test_where_nothing_enters_nothing_is_looked_up(units: int) -> None:
    reading = read_at_once(noise(2, 3, 4, 5), "mean", units, lambda scores: torch.empty(0, dtype=torch.int64))
    assert reading.scores.shape == reading.activations.shape == reading.positions.shape == (0, units)
    assert reading.maxima.shape == (2, 3)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_strongest_units_of_a_map(height: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (5, height, width), generator=generator).float()
    values, positions = strongest_units(maps, count)
    assert values.shape == positions.shape == (5, min(count, height * width))
    expected = brute_force_top_k([maps], count, None)
    for line, units in enumerate(expected):
        assert values[line].tolist() == [unit[1] for unit in units]
        assert positions[line].tolist() == [unit[3] * width + unit[4] for unit in units]
