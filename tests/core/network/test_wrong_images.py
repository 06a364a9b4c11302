"""What is no tensor of images, or of another precision than the network, is refused with the way out, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.invariance import measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.network.classification import classify
from lightning_cnnviz.core.probing.probe import probe, probe_layers
from lightning_cnnviz.core.probing.protocols import find_protocol
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.core.top_patches.search import mine_top_patches

IMAGES, LABELS = torch.rand(2, 1, 12, 12), torch.tensor([0, 2])
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=2)
VIEWS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "occlude": occlude,
    "attribute": attribute,
    "measure_invariance": lambda net, images: measure_invariance(net, images, transforms=["rotation"]),
    "project": lambda net, images: project(net, images, [Unit(0, "0", 1)]),
}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LOADER, r"images are a DataLoader; .*images, labels = next\(iter\(LOADER\)\)"),
        (np.zeros((2, 1, 12, 12), np.float32), r"images are a ndarray; .*torch\.from_numpy\(IMAGES\)"),
        (None, "images are a NoneType; give a tensor"),
        ("a.png", "images are a str; give a tensor"),
    ],
)
def test_what_is_no_tensor_of_images_is_refused(view: str, wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        VIEWS[view](net(), wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("view", [*VIEWS, "mine_top_patches"])
def test_images_of_another_precision_are_refused_with_the_mend(view: str, dtype: torch.dtype) -> None:
    images = IMAGES.to(dtype)
    run: Callable[[nn.Module, Any], Any] = VIEWS.get(
        view, lambda network, images: mine_top_patches(network, [(images, LABELS)])
    )
    with pytest.raises(ValueError, match=rf"images are {dtype}, and its weights torch\.float32: give images\.to\("):
        run(net(), images)
    run(net(), images.to(torch.float32))
    with pytest.raises(ValueError, match=r"images are torch\.float32, and its weights torch\.float64"):
        run(net().double(), IMAGES)


def test_a_network_that_casts_its_input_takes_any_precision() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images.float())
            return logits

    assert len(classify(Casts(), IMAGES.half(), LABELS)) == 2


def test_probes_take_features_and_no_network() -> None:
    with pytest.raises(TypeError, match=r"features are a Sequential; .*probe_layers\(tap_features\("):
        probe_layers(net(), LOADER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"features are a Sequential and labels a DataLoader; give tensors"):
        probe(net(), LOADER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"protocol is a DataLoader; give one of .*Protocol\(per_class=\.\.\.\)"):
        find_protocol(LOADER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a int has no batches: give a DataLoader"):
        tap_features(net(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, LOADER, "x", [IMAGES]])
def test_a_table_takes_a_size_or_an_image(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"input_size is a .*; give channels, height and width, as in \(3, 224, 224\)"):
        layer_table(net(), wrong)
