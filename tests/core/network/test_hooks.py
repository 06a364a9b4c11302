"""Looking leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
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


def test_analysis_mode_that_cannot_begin_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise MemoryError("no room for the generator's state")

    def broken(name: str, value: object) -> None:
        raise ArithmeticError(name)

    def pass_of_somebody_else() -> None:
        with hooked({"first": Site(model[0])}, broken):
            model(torch.rand(2, 1, 8, 8))
            passed.append(True)

    model, passed = net(), list[bool]()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_rng_state", full)
        with pytest.raises(MemoryError, match="no room"), analysis_mode(model):
            pass
    # Errors of hooks that are made now do not interrupt a pass that we do not make.
    with pytest.raises(ArithmeticError, match="first"):
        pass_of_somebody_else()
    assert passed == [True]


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
