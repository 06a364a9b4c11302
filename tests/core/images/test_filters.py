from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from core.network.normed import NORMS, SPECTRAL, conv, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_cnnviz.core.images.filters import LayerFilters, convolutions, layer_filters, renormalize_
from lightning_cnnviz.core.network.layers import LayerNotFoundError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Linear(3, 2)
    )


def test_the_first_convolution_is_the_default() -> None:
    model = network()
    (only,) = layer_filters(model)
    assert (only.layer, only.features) == ("0", tuple(range(8)))
    assert torch.equal(only.kernels, model[0].weight)  # type: ignore[arg-type]
    assert only.kernels.data_ptr() != model[0].weight.data_ptr()  # type: ignore[operator, union-attr]
    assert not only.kernels.requires_grad


def test_filters_that_are_asked_for() -> None:
    model = network()
    first, second = layer_filters(model, "conv", {"0": [5, 2], "3": 3})
    assert (first.features, second.features) == ((2, 5), (0, 1, 2))
    assert torch.equal(first.kernels, model[0].weight[[2, 5]])  # type: ignore[index]
    assert tuple(second.kernels.shape) == (3, 4, 3, 3)  # a filter sees its group alone
    assert len(first.rms) == 8
    for feature, rms in enumerate(second.rms.tolist()):
        weights = model[3].weight[feature].flatten().tolist()  # type: ignore[index]
        assert rms == pytest.approx(math.sqrt(sum(weight**2 for weight in weights) / len(weights)), rel=1e-5)


def test_a_parametrized_weight_is_what_a_pass_uses() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(3)
    (only,) = layer_filters(nn.Sequential(conv))
    assert torch.allclose(only.kernels, conv.weight)


@pytest.mark.parametrize("norm", NORMS)
def test_filters_are_those_of_the_next_pass_and_so_is_their_strength(norm: str) -> None:
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    net = trained(nn.Sequential(NORMS[norm](conv()), nn.ReLU()), images)
    (found,) = layer_filters(net)
    with torch.no_grad():
        wanted = net.eval()[0](images)  # type: ignore[index]
    assert torch.allclose(nn.functional.conv2d(images, found.kernels, net[0].bias), wanted, atol=1e-5)  # type: ignore
    if norm in SPECTRAL:
        return
    radius = float(found.rms.median())
    assert renormalize_([net[0]], radius) == int((found.rms > radius).sum()) > 0  # type: ignore[index,list-item]
    (after,) = layer_filters(net)
    torch.testing.assert_close(after.rms, found.rms.clamp(max=radius))


def of_strengths(*strengths: float) -> LayerFilters:
    rms = torch.tensor(strengths)
    return LayerFilters(layer="layer", features=(0,), kernels=torch.ones(1, 1, 1, 1), rms=rms)


def test_dominant_and_near_zero() -> None:
    layer = of_strengths(1.0, 1.0, 1.0, 10.0, 10.1, 0.01, 0.011, 0.0, 1.0)
    assert layer.median_rms == 1
    assert layer.dominant.nonzero().flatten().tolist() == [4]
    assert layer.near_zero.nonzero().flatten().tolist() == [5, 7]


def test_all_zero_filters_are_near_zero_and_none_dominates() -> None:
    layer = of_strengths(0.0, 0.0, 0.0)
    assert layer.near_zero.all()
    assert not layer.dominant.any()


@given(
    st.lists(st.floats(0, 50, allow_subnormal=False, width=32), min_size=1, max_size=8),
    st.floats(0.01, 10),
)
def test_renormalizing_keeps_direction_and_radius(strengths: list[float], radius: float) -> None:
    conv = nn.Conv2d(2, len(strengths), 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        conv.weight.mul_(torch.tensor(strengths).view(-1, 1, 1, 1))
    before, bias = conv.weight.detach().clone(), conv.bias.detach().clone()  # type: ignore[union-attr]
    rms = before.double().flatten(1).square().mean(1).sqrt()
    scaled = renormalize_([conv], radius)
    assert torch.equal(conv.bias, bias)  # type: ignore[arg-type]
    after = conv.weight.detach()
    for feature in range(len(strengths)):
        if rms[feature] > radius * (1 + 1e-5):
            assert float(after[feature].double().square().mean().sqrt()) == pytest.approx(radius, rel=1e-5)
            torch.testing.assert_close(after[feature], before[feature] * (radius / float(rms[feature])))
        elif rms[feature] < radius * (1 - 1e-5):
            assert torch.equal(after[feature], before[feature])
    assert abs(scaled - int((rms > radius).sum())) <= int(((rms / radius - 1).abs() < 1e-5).sum())


def test_half_precision_is_renormalized_in_place() -> None:
    conv = nn.Conv2d(1, 1, 3).to(torch.bfloat16)
    nn.init.constant_(conv.weight, 4.0)
    kept = conv.weight
    assert renormalize_([conv], 0.5) == 1
    assert conv.weight is kept
    assert torch.equal(conv.weight, torch.full_like(conv.weight, 0.5))


def test_what_cannot_be_had() -> None:
    with pytest.raises(LayerNotFoundError, match=r"layers='4': filters are those of a Conv2d, and these are Linear"):
        convolutions(network(), "4")
    with pytest.raises(LayerNotFoundError, match="has no Conv2d"):
        convolutions(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"features=\[8\] asked for, but layer '0' has 8 feature maps"):
        layer_filters(network(), features=[8])
    with pytest.raises(ValueError, match="radius=0: give a positive number"):
        renormalize_([], 0)
    with pytest.raises(ValueError, match=r"computed by SpectralNorm .*cannot be scaled: choose other layers"):
        renormalize_([nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))], 0.01)
    with pytest.raises(ValueError, match=r"need kernels \(n, C, H, W\)"):
        LayerFilters(layer="layer", features=(0, 1), kernels=torch.ones(1, 1, 1, 1), rms=torch.ones(2))


def test_it_leaves_no_trace() -> None:
    model = network().train()
    model[1].eval()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    layer_filters(model, "conv")
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ([nn.ReLU()], "ReLU has no filters"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(3)], "BatchNorm2d has no filters"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "Sequential has no filters"),
        (["0"], "str has no filters"),
        ([nn.LazyConv2d(2, 3)], "LazyConv2d has no weights before its first pass"),
    ],
)
def test_what_has_no_filters_is_not_renormalized(wrong: Any, what: str) -> None:
    conv = nn.Conv2d(1, 2, 3)
    before = conv.weight.clone()
    with pytest.raises(TypeError, match=rf"{what}.*isinstance\(module, torch\.nn\.Conv2d\)"):
        renormalize_([conv, *wrong] if isinstance(wrong, list) else wrong, 1e-9)
    assert torch.equal(conv.weight, before)
    assert renormalize_(conv, 1e-9) == 2  # one alone
