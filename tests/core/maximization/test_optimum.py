"""Invariance about the optimum: known eigenvectors come out, and Hessians are those of the dense computation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.objectives import ClassScore, UnitActivation
from lightning_cnnviz.core.maximization.optimum import lanczos, optimum_invariance
from lightning_cnnviz.core.maximization.parametrization import Basis, Fourier, Pixels


class Quadratic(nn.Module):
    """A unit x'Ax/2 + b'x."""

    def __init__(self, matrix: Tensor, linear: Tensor | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)
        self.linear = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype) if linear is None else linear)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return (0.5 * (flat @ self.matrix * flat).sum(1) + flat @ self.linear)[:, None]


def symmetric(size: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix of given eigenvalues, and its eigenvectors as columns."""
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes, _ = torch.linalg.qr(drawn)
    return axes @ values.diag() @ axes.T, axes


def smooth_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 4, 3)
    ).double()


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_eigenvectors_of_a_quadratic_unit_come_out() -> None:
    values = torch.linspace(5, -5, 48, dtype=torch.float64) + F.pad(torch.tensor([3.0, 1.0]), (0, 46)).double()
    matrix, axes = symmetric(48, values)
    found = optimum_invariance(
        Quadratic(matrix), ClassScore(0), image(3, 4, 4), directions=3, settle=400, points=5, angle=60.0
    )
    assert found.alignment == pytest.approx(1.0, abs=1e-6)
    top = F.cosine_similarity(found.optimum.flatten().double(), axes[:, 0], dim=0)
    assert abs(float(top)) == pytest.approx(1.0, abs=1e-6)
    square = float(found.optimum.double().square().sum())
    expected = torch.cat([values[1:4], values[-3:].flip(0)]) - values[0]
    assert torch.allclose(found.curvatures.double() / square, expected, atol=1e-4)
    overlap = (found.directions.flatten(1).double() @ axes[:, [1, 2, 3, 47, 46, 45]]).abs()
    assert torch.allclose(overlap, torch.eye(6, dtype=torch.float64), atol=1e-4)
    assert bool((found.residuals < 1e-3 * found.curvatures.abs().max()).all())
    # Turned by an angle toward eigenvector i, x'Ax/2 is known in closed form.
    for number, value in enumerate([*values[1:4], *values[-3:].flip(0)]):
        for point, angle in enumerate(found.angles.tolist()):
            known = 0.5 * square * (math.cos(angle) ** 2 * values[0] + math.sin(angle) ** 2 * value)
            assert float(found.activations[number, point]) == pytest.approx(float(known), rel=1e-4, abs=1e-3)
    assert found.unseen == pytest.approx(-square * float(values[0]), rel=1e-4)


def test_a_linear_unit_minds_all_directions_alike() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 4, bias=False)
    found = optimum_invariance(nn.Sequential(conv), UnitActivation("0", 1), image(2, 4, 4).float())
    kernel = conv.weight.detach()[1]
    assert float(F.cosine_similarity(found.optimum.flatten(), kernel.flatten(), dim=0)) > 0.9999
    assert found.linear
    assert torch.allclose(found.curvatures, torch.full((4,), -found.activation), rtol=1e-3)
    assert torch.allclose(found.activations, found.activation * found.angles.cos(), rtol=1e-3)
    assert torch.allclose(found.random, found.activation * found.angles.cos(), rtol=1e-3)


@pytest.mark.parametrize("basis", [Pixels(), Fourier()], ids=["pixels", "fourier"])
@pytest.mark.parametrize("settle", [0, 60])
def test_curvatures_are_those_of_the_dense_hessian_on_the_sphere(basis: Basis, settle: int) -> None:
    """Written again: the full Hessian, projected, with the sphere's own term, and its exact eigenvalues."""
    model, start, center = smooth_net(), image(1, 6, 6), 0.3
    found = optimum_invariance(
        model, ClassScore(1), start, basis=basis, center=center, settle=settle, directions=4, smoothing=0.0
    )
    point = basis.smooth(found.optimum[None].double() - center, inverse=True).flatten()

    def value(flat: Tensor) -> Tensor:
        return model(basis.smooth(flat.view(1, 1, 6, 6)) + center)[0, 1]

    hessian = torch.autograd.functional.hessian(value, point)
    gradient = torch.autograd.functional.jacobian(value, point)
    along = torch.linalg.svd(point[None]).Vh[1:]  # all that is orthogonal to the point, 35 of 36 dimensions
    dense = along @ hessian @ along.T * point.square().sum() - (gradient @ point) * torch.eye(35, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(dense).flip(0)
    expected = torch.cat([exact[:4], exact[-4:].flip(0)])
    assert torch.allclose(found.curvatures.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    # The second difference of the network's own activation agrees.
    for direction in found.directions.double().flatten(1)[[0, -1]]:
        step = 1e-3
        turned = [math.cos(a) * point + math.sin(a) * point.norm() * direction for a in (-step, 0.0, step)]
        low, middle, high = (float(value(part).detach()) for part in turned)
        second = (low - 2 * middle + high) / step**2
        assert min(abs(second - float(c)) for c in found.curvatures) < 1e-2 * float(found.curvatures.abs().max())


def test_settling_climbs_and_stays_on_the_sphere() -> None:
    model, start = smooth_net(), image(1, 6, 6)
    found = [optimum_invariance(model, ClassScore(1), start, settle=steps, center=0.2) for steps in (0, 5, 200)]
    assert found[0].activation < found[1].activation < found[2].activation
    assert found[2].alignment > 0.999 > found[0].alignment
    for each in found:
        assert float((each.optimum - 0.2).norm()) == pytest.approx(float((start - 0.2).norm()), rel=1e-5)
    assert torch.allclose(found[0].optimum, start.float(), atol=1e-6)


def test_rectifiers_have_curvature_only_once_softened() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2))
    sharp, soft = (
        optimum_invariance(model, UnitActivation("4", 0), image(1, 6, 6).float(), smoothing=s) for s in (0.0, 0.1)
    )
    assert sharp.linear
    assert not soft.linear
    # What the softened Hessian calls least and most is so in the network as it is.
    middle = len(soft.angles) // 2
    lost = soft.activation - soft.activations[:, [middle - 2, middle + 2]].mean(1)
    assert float(lost[:2].max()) < float(lost[2:].min())
    assert torch.allclose(soft.activations[:, middle], torch.tensor(soft.activation), rtol=1e-4)


def test_images_turn_on_the_sphere_toward_the_direction() -> None:
    found = optimum_invariance(smooth_net(), ClassScore(1), image(1, 6, 6), points=5, angle=90.0, center=0.5)
    radius = (found.optimum - 0.5).norm()
    assert torch.allclose(found.images[:, 2], found.optimum.expand(4, -1, -1, -1), atol=1e-5)
    assert torch.allclose(found.images[:, 4] - 0.5, radius * found.directions, atol=1e-5)
    assert torch.allclose(found.images[:, 0] - 0.5, -radius * found.directions, atol=1e-5)
    assert torch.allclose(found.directions.flatten(1).norm(dim=1), torch.ones(4), atol=1e-5)
    with torch.no_grad():
        values = torch.stack([smooth_net()(row.double())[:, 1] for row in found.images])
    assert torch.allclose(values.float(), found.activations, atol=1e-5)
    assert found.seen(0, 1).shape == (1, 6, 6)


@settings(max_examples=60)
@given(st.integers(2, 14), st.integers(0, 10_000), st.integers(1, 4))
def test_lanczos_in_full_is_the_dense_decomposition(size: int, seed: int, repeated: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    values[: min(repeated, size)] = values[0]  # one eigenvalue may come several times
    matrix, _ = symmetric(size, values, seed)
    without = torch.zeros(0, size, dtype=torch.float64)

    def draw() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    found, vectors, residuals = lanczos(lambda vector: matrix @ vector, draw, size, without)
    assert torch.allclose(found, values.sort(descending=True).values, atol=1e-7)
    assert torch.allclose(vectors @ matrix, found[:, None] * vectors, atol=1e-4)
    assert torch.allclose(vectors @ vectors.T, torch.eye(size, dtype=torch.float64), atol=1e-7)
    assert bool((residuals < 1e-4).all())


def test_lanczos_finds_the_ends_of_a_large_operator_and_keeps_out_what_it_is_told_to() -> None:
    size = 4000
    values = torch.linspace(-1, 1, size, dtype=torch.float64)
    values[0], values[-1], values[5] = -3.0, 2.5, 0.0
    generator = torch.Generator().manual_seed(0)
    without = torch.zeros(1, size, dtype=torch.float64)
    without[0, -1] = 1.0  # its eigenvalue would be the largest

    def draw() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    found, vectors, residuals = lanczos(lambda vector: values * vector, draw, 40, without)
    assert float(found[-1]) == pytest.approx(-3.0, abs=1e-6)
    assert abs(float(vectors[-1, 0])) == pytest.approx(1.0, abs=1e-5)
    assert float(residuals[-1]) < 1e-4
    assert float(found[0]) < 1.0
    assert float(vectors[:, -1].abs().max()) < 1e-9
    with pytest.raises(ValueError, match="iterations=0"):
        lanczos(lambda vector: vector, draw, 0, without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_find_the_same(dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"settle": 0, "directions": 1, "iterations": 8}
    exact = optimum_invariance(smooth_net(), ClassScore(1), image(1, 6, 6), **options)
    found = optimum_invariance(smooth_net().to(dtype), ClassScore(1), image(1, 6, 6), **options)
    coarse = dtype == torch.bfloat16
    assert torch.allclose(found.curvatures, exact.curvatures, rtol=0.15 if coarse else 1e-3)
    overlap = (found.directions * exact.directions).flatten(1).sum(1).abs()
    assert float(overlap.min()) > (0.9 if coarse else 0.999)
    assert found.images.dtype == found.activations.dtype == torch.float32


def test_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)).train()
    model[1].eval()
    before = [value.clone() for value in model.state_dict().values()]
    chance = torch.get_rng_state()
    with torch.inference_mode():
        optimum_invariance(model, UnitActivation("3", 0), torch.rand(1, 8, 8, generator=torch.Generator()))
    with pytest.raises(ValueError, match="channel 5"):
        optimum_invariance(model, UnitActivation("3", 5), torch.rand(1, 8, 8, generator=torch.Generator()))
    assert all(torch.equal(one, other) for one, other in zip(before, model.state_dict().values(), strict=True))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((1, 1, 6, 6), {}, r"optimum of shape \(1, 1, 6, 6\)"),
        ((1, 6, 6), {"directions": 0}, "directions=0"),
        ((1, 6, 6), {"iterations": 0}, "iterations=0"),
        ((1, 6, 6), {"points": 4}, "points=4.*odd"),
        ((1, 6, 6), {"angle": 0.0}, "angle=0"),
        ((1, 6, 6), {"smoothing": -1.0}, "smoothing=-1"),
        ((1, 6, 6), {"settle": -1}, "settle=-1"),
        ((1, 1, 1), {}, "one number"),
        ((1, 2, 2), {}, r"does not take images of shape \(1, 2, 2\)"),
    ],
)
def test_bad_input_is_named(shape: tuple[int, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        optimum_invariance(smooth_net(), ClassScore(0), image(*shape), **options)


def test_what_has_no_directions_is_refused() -> None:
    model = smooth_net()
    with pytest.raises(ValueError, match="gray image itself"):
        optimum_invariance(model, ClassScore(0), torch.full((1, 6, 6), 0.5), center=0.5)
    with torch.no_grad():
        model[5].weight.zero_()  # type: ignore[operator]
    with pytest.raises(ValueError, match="class 0 does not change with the image"):
        optimum_invariance(model, ClassScore(0), image(1, 6, 6))


@pytest.mark.parametrize("settle", [0, 30])
def test_progress_is_told_of_every_step_whether_it_was_needed_or_not(settle: int) -> None:
    told: list[int] = []

    def progress(work: Iterable[Any]) -> Iterator[Any]:
        for step in work:
            told.append(step)
            yield step

    options: dict[str, Any] = {"settle": settle, "iterations": 8}
    found = optimum_invariance(smooth_net(), ClassScore(1), image(1, 6, 6), progress=progress, **options)
    assert told == list(range(settle + 8))
    same = optimum_invariance(smooth_net(), ClassScore(1), image(1, 6, 6), **options)
    assert torch.equal(found.curvatures, same.curvatures)
