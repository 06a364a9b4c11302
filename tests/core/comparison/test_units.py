from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.comparison.similarity import centered_gram
from lightning_cnnviz.core.comparison.units import LayerComparison, UnitComparison, compare_units
from lightning_cnnviz.core.network.layers import LayerNotFoundError


class Net(nn.Module):
    def __init__(self, seed: int, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.second, self.head = nn.Conv2d(width, 4, 3), nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.norm(self.first(x)).relu())
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]


class Other(Net):
    """The same layers under other names, and one more."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.stem, self.body, self.third = self.first, self.second, nn.Conv2d(4, 2, 1).double()
        del self.first, self.second

    def forward(self, x: Tensor) -> Tensor:
        maps = self.third(self.body(self.norm(self.stem(x)).relu()))
        return maps.mean((2, 3))  # type: ignore[no-any-return]


def images(count: int = 40) -> Tensor:
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def means_of(net: Net, batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        first = net.eval().norm(net.first(batch))
        second = net.second(first.relu())
    return [maps.mean((2, 3)) for maps in (first, second)]


def test_each_channel_is_correlated_with_the_one_of_its_number() -> None:
    one, two, batch = Net(0), Net(1), images()
    found = compare_units(one, two, DataLoader(TensorDataset(batch), batch_size=7))
    assert found.same_units
    assert found.images == 40
    for layer, mine, theirs in zip(found.layers, means_of(one, batch), means_of(two, batch), strict=True):
        expected = np.corrcoef(mine.T, theirs.T)[: mine.shape[1], mine.shape[1] :].diagonal()
        np.testing.assert_allclose(layer.correlation, expected, atol=1e-12)


def test_cka_is_that_of_all_pairs_of_layers() -> None:
    one, two, batch = Net(0), Net(1), images()
    found = compare_units(one, two, [batch])
    for row, mine in enumerate(means_of(one, batch)):
        for column, theirs in enumerate(means_of(two, batch)):
            expected = float((centered_gram(mine) * centered_gram(theirs)).sum())
            assert float(found.cka[row, column]) == pytest.approx(expected, abs=1e-5)
            if row == column:
                assert found.layers[row].cka == float(found.cka[row, column])


def test_partners_have_the_largest_sum_of_correlations_of_all_pairings() -> None:
    one, two, batch = Net(0), Net(1), images()
    layer = compare_units(one, two, [batch]).layers[0]
    mine, theirs = means_of(one, batch)[0], means_of(two, batch)[0]
    correlations = np.corrcoef(mine.T, theirs.T)[:5, 5:]
    best = max(permutations(range(5)), key=lambda order: sum(correlations[range(5), order]))
    assert layer.partners.tolist() == list(best)
    np.testing.assert_allclose(layer.partner_correlation, correlations[range(5), best], atol=1e-12)


def test_a_network_and_itself_are_the_same() -> None:
    net = Net(0)
    for other in (net, copy.deepcopy(net)):
        found = compare_units(net, other, [images()])
        for layer in found.layers:
            assert layer.cka == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(layer.correlation, np.ones(len(layer.correlation)), atol=1e-12)
            assert layer.partners.tolist() == list(range(len(layer.partners)))


def test_channels_that_were_overwritten_changed_most() -> None:
    net = Net(0, width=8)
    tuned = copy.deepcopy(net)
    with torch.no_grad():
        tuned.first.weight[[2, 5]] = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    layer = compare_units(net, tuned, [images()]).layers[0]
    assert set(layer.changed[:2].tolist()) == {2, 5}
    assert float(layer.similarity[[0, 1, 3, 4, 6, 7]].min()) == pytest.approx(1)


def test_layers_of_other_names_are_compared_with_the_one_most_alike_and_channels_are_found_again() -> None:
    one, two = Net(0), Other(0)
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        for value in (two.stem.weight, two.stem.bias, *two.norm.parameters(), *two.norm.buffers()):
            if value is not None and value.ndim:
                value.copy_(value[order])
        two.body.weight.copy_(two.body.weight[:, order])
    found = compare_units(one, two, [images()])
    assert not found.same_units
    assert [(layer.layer, layer.other) for layer in found.layers] == [("first", "stem"), ("second", "body")]
    assert found.other_layers == ("stem", "body", "third")
    first, second = found.layers
    assert [order[partner] for partner in first.partners.tolist()] == list(range(5))
    assert second.partners.tolist() == list(range(4))
    assert bool(first.correlation.isnan().all())
    assert first.similarity is first.partner_correlation


def test_constant_channels_have_no_partner() -> None:
    net = Net(0)
    with torch.no_grad():
        net.second.weight[1] = 0
    layer = compare_units(net, Net(1), [images()], "second").layers[0]
    assert int(layer.partners[1]) == -1
    assert bool(layer.partner_correlation[1].isnan())
    assert int(layer.changed[-1]) == 1


def test_the_likeness_that_matching_finds_in_shuffled_images_is_told() -> None:
    net = Net(0, width=60)
    few, many = (compare_units(net, Net(1, width=60), [images(count)], "first").layers[0] for count in (8, 400))
    assert 0.3 < few.chance < 1
    assert few.chance > 2 * many.chance


def test_of_many_images_an_even_part_is_kept() -> None:
    one, two, batch = Net(0), Net(1), images(100)
    found = compare_units(one, two, DataLoader(TensorDataset(batch), batch_size=9), most_images=30)
    plain = compare_units(one, two, [batch[::4]])
    assert found.images == plain.images == 25
    np.testing.assert_allclose(found.layers[0].correlation, plain.layers[0].correlation, atol=1e-12)


def test_images_with_features_that_are_not_finite_in_either_network_are_left_out() -> None:
    batch = images()
    batch[3] = torch.nan
    found = compare_units(Net(0), Net(1), [batch])
    assert (found.images, found.left_out) == (39, 1)
    with pytest.raises(ValueError, match="3 images have finite features in both networks, and 0 have not"):
        compare_units(Net(0), Net(1), [images(3)])


def test_the_other_network_may_take_other_images() -> None:
    net = Net(0)
    found = compare_units(net, net, [images()], other_inputs=lambda batch: 1 - batch)
    assert float(found.layers[0].correlation.max()) < -0.99


def test_networks_are_left_as_they_were() -> None:
    one, two = Net(0).train(), Net(1).train()
    state = torch.get_rng_state()
    compare_units(one, two, [images()])
    for net in (one, two):
        assert all(module.training for module in net.modules())
        assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="most_images=3: give at least 4"):
        compare_units(Net(0), Net(1), [images()], most_images=3)
    with pytest.raises(LayerNotFoundError, match="'firs'"):
        compare_units(Net(0), Net(1), [images()], "firs")
    with pytest.raises(ValueError, match="differ"):
        LayerComparison(
            layer="a",
            other="a",
            cka=1.0,
            correlation=torch.zeros(2),
            partners=torch.zeros(3).long(),
            partner_correlation=torch.zeros(2),
            chance=0.0,
        )
    with pytest.raises(ValueError, match="CKA of 0 x 1 layers is"):
        UnitComparison(layers=(), other_layers=("a",), cka=torch.zeros(2, 2), same_units=True, images=4)
