"""Looking leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, watched
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps


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


class Renamed(nn.Module):
    """A norm of the caller's own that holds its nonlinearity, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.shift = nn.Parameter(torch.full((2, 1, 1), -3.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(images + self.shift)  # type: ignore[no-any-return]


Renamed.__name__ = "BatchNormAct"


def test_a_norm_that_holds_its_nonlinearity_is_read_before_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Renamed())
    (maps,) = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    assert maps.site == Site(model[1].act, "input")


@pytest.mark.parametrize(
    ("between", "norm", "behind"),
    [
        (None, nn.BatchNorm2d(2), True),
        (None, nn.SyncBatchNorm(2), True),
        (None, torchvision.ops.FrozenBatchNorm2d(2), True),
        (nn.Identity(), nn.BatchNorm2d(2), True),
        (nn.ReLU(), nn.BatchNorm2d(2), False),
        (nn.MaxPool2d(2), nn.BatchNorm2d(2), False),
        (nn.Sequential(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2), None),
        (None, nn.GroupNorm(1, 2), False),
    ],
)
def test_which_norm_follows_directly(between: nn.Module | None, norm: nn.Module, behind: bool | None) -> None:
    parts = [nn.Conv2d(1, 2, 3), *([between] if between else []), norm]
    model = nn.Sequential(*parts).eval()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    if behind is None:  # the norm belongs to the second convolution
        assert [maps.site for maps in found] == [Site(model[0]), Site(norm)]
    else:
        assert [maps.site for maps in found] == [Site(norm) if behind else Site(model[0])]


def test_layers_come_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(2, 2, 3), nn.Conv2d(1, 2, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.first(images)).mean((2, 3)))  # type: ignore[no-any-return]

    model = Backwards()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model, ["head", "last", "first"]))
    assert [maps.layer for maps in found] == ["first", "last", "head"]
    assert [maps.shape for maps in found] == [(2, 7, 7), (2, 5, 5), (3, 1, 1)]
    assert found[2].field.boxes.tolist() == [[[[0, 0, 9, 9]]]]


def test_a_network_that_writes_to_its_input_does_not_change_ours() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images.sub_(1).div_(2))  # type: ignore[no-any-return]

    model, image = InPlace(), torch.rand(1, 1, 9, 9)
    before = image.clone()
    (maps,) = trace_feature_maps(model, image, select_layers(model))
    assert torch.equal(image, before)
    assert maps.field.size == (3, 3)


def test_analysis_mode_does_not_trust_eval_and_train() -> None:
    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True) -> Stubborn:
            raise AssertionError("not asked for")

    model = Stubborn(nn.Dropout(), nn.BatchNorm2d(1))
    model[0].training = False
    with analysis_mode(model):
        assert not model.training
        assert not model[1].training
    assert [module.training for module in model.modules()] == [True, False, True]


def test_analyses_may_lie_inside_one_another() -> None:
    model = net().train()
    state = torch.get_rng_state()
    with analysis_mode(model):
        torch.rand(3)
        inner = torch.get_rng_state()
        with analysis_mode(model):
            torch.rand(5)
        assert torch.equal(torch.get_rng_state(), inner)
        assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_an_error_of_the_listener_removes_the_hooks_too() -> None:
    model = net()

    def fail(name: str, value: object) -> None:
        raise ValueError(f"{name} has been heard")

    def run() -> None:
        with hooked({"a": Site(model[0]), "b": Site(model[3])}, fail):
            model(torch.zeros(1, 1, 9, 9))

    with pytest.raises(ValueError, match="a has been heard"):
        run()
    assert not any(module._forward_hooks for module in model)


def test_hooks_are_gone_if_one_of_them_cannot_be_made() -> None:
    model = net()

    def run() -> None:
        with hooked({"a": Site(model[0]), "b": Site(None)}, print):  # type: ignore[arg-type]
            pass

    with pytest.raises(AttributeError, match="register_forward_hook"):
        run()
    assert not model[0]._forward_hooks


def test_watching_attaches_nothing_to_the_network() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    sites = {"first": Site(net[0]), "into": Site(net[2], "input"), "last": Site(net[2]), "same": Site(net[2])}
    seen: dict[str, Tensor] = {}
    inputs = torch.rand(5, 3)
    with pytest.raises(RuntimeError, match="stop"), watched(sites, seen.__setitem__):  # noqa: PT012
        output = net(inputs)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
        raise RuntimeError("stop")
    assert list(seen) == ["first", "into", "last", "same"]
    assert torch.equal(seen["first"], net[0](inputs))
    assert torch.equal(seen["into"], net[0](inputs).relu())
    assert seen["last"] is output
    seen.clear()
    net(inputs)
    assert seen == {}
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
