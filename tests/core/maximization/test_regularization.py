"""Penalties against loops, transforms against what can be done without interpolating."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cnnviz.core.maximization.objectives import Reading
from lightning_cnnviz.core.maximization.regularization import (
    L2,
    Blur,
    Jitter,
    RandomTransform,
    Rotate,
    Scale,
    TotalVariation,
    robust,
)

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Fixed(RandomTransform):
    """A transform without chance, and without its seed."""

    def __init__(self, function: object) -> None:
        self._function = function

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self._function(images)  # type: ignore[operator,no-any-return]


def applied(transform: RandomTransform, images: Tensor = IMAGES, seed: int = 0) -> Tensor:
    return transform.apply(images, torch.Generator().manual_seed(seed))


def test_penalties_are_their_sums() -> None:
    reading = Reading(images=IMAGES, maps={}, centers={})
    for number, image in enumerate(IMAGES.numpy()):
        steps = [abs(image[c, y, x] - image[c, y - 1, x]) for c in range(3) for y in range(1, 12) for x in range(12)]
        across = [abs(image[c, y, x] - image[c, y, x - 1]) for c in range(3) for y in range(12) for x in range(1, 12)]
        expected = np.mean(steps) + np.mean(across)
        assert float(TotalVariation()(reading)[number]) == pytest.approx(expected)
        assert float(L2(0.25)(reading)[number]) == pytest.approx(np.mean((image - 0.25) ** 2))
    assert TotalVariation()(Reading(images=torch.rand(2, 3, 1, 1), maps={}, centers={})).tolist() == [0, 0]


@pytest.mark.parametrize("times", [2, 3])
def test_total_variation_does_not_depend_on_how_much_of_a_pattern_is_seen(times: int) -> None:
    values = [
        float(TotalVariation()(Reading(images=images, maps={}, centers={}))[0])
        for images in (IMAGES, IMAGES.repeat(1, 1, times, 1))
    ]
    assert values[0] == pytest.approx(values[1], rel=0.1)


def test_jitter_shifts_by_whole_pixels() -> None:
    seen = set()
    for seed in range(40):
        moved = applied(Jitter(2), seed=seed)
        shifts = [
            (down, across)
            for down in range(-2, 3)
            for across in range(-2, 3)
            if torch.allclose(moved[..., 2:-2, 2:-2], IMAGES.roll((down, across), (2, 3))[..., 2:-2, 2:-2])
        ]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) > 15


@pytest.mark.parametrize("turns", [1, 2, -1])
def test_right_angles_turn_squares_exactly(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_cnnviz.core.maximization.regularization._draw", lambda low, high, generator: high)
    assert torch.allclose(applied(Rotate(90 * turns if turns > 0 else 270)), torch.rot90(IMAGES, turns, (2, 3)))


def test_scaling_keeps_the_center_and_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_cnnviz.core.maximization.regularization._draw", lambda low, high, generator: high)
    ramp = (torch.arange(13.0) - 6).expand(1, 1, 13, 13)
    enlarged = applied(Scale(1, 2), ramp)
    assert torch.allclose(enlarged[0, 0, 6], (torch.arange(13.0) - 6) / 2, atol=1e-5)


@given(st.integers(0, 1000))
def test_a_chain_is_one_after_the_other(seed: int) -> None:
    """On an image that is linear in place, interpolation is exact, and so are chains away from the border."""
    side = 41
    places = torch.arange(side, dtype=torch.float64) - side // 2
    ramp = (2 * places[:, None] + places)[None, None]
    generator = torch.Generator().manual_seed(seed)
    chain = Jitter(3) + Rotate(20) + Scale(0.8, 1.2)
    one_by_one = Scale(0.8, 1.2).apply(Rotate(20).apply(Jitter(3).apply(ramp, generator), generator), generator)
    inner = slice(side // 2 - 6, side // 2 + 7)
    assert torch.allclose(applied(chain, ramp, seed)[..., inner, inner], one_by_one[..., inner, inner])


def test_other_transforms_stand_between() -> None:
    chain = Jitter(0) + Fixed(lambda images: images * 2) + Jitter(0) + Fixed(lambda images: images + 1)
    assert torch.allclose(applied(chain), IMAGES * 2 + 1)
    with pytest.raises(TypeError, match="unsupported operand"):
        Jitter(1) + 3  # type: ignore[operator]


def test_blur_is_a_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_cnnviz.core.maximization.regularization._draw", lambda low, high, generator: high)
    dot = torch.zeros(1, 2, 25, 25, dtype=torch.float64)
    dot[..., 12, 12] = 1.0
    blurred = applied(Blur(1.5), dot)[0, 1]
    places = np.arange(-12, 13)
    line = np.where(abs(places) <= 5, np.exp(-0.5 * (places / 1.5) ** 2), 0)
    expected = np.outer(line, line) / line.sum() ** 2
    assert np.allclose(blurred.numpy(), expected)
    assert torch.allclose(applied(Blur(3.0), torch.ones(1, 1, 5, 4)), torch.ones(1, 1, 5, 4))
    assert applied(Blur(3.0), torch.ones(1, 1, 1, 1)).shape == (1, 1, 1, 1)


@given(st.integers(1, 200), st.integers(1, 4), st.integers(0, 100))
def test_what_is_stood_by_default_keeps_size_and_range(side: int, channels: int, seed: int) -> None:
    images = torch.rand(1, channels, side, max(1, side // 2), generator=torch.Generator().manual_seed(seed))
    moved = applied(robust(side), images, seed)
    assert moved.shape == images.shape
    assert float(moved.min()) >= float(images.min()) - 1e-5
    assert float(moved.max()) <= float(images.max()) + 1e-5


def test_gradients_flow_and_chance_is_the_generators() -> None:
    images = IMAGES.clone().requires_grad_()
    chain = robust(96) + Blur(1.0)
    (gradient,) = torch.autograd.grad(applied(chain, images, 3).sum(), images)
    assert float(gradient.sum()) == pytest.approx(IMAGES.numel(), rel=0.2)
    before = torch.get_rng_state()
    assert torch.equal(applied(chain, seed=3), applied(chain, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(applied(chain, seed=3), applied(chain, seed=4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Jitter(-1), r"Jitter\(most=-1\)"),
        (lambda: Rotate(math.inf), r"Rotate\(degrees=inf\)"),
        (lambda: Blur(-0.5), r"Blur\(most=-0.5\)"),
        (lambda: Scale(0.0, 1.0), "0 < least <= most"),
        (lambda: Scale(1.1, 1.0), "0 < least <= most"),
    ],
)
def test_bad_arguments_are_named(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()  # type: ignore[operator]
