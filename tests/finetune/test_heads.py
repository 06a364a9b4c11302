"""The classifying layer of any network is found by running it, and gives way to a new head."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from lightning_cnnviz.finetune.heads import find_classifiers, install_heads, read_logits
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.finetune.networks import make_network

CLASSES = 7
NAMES = models.list_models(module=models)
AUXILIARY = {"googlenet": {"aux1.fc2", "aux2.fc2"}, "inception_v3": {"AuxLogits.fc"}}


def size_of(name: str) -> tuple[int, int, int]:
    side = 224 if name.startswith(("vit_", "maxvit")) else 299 if name == "inception_v3" else 64
    return (3, side, side)


@pytest.mark.parametrize("name", NAMES)
def test_every_torchvision_network_gets_a_new_head_of_the_old_ones_kind(name: str) -> None:
    model, size = make_network(name, values=False), size_of(name)
    found = find_classifiers(model, size)
    assert {extra.name for extra in found.auxiliary} == AUXILIARY.get(name, set())
    # An oracle that knows the library: the one layer of 1000 outputs, and the auxiliary ones.
    wide = {
        layer
        for layer, module in model.named_modules()
        if 1000 in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    }
    own = wide - AUXILIARY.get(name, set())
    assert found.main.name in own
    assert len(own) == 1 or name.startswith("regnet")  # some of which have a width of 1000 elsewhere
    old = model.get_submodule(found.main.name)
    install_heads(model, found, CLASSES, "linear", size)
    new = model.get_submodule(found.main.name)
    assert type(new) is type(old) if isinstance(old, nn.Conv2d) else isinstance(new, nn.Linear)
    assert new.weight.device.type == "meta"


def test_the_list_of_networks_is_whole() -> None:
    families = ("alexnet", "densenet121", "efficientnet_b0", "googlenet", "squeezenet1_0", "vit_b_16", "regnet_y_400mf")
    assert set(families) < set(NAMES)
    assert len(NAMES) >= 80


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_timms_networks_get_a_new_head(name: str) -> None:
    pytest.importorskip("timm")
    model = make_network(f"timm/{name}", values=False)
    found = find_classifiers(model, (3, 224, 224))
    assert model.get_submodule(found.main.name).out_features == 1000
    install_heads(model, found, CLASSES, "mlp", (3, 224, 224))


class Two(nn.Module):
    """Two heads on one layer."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3)
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
        self.form = form

    def forward(self, images: Tensor) -> Any:
        features = self.trunk(images).relu().mean((2, 3))
        return self.form(self.right(features), self.left(features))


Pair = collections.namedtuple("Pair", ["right", "left"])


@pytest.mark.parametrize("form", [lambda a, b: (a, b), Pair, lambda a, b: {"a": a, "b": b}])
def test_of_several_outputs_the_one_that_is_named_is_taken(form: Any) -> None:
    model = Two(form)
    with pytest.raises(
        ValueError, match=r"several layers.*'left' \(Linear 4 -> 5\), 'right' \(Linear 4 -> 5\).*classifier="
    ):
        find_classifiers(model, (1, 8, 8))
    found = find_classifiers(model, (1, 8, 8), "left")
    install_heads(model, found, 3, "linear", (1, 8, 8))
    images = torch.rand(2, 1, 8, 8)
    logits, _ = read_logits(model(images), found, training=True)
    expected = model.left(model.trunk(images).relu().mean((2, 3)))
    assert torch.equal(logits, expected)
    assert model.right.out_features == 5


@pytest.mark.parametrize("form", [lambda a, b: a + b, lambda a, b: (a + b) / 2])
def test_layers_whose_outputs_are_joined_are_replaced_together(form: Any) -> None:
    model = Two(form)
    found = find_classifiers(model, (1, 8, 8))
    assert found.heads == ("left", "right")
    assert find_classifiers(model, (1, 8, 8), ["right", "left"]).heads == ("right", "left")
    alone = find_classifiers(model, (1, 8, 8), "left")
    message = r"does not fit.*made by 'left' .*, 'right' .* together: leave classifier out, or give \['left', 'right'\]"
    with pytest.raises(ValueError, match=message):
        install_heads(Two(form), alone, 3, "linear", (1, 8, 8))
    install_heads(model, found, 3, "mlp", (1, 8, 8))
    images = torch.rand(2, 1, 8, 8)
    features = model.eval().trunk(images).relu().mean((2, 3))
    logits, others = read_logits(model(images), found, training=False)
    assert torch.equal(logits, form(model.right(features), model.left(features)))
    assert logits.shape == (2, 3)
    assert not others
    own = nn.Linear(4, 3)
    install_heads(model, found, 3, own, (1, 8, 8))
    assert model.left is own
    assert model.right is not own
    assert torch.equal(model.right.weight, own.weight)


def test_layers_that_make_an_output_side_by_side_are_ambiguous() -> None:
    with pytest.raises(ValueError, match="several layers make its output"):
        find_classifiers(Two(lambda a, b: torch.cat([a, b], 1)), (1, 8, 8))


def test_an_output_without_logits_is_not_in_the_way() -> None:
    class WithMaps(Two):
        def forward(self, images: Tensor) -> Any:
            maps = self.trunk(images)
            return maps, self.left(maps.mean((2, 3)))

    model = WithMaps(None)
    found = find_classifiers(model, (1, 8, 8))
    assert (found.main.name, found.main.key) == ("left", 1)
    install_heads(model, found, 3, "linear", (1, 8, 8))


def test_further_outputs_that_are_named_are_auxiliary() -> None:
    model = Two(lambda a, b: {"a": a, "b": b})
    with pytest.raises(ValueError, match=r"others are auxiliary: classifier=\['left', 'right'\]"):
        find_classifiers(model, (1, 8, 8))
    found = find_classifiers(model, (1, 8, 8), ["left", "right"])
    assert (found.main.name, [extra.name for extra in found.auxiliary]) == ("left", ["right"])
    install_heads(model, found, 3, "linear", (1, 8, 8))
    images = torch.rand(2, 1, 8, 8)
    logits, others = read_logits(model(images), found, training=True)
    assert [tuple(one.shape) for one in (logits, *others)] == [(2, 3), (2, 3)]
    assert torch.equal(logits, model(images)["b"])
    with pytest.raises(ValueError, match="'inner' makes no output of Inner by itself"):
        find_classifiers(Inner(), (1, 8, 8), ["last", "inner"])


class Inner(nn.Module):
    """A linear layer before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(64, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.inner(images.flatten(1)).relu())
        return found


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_averaged_heads_of_timm_are_replaced_together(name: str) -> None:
    pytest.importorskip("timm")
    model, size = make_network(f"timm/{name}", values=False), (3, 224, 224)
    found = find_classifiers(model, size)
    assert len(found.heads) == 2
    install_heads(model, found, CLASSES, "linear", size)


def test_what_runs_last_without_reaching_the_output_is_no_classifier() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head, self.aside = nn.Conv2d(1, 4, 3), nn.Linear(4, 5), nn.Linear(4, 9)

        def forward(self, images: Tensor) -> Tensor:
            features = self.trunk(images).mean((2, 3))
            logits: Tensor = self.head(features)
            self.seen = self.aside(features)
            return logits

    assert find_classifiers(Aside(), (1, 8, 8)).main.name == "head"


def test_a_network_that_is_frozen_or_hides_from_autograd_is_searched_all_the_same() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5))

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                found: Tensor = self.inner(images)
            return found

    assert find_classifiers(Hidden(), (1, 8, 8)).main.name == "inner.2"
    frozen = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5)).requires_grad_(False)
    assert find_classifiers(frozen, (1, 8, 8)).main.name == "2"


def test_a_network_without_a_classifier_says_what_it_ends_in() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"no Linear or 1x1 convolution.*'0' \(3x3 convolution 1 -> 4\)"):
        find_classifiers(model, (1, 8, 8))


@pytest.mark.parametrize(
    ("name", "message"),
    [("hed", r"no such layer\. Did you mean 'head'"), ("trunk", "is 3x3 convolution 1 -> 4; a Linear or")],
)
def test_a_wrong_classifier_is_refused(name: str, message: str) -> None:
    model = nn.Sequential(collections.OrderedDict(trunk=nn.Conv2d(1, 4, 3), flat=nn.Flatten(), head=nn.Linear(144, 5)))
    with pytest.raises(ValueError, match=message):
        find_classifiers(model, (1, 8, 8), name)


def test_images_of_a_wrong_size_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(ValueError, match=r"cannot be run on an image of 3 x 9 x 9.*image_size="):
        find_classifiers(model, (3, 9, 9))


def test_a_network_of_clips_is_refused_in_our_words() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"does not take an image of 3 x 8 x 8.*images \(C, H, W\) alone.*Conv.d"):
        find_classifiers(model, (3, 8, 8))


def test_finding_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5))
    model[1].eval()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    find_classifiers(model, (1, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def little(kind: str) -> nn.Module:
    if kind == "linear":
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    tail = (nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Identity(), nn.Conv2d(4, 5, 1), *tail)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_mlp_is_two_layers_of_the_old_ones_kind(kind: str) -> None:
    model = little(kind)
    install_heads(model, find_classifiers(model, (1, 8, 8)), 3, "mlp", (1, 8, 8))
    layers = nn.Linear if kind == "linear" else nn.Conv2d
    assert [type(part) for part in model[3]] == [layers, nn.ReLU, nn.Dropout, layers]
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_head_of_ones_own_is_put_in_as_it_is() -> None:
    model, head = little("linear"), nn.Sequential(nn.LayerNorm(144), nn.Linear(144, 3))
    install_heads(model, find_classifiers(model, (1, 8, 8)), 3, head, (1, 8, 8))
    assert model[3] is head


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(99, 3), r"given features of shape \('N', 144\).*fails with it"),
        (nn.Linear(144, 4), r"returns \(1, 4\) for 1 images; num_classes=3 needs \(1, 3\)"),
        ("lineer", "Did you mean 'linear'"),
    ],
)
def test_a_head_that_does_not_fit_says_which_shapes_met(head: Any, message: str) -> None:
    model = little("linear")
    with pytest.raises(ValueError, match=message):
        install_heads(model, find_classifiers(model, (1, 8, 8)), 3, head, (1, 8, 8))


class OwnHead(nn.Module):
    """A body, and a head of functions."""

    def __init__(self, head: Callable[[OwnHead, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), head
        self.a, self.b, self.pair = nn.Linear(8, 3), nn.Linear(8, 2), nn.Bilinear(8, 8, 5)
        self.vectors = nn.Parameter(torch.randn(5, 3))

    def features(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.conv(images).relu().mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self, self.features(images))


class Body(OwnHead):
    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


OWN_HEADS: dict[str, tuple[Callable[[OwnHead, Tensor], Tensor], str, tuple[Any, ...]]] = {
    "two layers joined by cat": (
        lambda net, x: torch.cat([net.a(x), net.b(x)], 1),
        "several layers make its output, and none of them all of it",
        ("a", ["a", "b"]),
    ),
    "cosine": (
        lambda net, x: F.linear(F.normalize(x), F.normalize(net.a.weight)),
        "no Linear or 1x1 convolution makes its output by itself",
        ("a",),
    ),
    "cosine of an embedding": (
        lambda net, x: F.linear(F.normalize(net.a(x)), F.normalize(net.vectors)),
        "layer 'a' is given features of shape .* and the network fails with it",
        ("a",),
    ),
    "bilinear": (lambda net, x: net.pair(x, x), "no Linear or 1x1 convolution makes its output by itself", ("pair",)),
}


@pytest.mark.parametrize("name", OWN_HEADS)
def test_a_head_that_cannot_be_replaced_is_refused_once_with_advice_that_works(name: str) -> None:
    head, reason, named = OWN_HEADS[name]
    advice = r"torch\.nn\.Sequential\(BODY, torch\.nn\.Linear\(FEATURES, CLASSES\)\)"
    options: dict[str, Any] = {"num_classes": 4, "image_size": (3, 12, 12)}
    with pytest.raises(ValueError, match=rf"{reason}.*{advice}") as raised:
        FineTuner(OwnHead(head), **options)
    assert "classifier=" not in str(raised.value)
    for classifier in named:
        with pytest.raises(ValueError, match=advice):
            FineTuner(OwnHead(head), classifier=classifier, **options)
    tuned = FineTuner(nn.Sequential(Body(head), nn.Linear(8, 5)), **options)
    assert tuned(torch.rand(2, 3, 12, 12)).shape == (2, 4)
