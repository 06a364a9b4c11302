"""Parametrizations against sums written out, and laws that hold for any image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cnnviz.core.maximization.parametrization import (
    Basis,
    Box,
    Fourier,
    Parametrization,
    Pixels,
    Sphere,
    color_correlation,
)

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
BASES: list[Basis] = [Pixels(), Fourier(), Fourier(decay=0.5)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 4)])
def test_the_fourier_basis_is_the_sum_of_its_waves(height: int, width: int) -> None:
    basis, numbers = Fourier(decay=1.0), noise(1, 1, height, width // 2 + 1, 2)
    expected = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            # The other half of the spectrum is the conjugate of the first.
            half = column <= width // 2
            at = (row, column) if half else (-row % height, width - column)
            real, imaginary = (float(value) for value in numbers[0, 0, at[0], at[1]])
            if column in (0, width / 2):  # where both halves meet, the mean of the two is what a real image has
                other = numbers[0, 0, -row % height, column]
                real, imaginary = (real + float(other[0])) / 2, (imaginary - float(other[1])) / 2
            f_row, f_column = min(row, height - row) / height, min(column, width - column) / width
            amplitude = 1 / max(math.hypot(f_row, f_column), 1 / max(height, width)) / 4
            sign = 1 if half else -1
            for y in range(height):
                for x in range(width):
                    angle = 2 * math.pi * (row * y / height + column * x / width)
                    wave = real * math.cos(angle) - sign * imaginary * math.sin(angle)
                    expected[y, x] += amplitude * wave / math.sqrt(height * width)
    assert torch.allclose(basis.image(numbers, height, width)[0, 0], expected, atol=1e-12)


@given(SIZES, st.sampled_from(BASES))
def test_smoothing_is_linear_self_adjoint_and_can_be_undone(size: tuple[int, int, int], basis: Basis) -> None:
    first, second = noise(2, *size, seed=1), noise(2, *size, seed=2)
    assert torch.allclose(basis.smooth(basis.smooth(first), inverse=True), first, atol=1e-9)
    assert torch.allclose(basis.smooth(first + 2 * second), basis.smooth(first) + 2 * basis.smooth(second), atol=1e-9)
    assert torch.allclose((basis.smooth(first) * second).sum(), (first * basis.smooth(second)).sum(), atol=1e-8)


@given(SIZES, st.sampled_from(BASES), st.floats(-5, 5), st.floats(0.1, 9), st.booleans())
def test_images_keep_their_bounds(
    size: tuple[int, int, int], basis: Basis, low: float, span: float, sphere: bool
) -> None:
    bounds = Sphere(span, low) if sphere else Box(low, low + span)
    made = Parametrization(basis, bounds)
    numbers = made.start([3, 4], size, torch.float64, torch.device("cpu")) * 50
    images = made.images(numbers, *size[1:])
    assert images.shape == (2, *size)
    if sphere:
        assert torch.allclose((images - low).flatten(1).norm(dim=1), torch.tensor(span, dtype=torch.float64))
    else:
        assert float(images.min()) >= low - 1e-9
        assert float(images.max()) <= low + span + 1e-9


def test_bounds_by_channel() -> None:
    images = Box([0.0, 10.0], [1.0, 30.0]).keep(torch.zeros(1, 2, 1, 1))
    assert images.flatten().tolist() == [0.5, 20.0]
    with pytest.raises(ValueError, match="2 values given for images of 3 channels"):
        Box([0.0, 10.0], [1.0, 30.0]).keep(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ValueError, match="low must be below high"):
        Box(1.0, 1.0)
    with pytest.raises(ValueError, match="low must be below high"):
        Box([0.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="radius=0"):
        Sphere(0.0)
    with pytest.raises(ValueError, match=r"colors of shape \(2, 2\) for images of 3 channels"):
        Parametrization(colors=torch.eye(2)).mix(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_mixed_noise_has_the_colors_of_the_images(channels: int) -> None:
    mixing = noise(channels, channels)
    images = torch.einsum("dc,nchw->ndhw", mixing, noise(50, channels, 20, 20, seed=1)) + 3
    colors = color_correlation(images).double()
    made = Parametrization(colors=colors)
    mixed = made.mix(noise(50, channels, 20, 20, seed=2))
    wanted, found = (torch.cov(part.transpose(0, 1).flatten(1)).view(channels, channels) for part in (images, mixed))
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=0.05)
    assert float(colors.norm(dim=0).max()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(made.mix(mixed, inverse=True), noise(50, channels, 20, 20, seed=2), atol=1e-4)


def test_images_of_one_color_have_colors_too() -> None:
    assert color_correlation(torch.ones(2, 3, 4, 4)).isfinite().all()
    assert torch.linalg.matrix_rank(color_correlation(torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1))) == 3
