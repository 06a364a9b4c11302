from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.features import Features
from lightning_cnnviz.core.probing.plan import ProbePlan
from lightning_cnnviz.core.probing.probe import LayerProbe, probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.tap import tap_features

PROTOCOL = Protocol(per_class=3, test_per_class=2, splits=2)


class Silent(Dataset[Any]):
    """Does not tell its labels before an image is read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)).eval()


def loader(count: int = 40, seed: int = 0, *, telling: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    data = TensorDataset(torch.rand(count, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 4, labels)
    return DataLoader(data if telling else Silent(data), batch_size=8)


def plan(network: nn.Module, learned: Any, tested: Any = None, **options: Any) -> ProbePlan:
    return ProbePlan(network, select_layers(network), PROTOCOL, learned, tested, **{"pool": 50, **options})


def numbers(result: LayerProbe) -> list[Tensor]:
    return [scores.accuracy for scores in result]


@pytest.mark.parametrize("own_test", [True, False])
def test_only_what_is_drawn_is_read_and_probes_are_the_same(own_test: bool) -> None:
    network, test = net(), loader(24, 1) if own_test else None
    sets = plan(network, loader(), test).read(network)
    assert len(sets[0].indices) < 40
    plain = tap_features(network, loader(), pool=50), tap_features(network, loader(24, 1), pool=50)
    expected = probe_layers(plain[0], PROTOCOL, test=plain[1] if own_test else None)
    silent = plan(network, loader(telling=False), None if test is None else loader(24, 1, telling=False))
    for one, read in ((plan(network, loader(), test), sets), (silent, silent.read(network))):
        found = one.fit([read])
        assert [scores.digest for scores in found] == [scores.digest for scores in expected]
        assert all(torch.equal(a, b) for a, b in zip(numbers(found), numbers(expected), strict=True))
    assert len(silent.read(network)[0].indices) == 40


def test_ranks_read_parts() -> None:
    network = net()
    whole = plan(network, loader())
    parts = [whole.read(network, part=(rank, 3)) for rank in range(3)]
    alone = whole.fit([whole.read(network)])
    assert all(torch.equal(a, b) for a, b in zip(numbers(whole.fit(parts)), numbers(alone), strict=True))


@pytest.mark.parametrize("telling", [True, False])
def test_passes_of_somebody_else_need_not_be_made_again(telling: bool) -> None:
    network, learned, tested = net(), loader(), loader(24, 1, telling=telling)
    whole = plan(network, learned, tested, limit=20)
    tap = whole.tap(network, tested)
    assert tap is not None
    for start, (images, labels) in enumerate(tested):
        with tap.batch(images, 8 * start + torch.arange(len(images)), labels):
            network(images)
    expected = whole.read(network)
    found = whole.read(network, given=(tested, tap.compute()))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Features)
        assert isinstance(other, Features)
        assert torch.equal(one.indices, other.indices)
        assert torch.allclose(one["2"].dense(), other["2"].dense(), atol=1e-6)


def test_where_other_passes_cannot_serve() -> None:
    network = net()
    batches = [tuple(loader().dataset.tensors)]  # type: ignore[attr-defined]
    whole = plan(network, batches)
    assert whole.tap(network, batches) is None
    assert whole.tap(network, loader()) is None
    learned = loader()
    assert plan(network, learned, pool=None).tap(network, learned) is None


def test_too_few_images_are_refused_before_any_is_read() -> None:
    with pytest.raises(ValueError, match="only class 0: 3"):
        plan(net(), loader(11))


class Fixed(nn.Module):
    """Works with weights that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.rand(4, 1, 3, 3)
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.conv(nn.functional.conv2d(images, self.kernel))
        return out


def test_a_control_with_the_features_of_the_network_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 2), batch_size=4)
    protocol = Protocol(per_class=3, splits=1, heads=("knn",))

    def control(net: nn.Module) -> Any:
        plan = ProbePlan(net, select_layers(net, "conv"), protocol, loader, pool=50)
        return plan.read_control(net, plan.read(net), seed=1)

    net = Fixed()
    assert control(net)[0]["conv"].images == 12
    net.conv.forward = lambda maps: maps  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="layer 'conv' of Fixed computes the same with weights made anew"):
        control(net)


@pytest.mark.parametrize("own_test", [True, False])
def test_the_manifest_has_the_indices_of_each_split(own_test: bool) -> None:
    network, test = net(), loader(24, 1) if own_test else None
    chosen = plan(network, loader(), test)
    told = chosen.split_manifest()
    assert told is not None
    assert told["digest"] == chosen.fit([chosen.read(network)]).scores[0].digest
    assert len(told["splits"]) == PROTOCOL.splits
    for split in told["splits"]:
        assert sorted(index % 4 for index in split["train"]) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert sorted(index % 4 for index in split["test"]) == [0] * 2 + [1] * 2 + [2] * 2 + [3] * 2
        assert own_test or not {*split["train"]} & {*split["test"]}
        assert {*split["held out to choose C"]} < {*split["train"]}
    assert plan(network, loader(telling=False)).split_manifest() is None
