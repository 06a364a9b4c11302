"""Attributions: those of captum, used directly; their laws; and without trace."""

from __future__ import annotations

from typing import Any, get_args

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.images.attribution import AttributionMaps, AttributionMethod, attribute, check_attribution
from lightning_cnnviz.core.network.layers import LayerNotFoundError

METHODS: tuple[AttributionMethod, ...] = get_args(AttributionMethod)
LABELS = torch.tensor([3, 0, 2])


def network(*, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(inplace=inplace),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(5 * 5 * 7, 4),
    )


class Functional(nn.Module):
    """The same weights, its nonlinearities as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.body[3](self.body[1](self.body[0](images)).relu()))
        logits: Tensor = self.body[7](maps.flatten(1))
        return logits


def images_of(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(2))


def by_captum(method: str, model: nn.Sequential, layer: nn.Module, fill: Tensor) -> Tensor:
    """As captum's users write it, with ReLU modules that are not in place."""
    model.eval()
    images = images_of().requires_grad_()
    found: Tensor
    if method == "saliency":
        found = captum.attr.Saliency(model).attribute(images, target=LABELS)
    elif method == "integrated_gradients":
        baseline = fill.view(1, 3, 1, 1).expand_as(images)
        found = captum.attr.IntegratedGradients(model).attribute(images, baseline, target=LABELS, n_steps=50)
    elif method == "gradcam":
        coarse = captum.attr.LayerGradCam(model, layer).attribute(images, target=LABELS, relu_attributions=True)
        found = captum.attr.LayerAttribution.interpolate(coarse, (12, 16), interpolate_mode="bilinear")
    else:
        guided = captum.attr.GuidedGradCam(model, layer)
        found = guided.attribute(images, target=LABELS, interpolate_mode="bilinear")
    return found.detach()


@pytest.mark.filterwarnings("ignore:Setting .*hooks on ReLU activations:UserWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_maps_are_those_of_captum(method: AttributionMethod, inplace: bool) -> None:
    fill = torch.tensor([0.2, 0.4, 0.6])
    found = attribute(network(inplace=inplace), images_of(), LABELS, method, baseline=fill)
    oracle = network()
    expected = by_captum(method, oracle, oracle[4], fill)
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-6)
    assert found.layer == ("4" if "gradcam" in method else "")
    assert torch.equal(found.untouched.targets, LABELS)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolution_before_a_relu_in_place_is_read_as_it_was(inplace: bool) -> None:
    found = attribute(network(inplace=inplace), images_of(), LABELS, "gradcam", layer="3")
    oracle = network()
    torch.testing.assert_close(
        found.maps, by_captum("gradcam", oracle, oracle[3], torch.zeros(3)), rtol=1e-4, atol=1e-6
    )
    assert found.layer == "3"


@pytest.mark.parametrize("method", METHODS)
def test_a_functional_relu_is_a_relu(method: AttributionMethod) -> None:
    layer = {"gradcam": ("3", "body.3"), "guided_gradcam": ("3", "body.3")}.get(method, (None, None))
    expected = attribute(network(), images_of(), LABELS, method, layer=layer[0])
    found = attribute(Functional(), images_of(), LABELS, method, layer=layer[1])
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_add_up_to_what_the_logit_gained() -> None:
    model, images = network(), images_of()
    found = attribute(model, images, LABELS, "integrated_gradients", steps=300)
    model.eval()
    blank = images.mean((0, 2, 3)).view(1, 3, 1, 1).expand_as(images)
    gained = (model(images) - model(blank)).gather(1, LABELS[:, None])[:, 0].detach()
    torch.testing.assert_close(found.maps.sum((1, 2, 3)), gained, rtol=0.02, atol=2e-3)


def test_gradcam_of_a_linear_head_is_the_weighted_sum_of_its_maps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    found = attribute(model, images_of(), LABELS)
    weights = model[4].weight[LABELS].detach() / (12 * 16)
    expected = (model[:2](images_of()).detach() * weights[:, :, None, None]).sum(1, keepdim=True).clamp(min=0)
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_size_of_batches_does_not_matter(method: AttributionMethod, batch_size: int) -> None:
    expected = attribute(network(), images_of(), LABELS, method, batch_size=3)
    found = attribute(network(), images_of(), LABELS, method, batch_size=batch_size)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-6)


def test_without_labels_the_class_that_is_found_is_explained() -> None:
    model = network()
    unlabeled = attribute(model, images_of(), method="saliency")
    labeled = attribute(model, images_of(), unlabeled.untouched.predictions, "saliency")
    assert not unlabeled.untouched.labeled
    assert torch.equal(unlabeled.maps, labeled.maps)


def test_shares_of_two_ranks_are_the_whole() -> None:
    images, labels = images_of(5), torch.tensor([3, 0, 2, 1, 1])
    whole = attribute(network(), images, labels, "guided_gradcam")
    parts = [attribute(network(), images[rank::2], labels[rank::2], "guided_gradcam") for rank in range(2)]
    joined = AttributionMaps.joined(parts)
    torch.testing.assert_close(joined.maps, whole.maps)
    assert (joined.layer, joined.method) == ("4", "guided_gradcam")
    assert torch.equal(joined.untouched.targets, labels)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: AttributionMethod) -> None:
    model, images = network().to(torch.bfloat16), images_of().to(torch.bfloat16)
    found = attribute(model, images, LABELS, method)
    single = attribute(network(), images_of(), LABELS, method)
    assert found.maps.dtype == torch.float32
    cosine = F.cosine_similarity(found.maps.flatten(), single.maps.flatten(), dim=0)
    assert float(cosine) > 0.9


@pytest.mark.parametrize("check", [False, True], ids=["attribute", "check"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "lime"}, "method='lime': it is one of 'gradcam', 'integrated_gradients', 'saliency', 'guided_grad"),
        ({"labels": torch.tensor([0, 4, 1])}, r"labels \[4\] are out of range: the network has 4 classes"),
        ({"images": torch.rand(3, 3, 2, 2)}, r"Sequential does not take images of shape \(3, 2, 2\)"),
        ({"images": torch.rand(3, 12, 16)}, r"give one or more as a float or uint8 tensor \(N, C, H, W\)"),
        (
            {"model": nn.Sequential(nn.Conv2d(3, 4, 3))},
            r"returns, for 3 images, a tensor of shape .*: a score for each pixel",
        ),
        ({"layer": "features.9"}, "no layer of Sequential matches 'features.9'"),
        ({"layer": "conv"}, "means 2 layers"),
        ({"layer": "7"}, "layer '7' has features of shape"),
    ],
)
def test_what_cannot_be_attributed_says_so(change: dict[str, Any], match: str, check: bool) -> None:
    given: dict[str, Any] = {"model": network(), "images": images_of(), "labels": LABELS, **change}
    with pytest.raises(ValueError, match=match):
        (check_attribution if check else attribute)(**given)


def test_an_integral_of_one_step_and_a_network_without_maps() -> None:
    with pytest.raises(ValueError, match="steps=1: an integral takes 2 or more"):
        attribute(network(), images_of(), method="integrated_gradients", steps=1)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 4))
    with pytest.raises(LayerNotFoundError, match="no layer that returns feature maps"):
        attribute(flat, images_of())
    assert attribute(flat, images_of(), method="saliency").maps.shape == (3, 3, 12, 16)
    found = attribute(flat, images_of(), method="saliency")
    with pytest.raises(ValueError, match=r"maps are \(2, 3, 12, 16\); there are 3 images"):
        AttributionMaps(method="saliency", layer="", untouched=found.untouched, maps=found.maps[1:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(method: AttributionMethod, fails: bool) -> None:
    model, images = network(inplace=True).train(), images_of()
    model[1].eval()
    model[3].weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[arg-type]
    before, kept, chance = {k: v.clone() for k, v in model.state_dict().items()}, images.clone(), torch.get_rng_state()
    needed = [parameter.requires_grad for parameter in model.parameters()]
    calls: list[int] = []

    def breaks(_module: nn.Module, inputs: Any) -> None:
        calls.append(len(inputs[0]))
        if fails and torch.is_grad_enabled():
            raise RuntimeError("the user's own mistake")

    handle = model[4].register_forward_pre_hook(breaks)
    if fails:
        with pytest.raises(ValueError, match="the user's own mistake"):
            attribute(model, images, LABELS, method)
    else:
        attribute(model, images, LABELS, method)
    handle.remove()
    assert calls
    assert torch.equal(chance, torch.get_rng_state())
    assert torch.equal(images, kept)
    assert not images.requires_grad
    assert [module.training for module in model] == [True, False, *[True] * 6]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))  # type: ignore[arg-type]
    assert model[7].weight.grad is None
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)


class Turned(nn.Module):
    """One network, whose last maps are (N, C, H, W) or (N, H, W, C)."""

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__()
        self.conv, self.maps, self.head = nn.Conv2d(1, 6, 3), nn.Identity(), nn.Linear(6, 3)
        self.deep, self.channels_last = nn.Tanh(), channels_last

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps = self.deep(maps.permute(0, 2, 3, 1) if self.channels_last else maps)
        logits: Tensor = self.head(maps.square().mean((1, 2) if self.channels_last else (2, 3)))
        return logits


@pytest.mark.parametrize("method", ["gradcam", "guided_gradcam"])
def test_maps_whose_channels_come_last_say_the_same(method: AttributionMethod) -> None:
    plain, turned = Turned(channels_last=False), Turned(channels_last=True)
    turned.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 12, 12)
    first, second = (attribute(net, images, method=method, layer="deep") for net in (plain, turned))
    torch.testing.assert_close(first.maps, second.maps)
    assert attribute(turned, images).layer == "deep"
