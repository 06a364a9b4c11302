"""Networks that torch has traced, scripted, frozen or quantized: as what they were made from, or refused by us."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_cnnviz as cnnviz
from lightning_cnnviz.core.deconvnet.projection import Unit
from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES, LABELS = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
LOADER = [(IMAGES, LABELS)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def static() -> nn.Module:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    whole = nn.Sequential(torch.ao.quantization.QuantStub(), network(), torch.ao.quantization.DeQuantStub()).eval()
    whole.qconfig = torch.ao.quantization.default_qconfig  # type: ignore[assignment]
    ready = torch.ao.quantization.prepare(whole)
    ready(IMAGES)
    return torch.ao.quantization.convert(ready)


def part_of(made: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A network of which only the middle is made anew."""
    whole = network()
    return nn.Sequential(whole[:3], made(whole[3:5].eval()), whole[5:]).eval()


MADE: dict[str, Callable[[], nn.Module]] = {
    "traced": lambda: torch.jit.trace(network(), IMAGES[:1]),
    "scripted": lambda: torch.jit.script(network()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network())),
    "frozen and traced": lambda: torch.jit.freeze(torch.jit.trace(network(), IMAGES[:1])),
    "part of it scripted": lambda: part_of(torch.jit.script),
    "part of it frozen": lambda: part_of(lambda part: torch.jit.freeze(torch.jit.script(part))),
    "quantized as it runs": lambda: torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}),
    "quantized": static,
}
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "mining": lambda model: cnnviz.mine_top_patches(model, LOADER, k=2).layers[-1].activations,
    "mining a layer": lambda model: cnnviz.mine_top_patches(model, LOADER, k=2, layers="3")["3"].boxes,
    "projection": lambda model: cnnviz.project(model, IMAGES, [Unit(0, "3", 1, 2, 2)]).pixels[0],
    "Grad-CAM": lambda model: cnnviz.attribute(model, IMAGES, LABELS).maps,
    "saliency": lambda model: cnnviz.attribute(model, IMAGES, LABELS, "saliency").maps,
    "guided": lambda model: cnnviz.attribute(model, IMAGES, LABELS, "guided_gradcam").maps,
    "integrated": lambda model: cnnviz.attribute(model, IMAGES, LABELS, "integrated_gradients", steps=4).maps,
    "occlusion": lambda model: cnnviz.occlude(model, IMAGES, LABELS, size=6, stride=6).activations,
    "a class": lambda model: cnnviz.maximize(model, ClassScore(1), (3, 12, 12), steps=2).images,
    "a channel": lambda model: cnnviz.maximize(model, ChannelActivation("3", 1), (3, 12, 12), steps=2).images,
    "invariance": lambda model: cnnviz.measure_invariance(model, IMAGES, LABELS).untouched.probabilities,
    "features": lambda model: cnnviz.tap_features(model, LOADER),
    "correlation": lambda model: cnnviz.channel_correlation(model, LOADER)[-1].correlation,
    "table": lambda model: [row.macs for row in cnnviz.layer_table(model, (3, 12, 12)).rows],
}
OURS = (
    r"torch\.jit has traced, scripted or frozen|frozen by torch\.jit: its parameters have become constants|"
    r"is quantized: its weights are packed"
)
# Where only a part was made anew, the layers that are left are the network's own.
LAST_READABLE = {"mining", "features", "correlation", "invariance", "occlusion", "Grad-CAM", "guided"}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("made", MADE)
def test_it_is_as_the_network_it_was_made_from_or_refused_in_our_words(made: str, look: str) -> None:
    expected = LOOKS[look](network())
    model = MADE[made]()
    before = copy.deepcopy(model.state_dict())
    found, refusal = outcome(LOOKS[look], model)
    assert found is not None or re.search(OURS, refusal), refusal
    if found is not None and not (made.startswith("part") and look in LAST_READABLE):
        same(found, expected)
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items() if isinstance(value, Tensor)
    )


def outcome(look: Callable[[nn.Module], Any], model: nn.Module) -> tuple[Any, str]:
    """What a look gives, or the text of its refusal."""
    try:
        return look(model), ""
    except ValueError as error:
        return None, str(error)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    elif isinstance(expected, list):
        assert sum(found) == sum(expected)
    else:
        assert type(found) is type(expected)


@pytest.mark.parametrize("made", ["traced", "scripted", "frozen", "frozen and traced"])
def test_what_needs_no_layer_is_served(made: str) -> None:
    model = MADE[made]()
    same(LOOKS["saliency"](model), LOOKS["saliency"](network()))
    same(LOOKS["a class"](model), LOOKS["a class"](network()))
