"""Stages are found by running; what is frozen has no gradient, no new statistics and no dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.network.normed import NORMS, conv
from torch import Tensor, nn

from lightning_cnnviz.finetune.freezing import Stages, find_stages, freeze, lowest_trained, settle_modes
from lightning_cnnviz.finetune.heads import find_classifiers
from lightning_cnnviz.finetune.networks import make_network


def stages_of(model: nn.Module, size: tuple[int, int, int]) -> Stages:
    return find_stages(model, find_classifiers(model, size), size)


def firsts(stages: Stages) -> list[str]:
    return [names[0].rsplit(".", 1)[0] for names in stages.parameters]


def test_each_downsampling_begins_a_stage_and_each_fully_connected_layer_is_one() -> None:
    alexnet = make_network("alexnet", values=False)
    found = stages_of(alexnet, (3, 224, 224))
    assert firsts(found) == ["features.0", "features.3", "features.6", "classifier.1", "classifier.4", "classifier.6"]
    assert found.parameters[2][-1] == "features.10.bias"
    resnet = make_network("resnet18", values=False)
    assert firsts(stages_of(resnet, (3, 64, 64))) == [
        "conv1",
        "layer1.0.conv1",
        *(f"layer{n}.0.conv1" for n in (2, 3, 4)),
        "fc",
    ]


@pytest.mark.parametrize("norm", NORMS)
def test_what_computes_a_layers_weights_is_of_the_layers_stage(norm: str) -> None:
    put_on = NORMS[norm]
    body = [put_on(conv()), nn.ReLU(), nn.MaxPool2d(2), put_on(conv(8)), nn.BatchNorm2d(8), nn.MaxPool2d(2)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 5))
    found = stages_of(model, (3, 14, 14))
    places = [{name.partition(".")[0] for name in names} for names in found.parameters]
    assert places == [{"0"}, {"3", "4"}, {"7"}]
    freeze(model, found, 1)
    model.train()
    settle_modes(model, found, 1)
    first, second = model[0], model[3]
    assert not any(value.requires_grad for value in first.parameters())
    assert all(value.requires_grad for value in second.parameters())
    assert not any(module.training for module in first.modules())
    assert all(module.training for module in second.modules())


def test_squeeze_and_excitation_begins_no_stage() -> None:
    model = make_network("mobilenet_v3_small", values=False)
    found = stages_of(model, (3, 224, 224))
    # 112, 56, 28, 14 and 7 pixels, the fully connected layer, the head.
    assert len(found.parameters) == 7
    assert firsts(found)[-2:] == ["classifier.0", "classifier.3"]


@pytest.mark.parametrize("name", ["googlenet", "vit_b_16", "swin_t", "convnext_tiny", "densenet121", "squeezenet1_1"])
def test_every_parameter_is_in_exactly_one_stage(name: str) -> None:
    model = make_network(name, values=False)
    found = stages_of(model, (3, 224, 224))
    names = [parameter for stage in found.parameters for parameter in stage]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(found.parameters)
    head = found.parameters[-1]
    assert all(parameter.startswith(f"{found.heads[0]}.") for parameter in head)
    assert len(head) == 2


def test_order_is_that_of_running_and_a_shared_layer_is_the_higher_stages() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.late, self.shared = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.early = nn.Conv2d(1, 4, 3, padding=1)
            self.never = nn.Linear(2, 2)
            self.late.bias = self.early.bias

        def forward(self, images: Tensor) -> Tensor:
            maps = self.shared(self.early(images))
            maps = self.late(nn.functional.max_pool2d(maps, 2))
            logits: Tensor = self.head(maps.mean((2, 3)))
            return logits

    found = stages_of(Backwards(), (1, 8, 8))
    low, high, head = (set(names) for names in found.parameters)
    assert low == {"early.weight", "shared.weight", "shared.bias", "never.weight", "never.bias"}
    assert high == {"late.weight", "late.bias"}
    assert head == {"head.weight", "head.bias"}


def test_equal_values_are_told_apart() -> None:
    # Lightning's BaseFinetuning compares by value, and loses the second of two fresh BatchNorms.
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    assert torch.equal(model[1].weight, model[2].weight)
    names = stages_of(model, (1, 8, 8)).parameters[0]
    assert {"1.weight", "2.weight", "1.bias", "2.bias"} < set(names)


@pytest.mark.parametrize(
    ("mode", "expected"), [("head", [4, 4, 4, 4, 4]), ("full", [0, 0, 0, 0, 0]), ("staged", [4, 3, 3, 1, 1])]
)
def test_what_is_trained_is_a_function_of_mode_and_epoch(mode: Any, expected: list[int]) -> None:
    assert [lowest_trained(mode, [1, 3, 3], epoch, 4) for epoch in range(5)] == expected


def test_frozen_means_no_gradient_no_statistics_no_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))),
    )
    found = stages_of(model, (1, 8, 8))
    images = torch.rand(6, 1, 8, 8)
    for lowest, frozen, live in ((2, [0, 2], []), (1, [0], [2]), (0, [], [0, 2])):
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        freeze(model, found, lowest)
        settle_modes(model, found, lowest)
        for place, part in enumerate(model):
            if place in (0, 2):
                assert all(module.training == (place in live) for module in part.modules()), (lowest, place)
                assert all((parameter.grad is None) == (place in frozen) for parameter in part.parameters())
        assert model.training == bool(live)
        assert model[4][1].training
        before = [norm.running_mean.clone() for norm in (model[0][1], model[2][1])]
        model(images).sum().backward()
        moved = [
            not torch.equal(old, norm.running_mean)
            for old, norm in zip(before, (model[0][1], model[2][1]), strict=True)
        ]
        assert moved == [0 in live, 2 in live]


def test_what_its_owner_froze_stays_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    found = stages_of(model, (1, 8, 8))
    freeze(model, found, 0, never={"1.weight", "1.bias"})
    settle_modes(model.train(), found, 0)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False, True, True]
    assert [module.training for module in model] == [True, False, True, True]
