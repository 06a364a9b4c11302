"""Copies of networks: what a pass has left in them is no hindrance, and a twin shares no weight that was learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.network.normed import NORMS, Standardized, conv, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from lightning_cnnviz.core.network.twins import copy_network, random_twin
from lightning_cnnviz.core.network.weights import used_weight

IMAGES = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net.eval()(IMAGES)


def test_a_network_made_with_the_same_seed_is_not_its_own_twin() -> None:
    torch.manual_seed(5)
    net = conv()
    assert not torch.equal(net.weight, random_twin(net, seed=5).weight)  # type: ignore[arg-type]


def network(norm: str) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(NORMS[norm](conv()), nn.ReLU(), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize("norm", NORMS)
def test_a_twin_of_whatever_computes_its_weights_has_none_that_were_learned(norm: str) -> None:
    net = trained(network(norm), IMAGES)
    net.train()(IMAGES)  # leaves a weight with a gradient at the layer
    state = {name: value.clone() for name, value in net.state_dict().items()}
    twin, again, other = random_twin(net), random_twin(net), random_twin(net, seed=1)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(outputs(twin), outputs(again))
    assert not torch.allclose(outputs(twin), outputs(other))
    # Each layer by itself: the outputs would differ by the last one alone.
    for number in (0, 2):
        learned, fresh = used_weight(net[number]), used_weight(twin[number])  # type: ignore[index]
        moved = learned != 0
        assert float((learned[moved] == fresh[moved]).float().mean()) < 0.05
        correlation = torch.corrcoef(torch.stack([learned.flatten(), fresh.flatten()]))[0, 1]
        assert float(correlation.abs()) < 0.3


@pytest.mark.parametrize("norm", ["weight_norm", "weight_norm hook", "doubled", "none"])
def test_a_twin_is_as_strong_as_a_network_from_scratch(norm: str) -> None:
    net = network(norm)
    with torch.no_grad():
        for value in net[0].parameters():
            value.mul_(100)
    fresh, twin = network(norm), random_twin(net)
    strength = float(used_weight(twin[0]).abs().mean())  # type: ignore[index]
    assert strength == pytest.approx(float(used_weight(fresh[0]).abs().mean()), rel=0.2)


@pytest.mark.parametrize("norm", ["spectral_norm", "spectral_norm hook"])
def test_a_twins_spectral_norm_is_one(norm: str) -> None:
    weight = used_weight(random_twin(trained(network(norm), IMAGES))[0])  # type: ignore[index]
    assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"orthogonal_map": "cayley"}, {"use_trivialization": False}])
def test_a_twins_orthogonal_weights_are_others_and_orthogonal(options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Flatten(), parametrizations.orthogonal(nn.Linear(243, 5), **options))
    weight, fresh = net[1].weight, random_twin(net)[1].weight  # type: ignore[index]
    torch.testing.assert_close(fresh @ fresh.T, torch.eye(5), atol=1e-5, rtol=0)
    assert float((weight - fresh).detach().abs().max()) > 0.01


def test_parameters_of_which_nobody_says_how_they_begin_are_shuffled() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(9, 3, batch_first=True)
            self.places = nn.Parameter(torch.randn(27, 9))
            self.pair = nn.Parameter(torch.tensor([1.0, 2.0]))
            self.scale = nn.Parameter(torch.full((9,), 1e-6))

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(1, 2) + self.places
            return self.attention(tokens, tokens, tokens)[0] * self.scale * self.pair.sum()

    net = Tokens()
    twin = random_twin(net)
    assert torch.equal(twin.places.flatten().sort().values, net.places.flatten().sort().values)  # type: ignore
    assert not torch.equal(twin.places, net.places)  # type: ignore[arg-type]
    assert twin.pair.tolist() == [2, 1]  # type: ignore[union-attr,operator]
    assert torch.equal(twin.scale, net.scale)  # type: ignore[arg-type]
    learned, fresh = net.attention.in_proj_weight, twin.attention.in_proj_weight  # type: ignore[union-attr]
    assert not torch.allclose(learned, fresh)  # type: ignore[arg-type]


def test_running_statistics_begin_anew_also_where_a_norm_is_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), FrozenBatchNorm2d(4), Standardized(4, 4, 1))
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if not name.endswith("tracked"):
                buffer.add_(3)
    twin = random_twin(net)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), FrozenBatchNorm2d(4), Standardized(4, 4, 1))
    wanted = dict(fresh.named_buffers())
    assert all(torch.equal(value, wanted[name]) for name, value in twin.named_buffers())


def test_a_network_without_weights_in_reach_has_no_twin() -> None:
    with pytest.raises(ValueError, match="ReLU has no weights that could be made anew"):
        random_twin(nn.ReLU())

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match="Fixed has no weights that could be made anew"):
        random_twin(Fixed())


@given(st.integers(2, 6), st.integers(0, 20))
def test_however_few_values_are_shuffled_their_order_changes(count: int, seed: int) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.arange(float(count)))

    net = Own()
    assert not torch.equal(random_twin(net, seed).values, net.values)  # type: ignore[arg-type]


def test_a_network_that_keeps_activations_is_copied_by_their_values() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv()
            self.kept: dict[str, list[Tensor]] = {}

        def forward(self, images: Tensor) -> Tensor:
            made = self.body(images)
            self.kept["body"] = [made]
            return made

    net = Keeps()
    made = net(IMAGES)
    copied = copy_network(net)
    assert torch.equal(copied.kept["body"][0], made)  # type: ignore[index,union-attr]
    assert net.kept["body"][0] is made
    assert copied.body.weight is not net.body.weight  # type: ignore[union-attr]
    assert torch.equal(outputs(copied), outputs(net))


def test_a_twin_that_is_made_in_inference_mode_is_as_random() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    expected = random_twin(net, 3).state_dict()
    with torch.inference_mode():
        found = random_twin(net, 3).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(torch.equal(found[name], value) for name, value in net.state_dict().items())
