"""Functions that are left to choose layers: a vision transformer's patch embedding is not shown as if it were all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz import channel_correlation, compare_units, mine_top_patches, tap_features
from lightning_cnnviz.core.images.activation_maps import activation_maps

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
