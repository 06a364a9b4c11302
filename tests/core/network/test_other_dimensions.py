"""Networks of signals and of clips: functions of images say in our words that they are not served, and what is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz import (
    ClassScore,
    FineTuner,
    Unit,
    UnitActivation,
    attribute,
    channel_correlation,
    compare_units,
    layer_table,
    maximize,
    measure_invariance,
    mine_top_patches,
    occlude,
    project,
    tap_features,
)
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.maximization.maximize import unit_input_size
from lightning_cnnviz.core.network.layers import other_dimensions

SIGNALS = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
CLIPS = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
OWN = {"signals": torch.rand(2, 3, 16), "clips": torch.rand(2, 3, 8, 12, 12)}
for _kind, _model in (("signals", SIGNALS), ("clips", CLIPS)):
    _model.eval()(OWN[_kind])  # so that the lazy layer has a shape
LABELS = torch.tensor([0, 1])

FUNCTIONS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "layer_table": lambda model, images: layer_table(model, images[0]),
    "mine_top_patches": lambda model, images: mine_top_patches(model, [images], ["2"]),
    "project": lambda model, images: project(model, images, [Unit(0, "2", 0)]),
    "tap_features": lambda model, images: tap_features(model, [(images, LABELS)], ["2"]),
    "measure_invariance": lambda model, images: measure_invariance(model, images, LABELS, ["2"]),
    "channel_correlation": lambda model, images: channel_correlation(model, [images]),
    "activation_maps": lambda model, images: activation_maps(model, images, ["2"]),
    "compare_units": lambda model, images: compare_units(model, model, [images], ["2"]),
    "occlude": lambda model, images: occlude(model, images, LABELS),
    "saliency": lambda model, images: attribute(model, images, LABELS, "saliency"),
    "gradcam": lambda model, images: attribute(model, images, LABELS, "gradcam"),
    "maximize a unit": lambda model, images: maximize(model, UnitActivation("2", 0), images.shape[1:], steps=2),
    "maximize a class": lambda model, images: maximize(model, ClassScore(0), images.shape[1:], steps=2),
    "unit_input_size": lambda model, images: unit_input_size(model, "2", images.shape[1:]),
    "FineTuner": lambda model, images: FineTuner(model, 3, image_size=images.shape[1:]),
}
# What takes them: each has tests of its own of what it makes of them.
OF_ANY_AXES = {
    *("layer_table", "mine_top_patches", "project", "tap_features"),
    *("maximize a unit", "maximize a class", "unit_input_size"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("kind", "model"), [("signals", SIGNALS), ("clips", CLIPS)])
def test_images_for_a_network_of_others_are_refused_with_the_reason(name: str, kind: str, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"Conv.d, of {kind}.* images \(N, C, H, W\): networks of "):
        FUNCTIONS[name](model, torch.rand(2, 3, 12, 12))


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        (name, kind, model)
        for kind, model in (("signals", SIGNALS), ("clips", CLIPS))
        for name in FUNCTIONS
        if name not in OF_ANY_AXES
    ],
)
def test_signals_and_clips_are_refused_with_what_is_taken(name: str, kind: str, model: nn.Module) -> None:
    with pytest.raises((ValueError, TypeError), match=r"C, H, W\)|channels, height(,| and) width"):
        FUNCTIONS[name](model, OWN[kind])


def test_a_network_of_images_is_none_of_these() -> None:
    attentive = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3))
    assert other_dimensions(attentive) == other_dimensions(nn.Linear(2, 2)) == ""
