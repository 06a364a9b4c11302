"""Online probes of several heads; against those of one head alone: `tests/callbacks/test_calls.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import GivenBatch
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online_heads import OnlineHeads

IMAGES = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
LABELS = {"species": torch.arange(4) % 3, "sex": torch.arange(4) % 2}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        means = self.conv(images).mean((2, 3))
        return {"species": means, "sex": means[:, :2]}


def heads_of(network: nn.Module) -> OnlineHeads:
    heads = OnlineHeads(lambda: MapReader(network, select_layers(network, "conv"), pool=27))
    heads.find_names(network, IMAGES[:1])
    return heads


def given(**labels: Tensor) -> GivenBatch:
    return GivenBatch(batch={"image": IMAGES, **labels}, path=(), count=4)


def test_heads_are_those_that_have_labels_of_their_names_in_the_first_batch() -> None:
    heads = heads_of(Two())
    assert list(heads.targets(None, given(**LABELS))) == ["species", "sex"]
    assert list(heads.targets(None, given(sex=LABELS["sex"]))) == ["sex"]
    assert list(heads.targets(LABELS["sex"], given())) == [""]
    assert list(heads_of(nn.Sequential(nn.Conv2d(1, 3, 3))).targets(LABELS["sex"], given(**LABELS))) == [""]


def test_a_head_that_has_learned_goes_on_to_need_labels() -> None:
    network = Two()
    heads = heads_of(network)
    with heads.batch(IMAGES, heads.targets(None, given(**LABELS))):
        network(IMAGES)
    assert list(heads.learned) == ["species", "sex"]
    targets = heads.targets(None, given(sex=LABELS["sex"]))
    with (
        pytest.raises(ValueError, match="there are none of the head 'species' in this batch"),
        heads.batch(IMAGES, targets),
    ):
        network(IMAGES)


def test_each_head_is_tested_on_its_own_labels() -> None:
    network = Two()
    heads = heads_of(network)
    with pytest.raises(ValueError, match="had no batch to learn from"):
        heads.test().compute()
    for _ in range(3):
        with heads.batch(IMAGES, heads.targets(None, given(**LABELS))):
            network(IMAGES)
    heads.average()
    test = heads.test()
    with test.batch(IMAGES, torch.arange(4), heads.targets(None, given(**LABELS))):
        network(IMAGES)
    test.merge()
    found = test.compute()
    assert isinstance(found, ByHead)
    features = {"conv": network.conv(IMAGES).relu().flatten(1)}
    for name, scores in zip(found.names, found.results, strict=True):
        right = heads.learned[name].predict(features)[0] == LABELS[name]
        assert float(scores.accuracy[0]) == float(right.double().mean())
