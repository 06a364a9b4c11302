"""Maximization of networks of signals and of volumes, against plain computations and patterns that were planted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.other_axes import ecg_resnet
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.maximize import maximize, strongest_images, unit_input_size
from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore, Reader, Reading, UnitActivation
from lightning_cnnviz.core.maximization.optimum import optimum_invariance
from lightning_cnnviz.core.maximization.parametrization import Box, Fourier, Parametrization, Sphere
from lightning_cnnviz.core.maximization.plan import maximize_plan, plan_classes, plan_layers
from lightning_cnnviz.core.maximization.regularization import L2, Blur, Jitter, Rotate, Scale, TotalVariation
from lightning_cnnviz.core.network.hooks import analysis_mode

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (2, 40), 2: (2, 14, 16), 3: (2, 8, 10, 12)}
of_axes = pytest.mark.parametrize("axes", [pytest.param(1, id="signals"), pytest.param(3, id="volumes")])


def net(axes: int) -> nn.Sequential:
    torch.manual_seed(0)
    kind = CONVOLUTIONS[axes]
    pool = nn.AdaptiveAvgPool1d(1) if axes == 1 else nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(kind(2, 4, 5), nn.ReLU(), kind(4, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 3)).eval()


@of_axes
def test_objectives_and_their_gradients_are_those_of_a_plain_computation(axes: int) -> None:
    model, size = net(axes), SIZES[axes]
    place = {"column": 5} if axes == 1 else {"depth": 1, "row": 2, "column": 3}
    asked = [UnitActivation("2", 1, **place), ChannelActivation("2", 2), ClassScore(1)]
    images = torch.randn(3, *size, requires_grad=True)
    with analysis_mode(model):
        reader = Reader(model, asked, torch.zeros(1, *size))
        with torch.enable_grad():
            reading = reader(images)
            found = [objective(reading) for objective in asked]
            own = [torch.autograd.grad(value.sum(), images, retain_graph=True)[0] for value in found]
    maps = model[:3](images)
    wanted = [maps[(slice(None), 1, *place.values())], maps[:, 2].flatten(1).mean(1), model(images)[:, 1]]
    for value, gradient, plain in zip(found, own, wanted, strict=True):
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), images, retain_graph=True)[0])


@of_axes
def test_a_box_is_where_the_gradient_is(axes: int) -> None:
    model, size = net(axes), SIZES[axes]
    assert unit_input_size(model, "2", size) == (2, *[7] * axes)
    optima = maximize(model, [UnitActivation("2", 1), ClassScore(0)], size, starts=1, steps=4)
    assert optima.boxes[1].tolist() == [*[0] * axes, *size[1:]]
    images = torch.randn(1, *size, requires_grad=True)
    maps = model[:3](images)[0, 1]
    center = tuple(optima.boxes[0][:axes].tolist())  # without padding a unit is at its field's corner
    maps[center].backward()
    seen = images.grad[0].abs().sum(0).nonzero()  # type: ignore[index]
    assert optima.boxes[0].tolist() == [*seen.amin(0).tolist(), *(seen.amax(0) + 1).tolist()]
    assert optima.seen(0).shape == (2, *[7] * axes)
    # In the middle, as far as there is one.
    assert all(abs(2 * at - (side - 6)) <= 2 for at, side in zip(center, size[1:], strict=True))


@of_axes
@pytest.mark.parametrize("bounds", [Box(), Sphere(3.0)], ids=["box", "sphere"])
def test_a_planted_filter_is_found_again(axes: int, bounds: Any) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(CONVOLUTIONS[axes](2, 3, 7, bias=False), nn.ReLU())
    grid = torch.stack(torch.meshgrid(*[torch.arange(7.0) - 3] * axes, indexing="ij"))
    wave = (1.1 * grid.sum(0)).cos() * (-grid.square().sum(0) / 8).exp()
    planted = torch.stack([wave, -wave])
    model[0].weight.data[1] = planted
    optima = maximize(
        model,
        UnitActivation("0", 1),
        unit_input_size(model, "0", (2, *[20] * axes)),
        starts=2,
        transforms=None,
        parametrization=Parametrization(bounds=bounds, basis=Fourier(0.5 if isinstance(bounds, Sphere) else 1.0)),
    )
    for number in range(2):
        found = optima.seen(number)
        if isinstance(bounds, Sphere):  # the filter itself is best
            assert float(F.cosine_similarity(found.flatten(), planted.flatten(), dim=0)) > 0.97
        else:  # the most that a box allows is its end of the filter's sign, everywhere
            assert float(optima.activations[number]) > 0.7 * 2 * float(planted.abs().sum())
        value = PLAIN[axes](found[None], planted[None]).relu()
        torch.testing.assert_close(float(value), float(optima.activations[number]), rtol=1e-4, atol=1e-4)


@of_axes
def test_the_strongest_patch_is_the_one_that_a_search_finds(axes: int) -> None:
    model, size = net(axes), SIZES[axes]
    images = torch.randn(6, *size)
    real = strongest_images(model, [UnitActivation("2", 1), ClassScore(2)], images)
    with torch.no_grad():
        maps, scores = model[:3](images), model(images)
    assert float(real.activations[0]) == pytest.approx(float(maps[:, 1].max()), rel=1e-5)
    assert int(real.numbers[1]) == int(scores[:, 2].argmax())
    with torch.no_grad():  # the patch alone gives the same
        assert float(model[:3](real.patches[0][None])[0, 1]) == pytest.approx(float(real.activations[0]), rel=1e-4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_frequencies_are_scaled_so_that_octaves_have_equal_power(axes: int) -> None:
    side, torch_seed = (512, 128, 48)[axes - 1], torch.Generator().manual_seed(0)
    noise = torch.randn(4, 1, *[side] * axes, generator=torch_seed)
    shown = Fourier().smooth(noise)
    torch.testing.assert_close(Fourier().smooth(shown, inverse=True), noise, atol=1e-3, rtol=1e-3)
    dims = tuple(range(2, 2 + axes))
    power = torch.fft.fftn(shown, dim=dims).abs().square().mean((0, 1))
    along = torch.fft.fftfreq(side)
    radius = torch.stack(torch.meshgrid(*[along] * axes, indexing="ij")).norm(dim=0)
    octaves = [float(power[(radius >= low) & (radius < 2 * low)].sum()) for low in (1 / 16, 1 / 8)]
    assert octaves[0] == pytest.approx(octaves[1], rel=0.35)


@of_axes
def test_penalties_and_transforms_work_along_every_axis(axes: int) -> None:
    size = SIZES[axes]
    images = torch.zeros(1, *size)
    images[(0, 0, *(side // 2 for side in size[1:]))] = 1
    variation = TotalVariation()(_reading(images))
    # One pixel differs from two neighbors along each axis.
    wanted = sum(2 / (math.prod(size) * (side - 1) / side) for side in size[1:])
    assert float(variation) == pytest.approx(wanted, rel=1e-5)
    assert float(L2()(_reading(images))) == pytest.approx(1 / math.prod(size))
    generator = torch.Generator().manual_seed(0)
    blurred = Blur(2.0).apply(images, generator)
    even = torch.ones(1, *size)
    torch.testing.assert_close(Blur(2.0).apply(even, generator), even)
    for at in range(2, 2 + axes):
        assert int(blurred.amax([dim for dim in range(2 + axes) if dim != at]).gt(1e-6).sum()) > 1
    moved = {tuple(Jitter(1).apply(images, generator)[0, 0].nonzero()[0].tolist()) for _ in range(40 * axes)}
    assert len(moved) > 2**axes
    scaled = Scale(0.5, 0.5).apply(torch.ones(1, *size).cumsum(-1), generator)
    assert scaled.shape == (1, *size)
    turned = Rotate(90.0).apply(images, generator)
    if axes == 1:
        assert torch.equal(turned, images) or torch.allclose(turned, images, atol=1e-5)
    else:  # what lies in one plane of depth stays in it
        assert float(turned[:, :, size[1] // 2].sum()) == pytest.approx(float(turned.sum()), rel=1e-4)


def _reading(images: Tensor) -> Reading:
    return Reading(images=images, maps={}, centers={})


@of_axes
def test_directions_about_an_optimum_are_eigenvectors_of_the_plain_hessian(axes: int) -> None:
    torch.manual_seed(0)
    kind, size = CONVOLUTIONS[axes], (1, *[5 - axes + 1] * axes)

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = kind(1, 3, size[1])

        def forward(self, images: Tensor) -> Tensor:
            return -self.conv(images).square().sum(1, keepdim=True).flatten(2).mean(2)

    model = Square().double()
    optimum = torch.randn(*size).double()
    about = optimum_invariance(model, ClassScore(0), optimum, directions=1, settle=0, smoothing=0, iterations=60)
    point = optimum.flatten()
    hessian = torch.autograd.functional.hessian(lambda flat: model(flat.view(1, *size)).sum(), point)
    gradient = torch.autograd.functional.jacobian(lambda flat: model(flat.view(1, *size)).sum(), point)
    unit = point / point.norm()
    off = torch.eye(len(point)).double() - unit[:, None] * unit
    own = point.norm() ** 2 * off @ hessian @ off - (gradient @ point) * off
    values = torch.linalg.eigvalsh(own)
    # Along the radius itself there is none: it is zero there, and is left out.
    values = values[values.abs() > 1e-9]
    torch.testing.assert_close(about.curvatures.double(), values[[-1, 0]], rtol=1e-3, atol=1e-3)


def test_layers_and_classes_of_a_network_of_signals_are_planned_and_maximized() -> None:
    torch.manual_seed(0)
    model, images = ecg_resnet().eval(), torch.randn(6, 3, 128)
    plans = plan_layers(model, images[:1], features=2)
    assert len(plans) == 4
    assert all(len(plan.size) == 2 and plan.size[1] <= 128 for plan in plans)
    classes = plan_classes(model, images, 2)
    assert classes is not None
    for plan in (plans[0], classes):
        done = maximize_plan(model, plan, images, bounds=Box(-3, 3), steps=12)
        assert done.optima.images.shape[1:] == plan.size
        assert done.strongest is not None
        best = done.optima.activations.view(2, -1).amax(1)
        assert bool((best > done.strongest.activations).all())


def test_sizes_and_positions_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give channels and length of a signal, for example \(12, 1000\)"):
        maximize(net(1), UnitActivation("2", 0), (2, 3, 4, 5))
    with pytest.raises(
        ValueError, match=r"unit \(3, 4\) of layer '2': on images of 40 samples its feature maps are 34"
    ):
        maximize(net(1), UnitActivation("2", 0, 3, 4), (2, 40), steps=1)
    with pytest.raises(ValueError, match=r"unit \(3, 4\) .* 8 x 10 x 12 pixels its feature maps are 2 x 4 x 6"):
        maximize(net(3), UnitActivation("2", 0, 3, 4), (2, 8, 10, 12), steps=1)
    with pytest.raises(ValueError, match=r"give \(N, C, D, H, W\)"):
        strongest_images(net(3), [ClassScore(0)], torch.rand(3, 2, 40))
