"""Whole networks against independent computations, view by view; a few in the default run, the others by `-m slow`."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.maximization.maximize import maximize
from lightning_cnnviz.core.maximization.objectives import UnitActivation
from lightning_cnnviz.core.top_patches.search import mine_top_patches

QUICK = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
SLOW = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5"]


def built(name: str) -> nn.Module:
    options = {"init_weights": False} if name == "googlenet" else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    generator = torch.Generator().manual_seed(0)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        elif buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each convolution with more than one position returns, of those that run once and have an entry an image."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.setdefault(name, []).append(output.clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    logits = model(images)
    for handle in handles:
        handle.remove()
    maps = {name: own[0] for name, own in found.items() if len(own) == 1 and len(own[0]) == len(images)}
    return {"": logits, **{name: own for name, own in maps.items() if own.shape[-1] * own.shape[-2] > 1}}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.filterwarnings("ignore")
def test_every_view_is_right(name: str) -> None:
    model, size = built(name), 64
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    given = images.clone().requires_grad_()
    maps = feature_maps(model, given)
    layers = [layer for layer in maps if layer]
    check_projections(model, images, given, maps, [layers[0], layers[len(layers) // 2], layers[-1]])
    check_mining(model, images, maps, layers[-1])
    check_classes(model, images, given, maps[""])
    assert layer_table(model, (3, size, size)).parameters == sum(value.numel() for value in model.parameters())
    climbed = maximize(model, UnitActivation(layers[0], 1, 2, 3), (3, size, size), starts=1, steps=2)
    again = feature_maps(model, climbed.images.double())[layers[0]][0, 1, 2, 3]
    assert float(climbed.activations[0]) == pytest.approx(float(again), rel=1e-3, abs=1e-5)


def check_projections(
    model: nn.Module, images: Tensor, given: Tensor, maps: dict[str, Tensor], layers: list[str]
) -> None:
    """Gradients of a shallow, a middle and a deep unit, against autograd through the whole network."""
    for layer in layers:
        own = maps[layer]
        channel, row, column = own.shape[1] // 2, own.shape[2] // 2, own.shape[3] - 1
        projection = project(model, images, [Unit(1, layer, channel, row, column)], method="gradient")
        value = own[1, channel, row, column]
        (gradient,) = torch.autograd.grad(value, given, retain_graph=True)
        expected = gradient[1] * value.detach()
        scale = float(expected.abs().max())
        assert float((projection.on_image(0) - expected).abs().max()) <= 1e-8 * scale, layer


def check_mining(model: nn.Module, images: Tensor, maps: dict[str, Tensor], layer: str) -> None:
    (found,) = mine_top_patches(model, [images], [layer], k=1, features=4).layers
    maxima = maps[layer].detach().amax((2, 3)).amax(0)
    torch.testing.assert_close(found.activations[:, 0].double(), maxima, rtol=1e-4, atol=1e-6)


def check_classes(model: nn.Module, images: Tensor, given: Tensor, logits: Tensor) -> None:
    """Saliency and one position of the occluder, by hand."""
    labels = torch.tensor([1, 2])
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), given, retain_graph=True)
    saliency = attribute(model, images, labels, "saliency").maps.double()
    scale = float(gradient.abs().max())
    assert float((saliency - gradient.abs()).abs().max()) <= 1e-4 * scale
    half = images.shape[-1] // 2
    swept = occlude(model, images, labels, size=half, stride=half, fill=0.0)
    covered = images.clone()
    covered[..., :half, half:] = 0
    with torch.no_grad():
        expected = model(covered).softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(swept.probabilities[:, 0, 1].double(), expected, rtol=1e-4, atol=1e-7)
