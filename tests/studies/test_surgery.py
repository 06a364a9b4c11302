from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core.network.normed import NORMS, conv, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from lightning_cnnviz.core.network.layers import LayerNotFoundError
from lightning_cnnviz.core.network.weights import used_weight, weight_source
from lightning_cnnviz.studies.surgery import AblatedNetwork, ablate

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def actions(ablated: AblatedNetwork) -> dict[str, str]:
    return {change.name: change.action for change in ablated.changes}


def plain_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)),
        *(nn.Conv2d(12, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.4), nn.Linear(384, 20), nn.ReLU(), nn.Dropout(0.4), nn.Linear(20, 5)),
    )


class Residual(nn.Module):
    """A sum written with an operator, and a ReLU that is used twice."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 4)
        self.add = add

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        inner = self.relu(self.bn1(self.conv1(stem)))
        logits: Tensor = self.head(self.relu(self.add(self.bn2(self.conv2(inner)), stem)).mean((2, 3)))
        return logits


# --- the paper's variants of AlexNet: numbers of parameters by hand ---

FC6, FC7, FC8 = 9216 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000
CONV3, CONV4, CONV5 = 192 * 384 * 9 + 384, 384 * 256 * 9 + 256, 256 * 256 * 9 + 256
WHOLE = 61_100_840
TABLE3: list[tuple[list[str], dict[str, int], int]] = [
    (["features.6", "features.8"], {}, WHOLE - CONV3 - CONV4 - CONV5 + 192 * 256 * 9 + 256),
    (["classifier.4"], {}, WHOLE - FC7),
    (["classifier.1", "classifier.4"], {}, WHOLE - FC6 - FC7 - FC8 + 9216 * 1000 + 1000),
    (
        ["features.6", "features.8", "classifier.1", "classifier.4"],
        {},
        WHOLE - CONV3 - CONV4 - CONV5 + 192 * 256 * 9 + 256 - FC6 - FC7 - FC8 + 9216 * 1000 + 1000,
    ),
    *(
        (
            [],
            {"classifier.1": width, "classifier.4": width},
            WHOLE - FC6 - FC7 - FC8 + (9216 + 1) * width + (width + 1) * width + (width + 1) * 1000,
        )
        for width in (2048, 8192)
    ),
    (
        [],
        {"features.6": 512, "features.8": 1024, "features.10": 512},
        WHOLE
        - (CONV3 + CONV4 + CONV5 + FC6)
        + (192 * 9 + 1) * 512
        + (512 * 9 + 1) * 1024
        + (1024 * 9 + 1) * 512
        + (512 * 36 + 1) * 4096,
    ),
]


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    with torch.device("meta"):
        net = models.alexnet(weights=None)
    return net.to_empty(device="cpu").eval()  # weights do not matter


@pytest.mark.parametrize(("remove", "resize", "parameters"), TABLE3)
def test_variants_of_alexnet(alexnet: nn.Module, remove: list[str], resize: dict[str, int], parameters: int) -> None:
    found = ablate(alexnet, torch.zeros(1, 3, 224, 224), remove=remove, resize=resize)
    assert (found.parameters_before, found.parameters_after) == (WHOLE, parameters)
    assert count(found.model) == parameters
    assert found.dropped == WHOLE - parameters == sum(c.parameters_before - c.parameters_after for c in found.changes)


def test_what_goes_with_alexnets_linear_layers(alexnet: nn.Module) -> None:
    image = torch.zeros(1, 3, 224, 224)
    sixth = ablate(alexnet, image, remove=["classifier.1"])
    # Its ReLU, and the second of two dropouts that meet.
    assert actions(sixth) == {
        **dict.fromkeys(["classifier.1", "classifier.2", "classifier.3"], "removed"),
        "classifier.4": "repaired",
    }
    seventh = ablate(alexnet, image, remove=["classifier.4"])
    assert actions(seventh) == dict.fromkeys(["classifier.4", "classifier.5"], "removed")
    assert isinstance(seventh.model.get_submodule("classifier.3"), nn.Dropout)


# --- oracles built by hand ---


def test_equals_a_network_built_by_hand() -> None:
    net = plain_net().eval()
    # Give the norms something to do.
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    found = ablate(net, IMAGE, remove=["4"], resize={"11": 30})
    assert actions(found) == {
        **dict.fromkeys("456", "removed"),
        "7": "repaired",
        "11": "resized",
        "14": "repaired",
    }
    by_hand = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(384, 30), nn.ReLU()),
        nn.Linear(30, 5),
    ).eval()
    weights = list(found.model.state_dict().values())
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), weights, strict=True)))
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(found.model(images), by_hand(images))
    # What was not rebuilt has kept its weights, bit for bit.
    old, new = net.state_dict(), found.model.state_dict()
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert torch.equal(old[name], new[name])


def test_a_removed_layer_of_equal_shapes_leaves_all_others_alone() -> None:
    net = Residual(torch.add).eval()
    found = ablate(net, IMAGE, remove=["conv1"])
    # The ReLU runs twice, so it is not conv1's own.
    assert actions(found) == {"conv1": "removed", "bn1": "removed"}
    stem = net.stem(IMAGE)
    by_hand = net.head(F.relu(net.bn2(net.conv2(F.relu(stem))) + stem).mean((2, 3)))
    assert torch.equal(found.model(IMAGE), by_hand)
    assert found.dropped == 8 * 8 * 9 + 16


def test_lost_pooling_is_repaired_behind_a_flatten() -> None:
    found = ablate(plain_net(), IMAGE, remove=["3"])
    assert actions(found) == {"3": "removed", "11": "repaired"}
    assert found.model.get_submodule("11").in_features == 4 * 384
    assert found.model(IMAGE).shape == (1, 5)


def test_nothing_asked_nothing_done() -> None:
    net = plain_net()
    found = ablate(net, IMAGE)
    assert found.changes == ()
    assert found.dropped == 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), found.model.parameters(), strict=True))
    same = ablate(net, IMAGE, resize={"4": 12})
    assert same.changes == ()
    assert torch.equal(same.model.get_submodule("4").weight, net.get_submodule("4").weight)


@st.composite
def stacks(draw: Any) -> tuple[list[int], list[bool], int, list[int], list[int], dict[int, int]]:
    """Widths of convolutions, which have a norm and pool, a hidden linear layer, and what becomes of them."""
    depth = draw(st.integers(2, 5))
    widths = draw(st.lists(st.integers(1, 6), min_size=depth, max_size=depth))
    norms = draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
    hidden = draw(st.integers(1, 7))
    fates = draw(st.lists(st.sampled_from(["stay", "stay", "go", "resize"]), min_size=depth + 1, max_size=depth + 1))
    removed = [place for place, fate in enumerate(fates) if fate == "go"]
    resized = {place: draw(st.integers(1, 8)) for place, fate in enumerate(fates) if fate == "resize"}
    return widths, norms, hidden, removed, [], resized


@settings(max_examples=40)
@given(stacks())
def test_random_stacks_run_and_have_the_parameters_that_they_should(case: Any) -> None:
    widths, norms, hidden, removed, _, resized = case

    def build(widths: list[int], hidden: int, gone: list[int]) -> tuple[nn.Sequential, dict[int, str]]:
        layers: list[nn.Module] = []
        names: dict[int, str] = {}
        channels = 2
        for place, width in enumerate(widths):
            if place not in gone:
                names[place] = str(len(layers))
                layers += [nn.Conv2d(channels, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width)] * norms[place]
                layers += [nn.ReLU()]
                channels = width
            if place == 1:
                layers += [nn.MaxPool2d(2)]
        layers += [nn.Flatten()]
        features = channels * 9
        if len(widths) not in gone:
            names[len(widths)] = str(len(layers))
            layers += [nn.Linear(features, hidden), nn.ReLU()]
            features = hidden
        return nn.Sequential(*layers, nn.Linear(features, 3)), names

    net, names = build(widths, hidden, [])
    other_widths = [resized.get(place, width) for place, width in enumerate(widths)]
    by_hand, _ = build(other_widths, resized.get(len(widths), hidden), removed)
    image = torch.rand(2, 2, 6, 6)
    found = ablate(
        net,
        image[:1],
        remove=[names[place] for place in removed],
        resize={names[place]: width for place, width in resized.items()},
    )
    assert found.parameters_after == count(found.model) == count(by_hand)
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), found.model.state_dict().values(), strict=True)))
    assert torch.equal(found.model.eval()(image), by_hand.eval()(image))


# --- branches ---


@pytest.mark.parametrize("add", [torch.add, lambda a, b: a + b, lambda a, b: a.add_(b), Tensor.__iadd__])
@pytest.mark.parametrize("width", [4, 1])
def test_a_sum_of_other_widths_cannot_be_repaired(add: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
    with pytest.raises(
        ValueError, match=rf"resize=.'conv2': {width}.*Residual itself.*sum of \(1, {width}, 16, 16\) and \(1, 8, 16"
    ):
        ablate(Residual(add), IMAGE, resize={"conv2": width})


def test_inside_a_residual_block_widths_are_free() -> None:
    found = ablate(Residual(torch.add), IMAGE, resize={"conv1": 5})
    assert actions(found) == {"conv1": "resized", "bn1": "repaired", "conv2": "repaired"}
    assert found.model(torch.rand(3, 3, 16, 16)).shape == (3, 4)


def test_both_sides_of_a_sum_can_be_resized_together() -> None:
    found = ablate(Residual(torch.add), IMAGE, resize={"stem": 4, "conv2": 4})
    assert actions(found)["head"] == "repaired"
    assert found.model(IMAGE).shape == (1, 4)


def test_resnet_blocks() -> None:
    net = models.resnet18(weights=None, num_classes=4)
    image = torch.rand(1, 3, 32, 32)
    found = ablate(net, image, remove=["layer2.1"])
    assert found.dropped == count(net.get_submodule("layer2.1"))
    with pytest.raises(ValueError, match=r"BasicBlock 'layer2.1' cannot be repaired: the sum of \(1, 128, 8, 8\) and"):
        ablate(net, image, remove=["layer2.0"])


def test_concatenations_are_repaired() -> None:
    squeezenet = models.squeezenet1_1(weights=None, num_classes=4)
    found = ablate(squeezenet, torch.rand(1, 3, 64, 64), remove=["features.3.expand1x1"])
    # 16 squeezed and 64 expanded feature maps are joined, instead of 64 and 64.
    assert found.model.get_submodule("features.4.squeeze").in_channels == 80
    assert found.dropped == (16 * 64 + 64) + 48 * 16
    dense = models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=4)
    found = ablate(dense, torch.rand(1, 3, 32, 32), resize={"features.denseblock1.denselayer1.conv2": 7})
    assert found.model.get_submodule("features.denseblock1.denselayer2.norm1").num_features == 15
    assert found.model.get_submodule("features.transition1.conv").in_channels == 19
    assert found.model(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(TypeError, match=r"_DenseLayer 'features.denseblock1.denselayer1' cannot be left out: it does"):
        ablate(dense, torch.rand(1, 3, 32, 32), remove=["features.denseblock1.denselayer1"])


def test_groups() -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(
        ValueError, match=r"Conv2d '1' cannot be repaired: it has 4 groups, and the 6 channels .* \(1, 6"
    ):
        ablate(grouped, IMAGE, resize={"0": 6})
    with pytest.raises(ValueError, match="Conv2d '1' has 4 groups, 6 cannot be divided"):
        ablate(grouped, IMAGE, resize={"1": 6})
    found = ablate(grouped, IMAGE, resize={"0": 12})
    assert found.model.get_submodule("1").weight.shape == (8, 3, 3, 3)
    depthwise = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.GroupNorm(2, 16), nn.Flatten(), nn.Linear(3136, 2)
    )
    found = ablate(depthwise, IMAGE, resize={"0": 5})
    conv, norm = found.model.get_submodule("1"), found.model.get_submodule("2")
    assert (conv.groups, conv.in_channels, conv.out_channels, norm.num_channels) == (5, 5, 10, 10)
    with pytest.raises(ValueError, match="'1' is depthwise: it has as many outputs as its input has channels"):
        ablate(depthwise, IMAGE, resize={"1": 5})
    odd = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(2048, 2))
    with pytest.raises(ValueError, match="GroupNorm '1' cannot be repaired: it has 4 groups, and the 6 channels"):
        ablate(odd, IMAGE, resize={"0": 6})


def test_heads_that_run_in_training_alone_are_repaired() -> None:
    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.norm = nn.BatchNorm2d(8)
            self.auxiliary = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
            self.head = nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Any:
            maps = self.norm(self.stem(images))
            logits = self.head(maps.mean((2, 3)))
            return (logits, self.auxiliary(maps)) if self.training else logits

    net = WithAuxiliary()
    saved = copy.deepcopy(net.state_dict())
    found = ablate(net, IMAGE, resize={"stem": 5})
    assert [tuple(logits.shape) for logits in found.model.train()(torch.rand(2, 3, 16, 16))] == [(2, 4), (2, 4)]
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    # Having a look in training has moved no statistics.
    fresh = ablate(net, IMAGE, resize={"stem": 5}).model
    for name in ("norm", "auxiliary.1"):
        assert torch.equal(fresh.get_submodule(name).running_mean, torch.zeros(5))
        assert int(fresh.get_submodule(name).num_batches_tracked) == 0


# --- refusals ---


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(2048, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).view(-1, 2048))
        return logits


def test_a_hard_coded_view_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"Views itself cannot be repaired: view of \(1, 4, 16, 16\)"):
        ablate(Views(), IMAGE, resize={"conv": 4})
    # Here torch does not complain: two images come out where one went in.
    with pytest.raises(ValueError, match=r"would return \(2, 4\), where it returned \(1, 4\).*view"):
        ablate(Views(), IMAGE, resize={"conv": 16})


def test_a_layer_that_runs_on_two_widths_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.first = nn.Conv2d(8, 8, 1)
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.first(self.norm(self.stem(images)))).mean((2, 3)))
            return logits

    with pytest.raises(ValueError, match="BatchNorm2d 'norm' cannot be repaired: it runs more than once, and is given"):
        ablate(Twice(), IMAGE, resize={"first": 6})
    assert actions(ablate(Twice(), IMAGE, remove=["first"])) == {"first": "removed"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"remove": ["14"]}, ValueError, "'14' is the classifier of Sequential, whose width is the number of classes"),
        ({"resize": {"14": 3}}, ValueError, "'14' is the classifier"),
        ({"remove": ["15"]}, LayerNotFoundError, "no layer of Sequential matches '15'"),
        ({"remove": ["conv"]}, LayerNotFoundError, "'conv' is not one layer's name; name layers one by one"),
        ({"remove": ["4"], "resize": {"4": 3}}, ValueError, "'4' cannot be both removed and resized"),
        ({"resize": {"1": 3}}, TypeError, "BatchNorm2d '1' has no number of outputs of its own"),
        ({"resize": {"4": 0}}, ValueError, "'4' cannot have 0 outputs; give 1 or more"),
        ({"resize": {"0": 2.5}}, ValueError, "'0' cannot have 2.5 outputs"),
        ({"remove": ["0"], "image": torch.rand(1, 1, 16, 16)}, ValueError, "cannot be run on an image of shape"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    image = options.pop("image", IMAGE)
    with pytest.raises(error, match=message):
        ablate(plain_net(), image, **options)


def test_refuses_blocks_around_the_classifier_idle_layers_and_shared_weights() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(768, 8), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match=r"'1' is the classifier of Sequential \(in it, '1.1'\)"):
        ablate(net, IMAGE, remove=["1"])
    net.add_module("idle", nn.Identity())
    net.forward = lambda images: net[1](net[0](images))  # type: ignore[method-assign]
    with pytest.raises(LayerNotFoundError, match="'idle' of Sequential does not run"):
        ablate(net, IMAGE, remove=["idle"])
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(768, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="Conv2d '0' cannot be rebuilt: '1' shares its weights"):
        ablate(tied, IMAGE, resize={"0": 5})
    pruned = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(768, 2))
    nn.utils.prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ValueError, match="Conv2d '0' cannot be rebuilt: its weight is no parameter"):
        ablate(pruned, IMAGE, resize={"0": 5})


@pytest.mark.parametrize("norm", [name for name in NORMS if "norm" in name])
def test_norms_of_weights_are_kept_and_put_on_again(norm: str) -> None:
    torch.manual_seed(2)
    layers = [NORMS[norm](conv()), nn.ReLU(), NORMS[norm](conv(8)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 2)]
    model = trained(nn.Sequential(*layers), IMAGE, steps=2)
    model.train()(IMAGE)
    same = ablate(model, IMAGE).model
    assert torch.equal(same.eval()(IMAGE), model.eval()(IMAGE))
    assert not same.training or torch.is_tensor(same(IMAGE))
    ablated = ablate(model, IMAGE, resize={"0": 5}).model
    first, second = used_weight(ablated[0]), used_weight(ablated[2])  # type: ignore[index]
    assert (first.shape[0], second.shape[1]) == (5, 5)
    assert weight_source(ablated[0]).kind == weight_source(model[0]).kind  # type: ignore[index,arg-type]
    trained(ablated, IMAGE, steps=1)
    assert not torch.equal(used_weight(ablated[0]), first)  # type: ignore[index]
    twice = [ablate(model, IMAGE, resize={"0": 5}).model.state_dict() for _ in range(2)]
    assert all(torch.equal(value, twice[1][name]) for name, value in twice[0].items())


# --- no trace, and the same every time ---


def test_leaves_no_trace() -> None:
    net = plain_net().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    seen: list[int] = []
    handle = net[4].register_forward_hook(lambda *_: seen.append(1))
    saved = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    image, state = IMAGE.clone().requires_grad_(), torch.get_rng_state()
    found = ablate(net, image, remove=["4"])
    with pytest.raises(ValueError, match="2 groups"):
        ablate(net, image, resize={"7": 3})
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert image.grad is None
    assert torch.equal(image, IMAGE)
    # The copy is in the network's modes, too, and its Identities are plain ones.
    assert [module.training for module in found.model.modules()] == flags
    assert {type(found.model.get_submodule(name)) for name in "456"} == {nn.Identity}
    assert not found.model.get_submodule("0").weight.requires_grad
    handle.remove()


def test_fresh_weights_depend_on_the_seed_and_the_name_alone() -> None:
    net = plain_net()
    torch.manual_seed(1)
    one = ablate(net, IMAGE, remove=["4"]).model.get_submodule("7")
    torch.manual_seed(2)
    two = ablate(net, IMAGE, remove=["4"], resize={"0": 8, "11": 7}).model.get_submodule("7")
    other = ablate(net, IMAGE, remove=["4"], seed=1).model.get_submodule("7")
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    # torch's own default: uniform within 1 / sqrt(fan in).
    assert float(one.weight.detach().abs().max()) <= (4 * 9) ** -0.5
    assert one.weight.requires_grad


def test_copies_can_be_trained() -> None:
    model = ablate(plain_net().train(), IMAGE, remove=["4"]).model
    F.cross_entropy(model(torch.rand(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_names_come_without_the_compiled_prefix() -> None:
    found = ablate(torch.compile(plain_net()), IMAGE, remove=["4"])  # type: ignore[arg-type]
    assert type(found.model) is nn.Sequential
    assert actions(found)["7"] == "repaired"
