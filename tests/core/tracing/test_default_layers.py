"""Where a network begins and ends, and how much of it fits into memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.invariance import measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.network.hooks import model_device
from lightning_cnnviz.core.network.layers import LayerNotFoundError
from lightning_cnnviz.core.network.memory import images_at_once
from lightning_cnnviz.core.tracing.default_layers import find_default_layers, layer_site
from lightning_cnnviz.show import show


def found_in(model: nn.Module, size: int = 32, channels: int = 3) -> tuple[Any, ...]:
    found = find_default_layers(model.eval(), torch.randn(1, channels, size, size))
    return tuple(layer and layer.name for layer in (found.first, found.deep, found.classifier))


class Functional(nn.Module):
    """Everything but the layers with weights is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.deep(F.relu(self.stem(images)))), 2)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class Block(nn.Module):
    """One ReLU used twice, in place, as torchvision's residual blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.relu(self.conv2(self.relu(self.conv1(maps))) + maps)
        return found


def test_a_plain_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    assert found_in(model) == ("0", "2", "8")
    assert not find_default_layers(model, torch.randn(1, 3, 32, 32)).first.literal  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Functional(), ("stem", "deep", "head")),
        (torchvision.models.resnet18(), ("conv1", "layer4.1", "fc")),
        (torchvision.models.squeezenet1_0(), ("features.0", "features.12", "classifier.1")),
        (nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.Flatten(), nn.LazyLinear(3)), ("0", "1", "3")),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), (None, None, "1")),
        (nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), (None, None, None)),
    ],
    ids=["functional", "resnet", "squeezenet", "block", "no convolution", "no weights"],
)
def test_networks_of_other_kinds(model: nn.Module, expected: tuple[Any, ...]) -> None:
    assert found_in(model, 64) == expected


def test_a_container_is_its_last_layer_under_a_wider_name() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert found_in(model) == ("0.0", "0.1.1", "3")


def test_a_layer_that_runs_twice_is_neither_the_first_nor_the_last() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    first, deep, classifier = found_in(model, 16)
    assert (first, deep, classifier) == ("3", "3", "5")


def test_the_way_to_one_layer_is_checked() -> None:
    model, image = Functional(), torch.randn(1, 3, 16, 16)
    name, site, chosen = layer_site(model, image, None)
    assert (name, site.module, site.side, chosen.name) == ("deep", model.deep, "output", "deep")
    assert layer_site(model, image, "st*")[0] == "stem"
    with pytest.raises(ValueError, match=r"layer='conv' means 2 layers \('stem', 'deep'\); give the name of one"):
        layer_site(model, image, "conv")
    with pytest.raises(ValueError, match=r"layer 'head' has features of shape \(3, 1, 1\): a convolution, or another"):
        layer_site(model, image, "head")
    with pytest.raises(LayerNotFoundError, match="Did you mean 'deep'"):
        layer_site(model, image, "depe")
    with pytest.raises(LayerNotFoundError, match=r'no layer that returns feature maps .*; name one with layer="..."'):
        layer_site(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3)), image, None)


def test_behind_the_batchnorm_where_the_convolution_was_chosen_by_kind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    image = torch.randn(1, 3, 8, 8)
    assert layer_site(model, image, "conv")[1].module is model[1]
    assert layer_site(model, image, "0")[1].module is model[0]


def test_looking_for_default_layers_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3)).train()
    model(torch.randn(2, 3, 8, 8))
    model[1].eval()
    before, chance = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    find_default_layers(model, torch.randn(1, 3, 8, 8, generator=torch.Generator()))
    images_at_once(model, torch.ones(1, 3, 8, 8))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_where_a_network_is() -> None:
    assert model_device(nn.Conv2d(1, 1, 1, device="meta")) == torch.device("meta")
    assert model_device(nn.Flatten()) == torch.device("cpu")


class Block2(nn.Module):
    """A sum that is made in place on what a module has returned, then rectified in place behind an Identity."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.conv, self.drop, self.attention = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(), nn.Identity()
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, maps: Tensor) -> Tensor:
        found = self.drop(self.conv(maps))
        found += maps
        found = self.act(self.attention(found))
        return found


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_behind_an_identity_is_the_layer_that_the_head_pools(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block2(inplace=inplace), nn.Flatten(), nn.LazyLinear(3))
    assert found_in(model)[1] == "1.act"


def test_a_sum_written_into_what_a_layer_returned_is_another_thing() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, maps: Tensor) -> Tensor:
            found: Tensor = self.conv(maps)
            found += maps
            return found

    assert found_in(nn.Sequential(nn.Conv2d(3, 4, 3), Sum(), nn.Flatten(), nn.LazyLinear(3)))[1] == "1"


class LastChannels(nn.Module):
    """Maps (N, H, W, C), then some of one position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.pooled = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.stem(images).permute(0, 2, 3, 1)) * 2
        logits: Tensor = self.head(self.pooled(maps.tanh().mean((1, 2), keepdim=True)).flatten(1))
        return logits


def test_maps_whose_channels_come_last_are_read_as_such() -> None:
    model, image = LastChannels(), torch.randn(1, 3, 24, 32)
    assert find_default_layers(model, image).deep.name == "norm"  # type: ignore[union-attr]
    for layer in (None, "norm"):
        name, site, chosen = layer_site(model, image, layer)
        assert (name, site.channels_last, chosen.channels_last) == ("norm", True, True)
    assert not layer_site(model, image, "stem")[1].channels_last


class Cosine(nn.Module):
    """A head without a layer: cosines with a vector a class."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(3, 8))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features), F.normalize(self.vectors))


def body() -> list[nn.Module]:
    """Two convolutions, up to a vector of 8 features."""
    rectified = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return [*rectified, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def test_a_head_of_functions_pools_the_last_maps_as_one_of_layers_does() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 1, 16, 16), torch.tensor([0, 2])
    functions, layers = nn.Sequential(*body(), Cosine()).eval(), nn.Sequential(*body(), nn.Linear(8, 3)).eval()
    assert found_in(functions, 16, 1) == ("0", "5", None)
    assert found_in(layers, 16, 1) == ("0", "5", "8")
    assert attribute(functions, images, labels).layer == "5"
    assert occlude(functions, images, labels, size=4).layer == "5"
    read = measure_invariance(functions, images, labels, transforms=["rotation"])
    assert read.layers == ("0", "5")


class Tokens(nn.Module):
    """What transformers, and hybrids with them, do behind convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.squeeze = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self.other(self.one(tokens).relu())
        gated: Tensor = tokens * self.squeeze(tokens.mean(1, keepdim=True)).sigmoid()
        return gated.mean(1)


def test_layers_behind_the_last_maps_that_work_on_tokens_are_counted_and_said() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 1, 16, 16), torch.tensor([0, 2])
    hybrid = nn.Sequential(*body()[:6], Tokens(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    pooled = nn.Sequential(*body(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for model, behind in ((hybrid, 2), (pooled, 0)):
        deep = find_default_layers(model, images[:1]).deep
        assert deep is not None
        assert (deep.name, deep.layers_behind) == ("5", behind)
        for result in (attribute(model, images, labels), occlude(model, images, labels, size=4)):
            assert (result.layer, result.layers_behind) == ("5", behind)
            said = [note for note in show(result, images=(images, labels)).notes if "not what the head pools" in note]
            assert len(said) == (behind > 0)
            assert type(result).joined([result, result]).layers_behind == behind
        named = attribute(model, images, labels, layer="5")
        assert named.layers_behind == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "behind"),
    [
        ("levit_128s", "stem.conv4.bn", 46),
        ("xcit_nano_12_p8_224", "blocks.11.local_mp.conv2", 6),
        ("pit_ti_224", "transformers.2.pool.conv", 16),
        ("vit_tiny_patch16_224", "patch_embed.proj", 48),
        ("selecsls42", "head.3.2", 0),
        ("levit_conv_128s", "stages.2.blocks.3", 0),
    ],
)
def test_hybrids_of_timm_say_what_follows_their_last_maps(name: str, layer: str, behind: int) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=6).eval()
    deep = find_default_layers(model, torch.randn(1, *model.default_cfg["input_size"])).deep
    assert deep is not None
    assert (deep.name, deep.layers_behind) == (layer, behind)


QUICK = ("skresnet18", "repvgg_a0", "mobileone_s0", "swin_tiny_patch4_window7_224")
SLOW = (
    "convnext_atto",
    "convnextv2_atto",
    "dla34",
    "dla46_c",
    "dla60_res2net",
    "dpn48b",
    "ecaresnet26t",
    "edgenext_xx_small",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientnet_lite0",
    "ese_vovnet19b_slim",
    "fastvit_t8",
    "fbnetc_100",
    "ghostnet_050",
    "ghostnetv2_100",
    "hrnet_w18_small",
    "inception_next_atto",
    "mnasnet_050",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "nfnet_l0",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "repghostnet_050",
    "repvgg_d2se",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnet18",
    "resnet50",
    "resnetrs50",
    "resnext26ts",
    "seresnet18",
    "tresnet_m",
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_deep_layer_of_timms_networks_is_what_their_heads_pool(name: str) -> None:
    """timm says itself what a head pools; activations in place give the same layer as those that are not."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=6).eval()
    size = min(
        model.default_cfg["input_size"][1], 224 if name.startswith(("swin", "repvit", "efficientformer")) else 96
    )
    image = torch.randn(1, 3, size, size)
    apart = copy.deepcopy(model)
    for module in apart.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    layers = [find_default_layers(network, image).deep for network in (model, apart)]
    assert layers[0] is not None
    assert layers[1] is not None
    assert layers[0].name == layers[1].name
    left = list[Tensor]()
    with layers[0].module.register_forward_hook(lambda *values: left.append(values[-1])), torch.no_grad():
        model(image)
        pooled = model.forward_features(image)
    assert left[0].shape == pooled.shape
    assert torch.allclose(left[0], pooled, atol=1e-5, rtol=1e-4)
    images, labels = image.repeat(2, 1, 1, 1), torch.tensor([1, 4])
    assert torch.equal(attribute(model, images, labels).maps, attribute(apart, images, labels).maps)
