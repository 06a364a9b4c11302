"""Functions of a notebook on a network of two inputs: as on a network of one input that is given their product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz import (
    ClassScore,
    UnitActivation,
    called,
    channel_correlation,
    compare_units,
    layer_table,
    maximize,
    mine_top_patches,
    project,
    tap_features,
)
from lightning_cnnviz.core.images.activation_maps import activation_maps

IMAGES = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))
GAINS = torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0, 1.0]).view(-1, 1, 1, 1)
BATCH = {"image": IMAGES, "gain": GAINS, "label": torch.arange(6) % 2}


class Plain(nn.Module):
    """Takes images alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return scores


class Gained(Plain):
    """Takes images and a factor for each."""

    def forward(self, images: Tensor, gain: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images * gain)


def run(network: nn.Module, batch: Any) -> Any:
    """How the network is called."""
    return network(batch["image"], batch["gain"])


def test_what_reads_a_loader_runs_the_network_on_the_loaders_own_batches() -> None:
    batches = [{name: part[rows] for name, part in BATCH.items()} for rows in (slice(0, 4), slice(4, 6))]
    made = [(batch["image"] * batch["gain"], batch["label"]) for batch in batches]
    network, plain = called(Gained(), run), Plain()
    (found,), (expected,) = mine_top_patches(network, batches, k=4), mine_top_patches(plain, made, k=4)
    torch.testing.assert_close(found.activations, expected.activations)
    assert torch.equal(found.images, expected.images)
    torch.testing.assert_close(
        channel_correlation(network, batches)[0].correlation, channel_correlation(plain, made)[0].correlation
    )
    read, alone = (tap_features(*each).layers[0].values for each in ((network, batches), (plain, made)))
    torch.testing.assert_close(read, alone, atol=1e-6, rtol=1e-5)


def test_feature_maps_are_those_of_images_with_what_belongs_to_them() -> None:
    network, plain = called(Gained(), run, BATCH, IMAGES), Plain()
    (found,), (expected,) = activation_maps(network, IMAGES, k=2), activation_maps(plain, IMAGES * GAINS, k=2)
    torch.testing.assert_close(found.maps, expected.maps)
    assert torch.equal(found.features, expected.features)


@pytest.mark.parametrize("most_images", [7, 100])
def test_units_are_compared_on_images_with_what_belongs_to_them(most_images: int) -> None:
    """Also where some images of a batch are left out."""
    torch.manual_seed(1)
    other = nn.Conv2d(1, 3, 3)
    batches = [{name: part[rows] for name, part in BATCH.items()} for rows in (slice(0, 4), slice(4, 6))] * 2
    made = [(batch["image"] * batch["gain"], batch["label"]) for batch in batches]
    first, second = called(Gained(), run), called(Gained(), run)
    for network in (second, plain_other := Plain()):
        network.conv = other
    found = compare_units(first, second, batches, most_images=most_images)
    expected = compare_units(Plain(), plain_other, made, most_images=most_images)
    torch.testing.assert_close(found.layers[0].correlation, expected.layers[0].correlation)
    torch.testing.assert_close(found.cka, expected.cka)
    assert found.images == expected.images


def test_units_are_projected_through_what_belongs_to_their_image() -> None:
    network, units = called(Gained(), run, BATCH, IMAGES), [(4, "conv", 1), (0, "conv", 2), (4, "conv", 0, 3, 3)]
    found = project(network, IMAGES, units, method="gradient")
    expected = project(Plain(), IMAGES * GAINS, units, method="gradient")
    assert [unit[:5] for unit in found.units] == [unit[:5] for unit in expected.units]
    assert torch.equal(found.boxes, expected.boxes)
    for unit, pixels, plain in zip(found.units, found.pixels, expected.pixels, strict=True):
        torch.testing.assert_close(pixels, plain * GAINS[unit.image, 0, 0, 0])  # the chain rule
    with pytest.raises(ValueError, match=r"images \[7\]: the batch that called\(...\) was given has 6"):
        project(network, torch.cat([IMAGES, IMAGES]), [(7, "conv", 0)])


def test_what_has_no_image_of_the_batch_has_what_belongs_to_the_first() -> None:
    network = called(Gained(), run, BATCH, IMAGES)
    tables = [layer_table(each, (1, 9, 9)) for each in (network, Plain())]
    rows = [[(row.layer, row.output_shape) for row in table.rows if row.parameters] for table in tables]
    assert rows[0] == rows[1] == [("conv", (3, 7, 7)), ("head", (2,))]

    class Doubled(Plain):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images * 2.0)

    for objective in (ClassScore(1), UnitActivation("conv", 1)):
        found, expected = (maximize(each, objective, (1, 9, 9), steps=4, starts=2) for each in (network, Doubled()))
        torch.testing.assert_close(found.images, expected.images)
        torch.testing.assert_close(found.activations, expected.activations)


def test_a_batch_comes_with_its_images() -> None:
    with pytest.raises(ValueError, match="a batch comes with its images"):
        called(Gained(), run, BATCH)
    with pytest.raises(ValueError, match="let it return one"):
        called(Gained(), run, BATCH, IMAGES.clone())
    with pytest.raises(ValueError, match=r"elsewhere called\(network, forward_fn, batch, images\)"):
        project(called(Gained(), run), IMAGES, [(0, "conv", 0)])
