"""Looking leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cnnviz.core.capture import Site, analysis_mode, hooked, trace_feature_maps
from lightning_cnnviz.core.layers import select_layers


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Dropout())


def chance() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


@pytest.mark.parametrize("fails", [False, True])
def test_analysis_mode_restores_flags_one_by_one_and_chance(fails: bool) -> None:
    model = net().train()
    model[1].eval()  # a frozen BatchNorm inside a network in training
    flags = [module.training for module in model.modules()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = chance()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    try:
        with analysis_mode(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            chance()
            if fails:
                raise KeyError("stop")
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == flags
    assert chance() == expected
    assert torch.is_grad_enabled()


def test_analysis_mode_leaves_inference_mode() -> None:
    with torch.inference_mode(), analysis_mode(net()):
        assert not torch.zeros(1).is_inference()


def test_hooks_are_gone_after_an_error() -> None:
    model = net()
    sites = {"a": Site(model[0]), "b": Site(model[3], "input")}

    def run() -> None:
        with hooked(sites, lambda *_: None):
            assert len(model[0]._forward_hooks) == len(model[3]._forward_pre_hooks) == 1
            model(torch.zeros(1, 5, 9, 9))

    with pytest.raises(RuntimeError, match="channels"):
        run()
    assert not model[0]._forward_hooks
    assert not model[3]._forward_pre_hooks


def test_hooks_do_not_see_somebody_elses_analysis() -> None:
    model, image = net().eval(), torch.zeros(1, 1, 9, 9)
    seen: list[str] = []
    with hooked({"outside": Site(model[0])}, lambda name, _: seen.append(name)):
        model(image)
        with analysis_mode(model), hooked({"inside": Site(model[0])}, lambda name, _: seen.append(name)):
            model(image)
            trace_feature_maps(model, image, select_layers(model))
        model(image)
    assert seen == ["outside", "inside", "outside"]


def test_feature_maps_are_read_behind_the_batchnorm_that_follows() -> None:
    model = net().eval()
    image = torch.zeros(1, 1, 9, 9)
    by_kind = trace_feature_maps(model, image, select_layers(model, "conv"))
    assert [maps.site for maps in by_kind] == [Site(model[1]), Site(model[3])]
    assert [maps.shape for maps in by_kind] == [(2, 7, 7), (3, 5, 5)]
    assert [maps.field.size for maps in by_kind] == [(3, 3), (5, 5)]
    by_name = trace_feature_maps(model, image, select_layers(model, ["0", "3"]))
    assert by_name[0].site == Site(model[0])


def test_a_batchnorm_behind_two_convolutions_is_not_read_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(self.a(images)) + self.norm(self.b(images))  # type: ignore[no-any-return]

    model = Shared().eval()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    assert [maps.site for maps in found] == [Site(model.a), Site(model.b)]


def test_tracing_in_training_moves_no_statistics() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace_feature_maps(model, torch.rand(1, 1, 9, 9), select_layers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("layer", ["odd", "flat"])
def test_a_named_layer_without_feature_maps(layer: str) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
            return images, 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.odd, self.flat = nn.Conv2d(1, 2, 3), Odd(), nn.Flatten(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.flat(self.odd(self.conv(images))[0])  # type: ignore[no-any-return]

    model = Model()
    with pytest.raises(TypeError, match=f"layer '{layer}'.*returns no feature maps"):
        trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model, layer))
