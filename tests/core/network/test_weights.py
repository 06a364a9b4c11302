from __future__ import annotations

import pytest
import torch
from core.network.normed import NORMS, SPECTRAL, Standardized, conv, trained
from torch import Tensor, nn

from lightning_cnnviz.core.network.weights import scale_filters_, used_weight, weight_source, weights_fingerprint

IMAGES = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_it_changes_with_any_parameter_or_buffer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).half()
    before = weights_fingerprint(net)
    assert torch.equal(before, weights_fingerprint(net))
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.view(-1)[:1] += 1
        after = weights_fingerprint(net)
        assert int((before != after).sum()) == 1
        before = after
    assert before.dtype == torch.float64
    assert len(weights_fingerprint(nn.ReLU())) == 0


def is_used(layer: nn.Module, weight: Tensor) -> bool:
    """Whether these are the weights of the layer's next pass, as its outputs tell."""
    flag, layer.training = layer.training, False
    for part in layer.modules():
        part.training = False
    with torch.no_grad():
        wanted = layer(IMAGES)
    layer.training = flag
    found = nn.functional.conv2d(IMAGES, weight, layer.bias)  # type: ignore[arg-type]
    return torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_weights_are_those_of_the_next_pass_also_after_a_step_and_loading(norm: str) -> None:
    torch.manual_seed(1)
    layer = trained(NORMS[norm](conv()), IMAGES)
    weight = used_weight(layer)
    assert not weight.requires_grad
    assert is_used(layer, weight)
    other = NORMS[norm](conv())
    other.load_state_dict(layer.state_dict())
    found = used_weight(other)
    torch.testing.assert_close(found, weight)
    assert is_used(other, found)


def test_weights_that_a_forward_computes_are_those_that_it_uses() -> None:
    layer = Standardized(3, 8, 3)
    weight = used_weight(layer)
    assert is_used(layer, weight)
    torch.testing.assert_close(weight.flatten(1).std(1), torch.ones(8))
    assert weight_source(layer).kind == "parameter"
    with pytest.raises(ValueError, match="computed by its own forward, so that its filters cannot be scaled"):
        scale_filters_(layer, torch.full((8,), 0.5))


@pytest.mark.parametrize("norm", NORMS)
def test_reading_leaves_no_trace(norm: str) -> None:
    layer = trained(NORMS[norm](conv()), IMAGES)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    left, random = layer.__dict__.get("weight"), torch.get_rng_state()
    used_weight(layer)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert layer.__dict__.get("weight") is left
    assert all(module.training for module in layer.modules())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm not in SPECTRAL])
def test_filters_are_scaled_in_the_weights_that_are_used(norm: str) -> None:
    layer = trained(NORMS[norm](conv()), IMAGES)
    before = used_weight(layer)
    factors = torch.ones(8)
    factors[2], factors[5] = 0.5, 3.0
    scale_filters_(layer, factors)
    torch.testing.assert_close(used_weight(layer), before * factors.view(-1, 1, 1, 1))
    if "dim" not in norm and "all" not in norm:
        assert torch.equal(used_weight(layer)[factors == 1], before[factors == 1])


@pytest.mark.parametrize("norm", SPECTRAL)
def test_what_undoes_the_scaling_is_refused_and_nothing_has_changed(norm: str) -> None:
    layer = NORMS[norm](conv())
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="its filters cannot be scaled: choose other layers"):
        scale_filters_(layer, torch.linspace(0.5, 1, 8))
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_a_layer_that_multiplies_by_no_weights_is_refused() -> None:
    class Sum(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return images.sum()

    class Picky(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("not so")

    with pytest.raises(ValueError, match="the weights that Sum uses are not known: it runs 0 convolutions"):
        used_weight(Sum(1, 1, 1))
    with pytest.raises(ValueError, match=r"cannot be run by itself \(RuntimeError: not so\)"):
        used_weight(Picky(1, 1, 1))
