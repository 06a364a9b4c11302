"""Functions that are left to choose layers: a vision transformer's patch embedding is not shown as if it were all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz import (
    attribute,
    channel_correlation,
    compare_units,
    mine_top_patches,
    occlude,
    show,
    tap_features,
)
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.images.attribution import check_attribution
from lightning_cnnviz.core.images.occlusion import check_occlusion
from lightning_cnnviz.report import Scalar

IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES, torch.arange(6) % 2)]


class Transformer(nn.Module):
    """Cuts images into patches, which attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.block(self.patches(images).flatten(2).mT).mean(1))
        return scores


@pytest.mark.parametrize(
    "function",
    [
        lambda network, *layers: mine_top_patches(network, BATCHES, *layers, k=2),
        lambda network, *layers: channel_correlation(network, BATCHES, *layers),
        lambda network, *layers: tap_features(network, BATCHES, *layers),
        lambda network, *layers: activation_maps(network, IMAGES, *layers),
        lambda network, *layers: compare_units(network, Transformer(), BATCHES, *layers),
    ],
    ids=["mine_top_patches", "channel_correlation", "tap_features", "activation_maps", "compare_units"],
)
def test_it_is_refused_unless_it_is_named(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"'patches', cuts images into patches of 4 x 4.*layers=\[\"patches\"\]"):
        function(Transformer())
    function(Transformer(), ["patches"])


@pytest.mark.parametrize("method", ["gradcam", "guided_gradcam"])
@pytest.mark.parametrize("function", [attribute, check_attribution])
def test_attribution_weighs_it_where_it_is_named_alone(function: Any, method: Any) -> None:
    with pytest.raises(ValueError, match=r"patches of 4 x 4.*or this one, as layer=\"patches\"; or give method=\"int"):
        function(Transformer(), IMAGES, None, method)
    if method == "gradcam":  # guided backpropagation has rules of its own for what is behind
        function(Transformer(), IMAGES, None, method, layer="patches")
    assert attribute(Transformer(), IMAGES, method="saliency").layer == ""


class Dense(nn.Sequential):
    """No layer has feature maps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("network", "why"),
    [(Transformer, "cuts images into patches of 4 x 4"), (Dense, "has no layer that returns feature")],
)
def test_occlusion_follows_the_class_alone_where_there_is_no_layer(network: Any, why: str) -> None:
    model = network().eval()
    assert check_occlusion(model, IMAGES).kind == "multiclass"
    found = occlude(model, IMAGES, size=6, stride=6, fill=0.5)
    assert (found.layer, found.channels.tolist(), found.projections) == ("", [-1] * 6, ())
    assert why in found.unfollowed
    assert bool(found.activations.isnan().all())
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        covered = IMAGES.clone()
        covered[:, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = 0.5
        with torch.no_grad():
            expected = model(covered).softmax(1)
        own = expected[torch.arange(6), found.untouched.targets]
        torch.testing.assert_close(found.probabilities.flatten(1)[:, number], own)
        assert torch.equal(found.predictions.flatten(1)[:, number], expected.argmax(1))
    report = show(found, images=IMAGES)
    assert [note for note in report.notes if note.startswith("No layer's activation is followed: ")]
    assert not [note for note in report.notes if "Not finite" in note]
    assert {item.name for item in report.items if isinstance(item, Scalar)} == {
        "p_predicted/largest_drop",
        "p_predicted/most_probable_share",
    }


def test_convolutions_whose_maps_the_head_pools_are_followed_whatever_they_cut() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    assert occlude(model, IMAGES, size=6, stride=6).layer == "1"
    assert attribute(model, IMAGES).layer == "1"
