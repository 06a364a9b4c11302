"""Which layers and feature maps a user means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnviz.core.network.layers import LayerNotFoundError, resolve_features, select_layers

ALEXNET = torchvision.models.alexnet()


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("conv", ["features.0", "features.3", "features.6", "features.8", "features.10"]),
        (nn.Conv2d, ["features.0", "features.3", "features.6", "features.8", "features.10"]),
        ("features.3", ["features.3"]),
        (["features.8", "features.0"], ["features.0", "features.8"]),
        ("features.1*", ["features.1", "features.10", "features.11", "features.12"]),
        (["features.1?", "features.10"], ["features.10", "features.11", "features.12"]),
        ("pool", ["features.2", "features.5", "features.12", "avgpool"]),
        ([nn.Linear], ["classifier.1", "classifier.4", "classifier.6"]),
        ("features", ["features"]),
    ],
)
def test_spellings(asked: Any, names: list[str]) -> None:
    assert [layer.name for layer in select_layers(ALEXNET, asked)] == names


def test_names_are_literal_and_kinds_are_not() -> None:
    assert not any(layer.literal for layer in select_layers(ALEXNET, "conv"))
    chosen = select_layers(ALEXNET, ["conv", "features.3"])
    assert [layer.name for layer in chosen if layer.literal] == ["features.3"]
    assert all(layer.literal for layer in select_layers(ALEXNET, "features.1*"))


def test_keywords_mean_kinds_also_where_a_part_has_such_a_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
            self.conv2, self.relu = nn.Conv2d(2, 2, 3), nn.ReLU()

    assert [layer.name for layer in select_layers(Net())] == ["conv.0", "conv2"]
    assert [layer.name for layer in select_layers(Net(), "relu")] == ["conv.1", "relu"]
    assert [(layer.name, layer.literal) for layer in select_layers(Net(), "con[v]")] == [("conv", True)]
    assert [layer.name for layer in select_layers(Net(), ["conv2", "pool"])] == ["conv.2", "conv2"]


def test_names_of_compiled_and_shared_modules() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 1, 1))
    compiled = torch.compile(inner, backend="eager")
    model = nn.ModuleDict({"a": compiled, "b": inner})
    assert [layer.name for layer in select_layers(model, "conv")] == ["a.0"]
    assert [layer.name for layer in select_layers(model, "b.0")] == ["b.0"]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ("features.9x", r"no layer of AlexNet matches 'features.9x'. Did you mean 'features.9'"),
        ("classifer.1", r"Did you mean 'classifier.1'"),
        ("10", r"Did you mean .*'features.10'"),
        ("zzz", r"Its layers are 'features', .* and \d+ more; keywords are \"conv\""),
        (nn.GRU, "AlexNet has no GRU; it is made of AdaptiveAvgPool2d, Conv2d"),
        ([], "chooses no layer"),
        (["conv", "nothing*"], r"'nothing\*'"),
    ],
)
def test_what_is_not_there(asked: Any, match: str) -> None:
    with pytest.raises(LayerNotFoundError, match=match):
        select_layers(ALEXNET, asked)


@pytest.mark.parametrize("asked", [3, [3], None, nn.ReLU()])
def test_what_is_no_choice(asked: Any) -> None:
    with pytest.raises(TypeError, match=r"name, a glob"):
        select_layers(ALEXNET, asked)


def test_a_model_without_layers() -> None:
    with pytest.raises(LayerNotFoundError, match='"conv": Identity has no Conv2d; it has no layers at all'):
        select_layers(nn.Identity())


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [(None, (0, 1, 2, 3)), (2, (0, 1)), (9, (0, 1, 2, 3)), ([3, 1, 3], (1, 3)), ({"a": [2]}, (2,)), ({"b": 1}, ())],
)
def test_features(asked: Any, chosen: tuple[int, ...]) -> None:
    assert resolve_features("a", 4, asked) == chosen


@pytest.mark.parametrize(
    ("asked", "match"), [([4], "0 to 3"), ([-1], r"\[-1\]"), (0, "features=0"), (-2, "features=-2")]
)
def test_features_out_of_range(asked: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve_features("a", 4, asked)
