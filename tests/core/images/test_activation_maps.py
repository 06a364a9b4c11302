from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.images.activation_maps import ActivationMaps, activation_maps, interleave_maps
from lightning_cnnviz.core.network.classification import ImagesRefusedError
from lightning_cnnviz.core.network.layers import LayerNotFoundError


class Net(nn.Module):
    """A BatchNorm with statistics of its own, an in-place ReLU, and a convolution whose maps are one unit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.relu, self.second = nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, stride=2)
        self.squeeze, self.drop, self.head = nn.Conv2d(4, 2, 1), nn.Dropout(0.5), nn.Linear(2, 3)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.relu(self.norm(self.first(x))))
        return self.head(self.drop(self.squeeze(x.mean((2, 3), keepdim=True)).flatten(1)))  # type: ignore[no-any-return]


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 11, 9, generator=torch.Generator().manual_seed(1))


def test_they_are_the_networks_own_maps_strongest_first() -> None:
    net, batch = Net(), images()
    first, second = activation_maps(net, batch, k=4)
    assert [found.layer for found in (first, second)] == ["first", "second"]  # without the one of one unit
    with torch.no_grad():
        net.eval()
        behind = net.norm(net.first(batch))  # as the nonlinearity reads them, before the ReLU overwrites them
        after = net.second(F.relu(behind))
    for found, expected in ((first, behind), (second, after)):
        assert found.channels == expected.shape[1]
        for image in range(3):
            peaks = expected[image].amax((1, 2))
            order = sorted(range(len(peaks)), key=lambda feature: -float(peaks[feature]))[:4]
            assert found.features[image].tolist() == order
            torch.testing.assert_close(found.peaks[image], peaks[order])
            torch.testing.assert_close(found.maps[image], expected[image, order])


def test_a_named_layer_is_taken_literally() -> None:
    net, batch = Net(), images()
    (found,) = activation_maps(net, batch, "first", k=6)
    with torch.no_grad():
        expected = net.first(batch)
    for image in range(3):
        torch.testing.assert_close(found.maps[image], expected[image, found.features[image]])


def test_chosen_features_alone_compete() -> None:
    net, batch = Net(), images()
    (found,) = activation_maps(net, batch, "first", k=2, features=[5, 1, 3])
    with torch.no_grad():
        expected = net.first(batch)
    for image in range(3):
        torch.testing.assert_close(found.maps[image], expected[image, found.features[image]])
    assert {feature for line in found.features.tolist() for feature in line} <= {1, 3, 5}
    assert bool((found.peaks[:, 0] >= found.peaks[:, 1]).all())


@given(st.integers(1, 7), st.integers(1, 4))
def test_ranks_that_share_the_images_find_what_one_finds(count: int, ranks: int) -> None:
    net, batch = Net(), images(count)
    whole = activation_maps(net, batch, k=3)
    parts = [activation_maps(net, batch[rank::ranks], k=3) for rank in range(min(ranks, count))]
    for together, alone in zip(interleave_maps(parts), whole, strict=True):
        assert (together.layer, together.channels) == (alone.layer, alone.channels)
        assert torch.equal(together.features, alone.features)
        torch.testing.assert_close(together.maps, alone.maps)
        torch.testing.assert_close(together.peaks, alone.peaks)


def test_nan_ranks_last() -> None:
    conv = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        conv.weight[1] = torch.nan
    (found,) = activation_maps(nn.Sequential(conv), images(1), k=3)
    assert int(found.features[0, -1]) == 1
    assert bool(found.maps[0, 2].isnan().all())


def test_it_leaves_no_trace() -> None:
    net, batch = Net().train(), images()
    net.norm.eval()
    before, given_images = {name: value.clone() for name, value in net.state_dict().items()}, batch.clone()
    state, flags = torch.get_rng_state(), [module.training for module in net.modules()]
    (found, _) = activation_maps(net, batch)
    with pytest.raises(ImagesRefusedError, match=r"Net does not take images of shape \(2, 11, 9\): .*channels"):
        activation_maps(net, torch.zeros(1, 2, 11, 9))
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch, given_images)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not found.maps.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k=0: keep 1 feature map or more"),
        ({"layers": "third"}, LayerNotFoundError, "no layer of Net matches 'third'"),
        ({"layers": "squeeze"}, ValueError, "layer 'squeeze' gives one value a channel for an image of 11 x 9"),
        ({"layers": "linear"}, ValueError, "layer 'head' gives one value a channel"),
        ({"features": [6]}, ValueError, r"features=\[6\] asked for, but layer 'first' has 6 feature maps"),
        ({"images": torch.rand(0, 1, 11, 9)}, ValueError, r"images are \(N, C, H, W\), not \(0, 1, 11, 9\)"),
        ({"images": torch.rand(1, 11, 9)}, ValueError, r"not \(1, 11, 9\)"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        activation_maps(Net(), **{"images": images(), **arguments})


def test_parts_and_shapes_must_go_together() -> None:
    first, second = activation_maps(Net(), images())
    with pytest.raises(ValueError, match="the parts are of different layers"):
        interleave_maps([[first], [second]])
    with pytest.raises(ValueError, match="do not go together"):
        ActivationMaps(layer="layer", channels=6, features=first.features, peaks=first.peaks[:, :2], maps=first.maps)
