from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core.thread_ranks import as_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.data import once
from lightning_cnnviz.core.images import correlation
from lightning_cnnviz.core.images.correlation import ChannelCorrelation, RunningCorrelation, channel_correlation
from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers


class Net(nn.Module):
    """A BatchNorm, an in-place ReLU, channels that are copies, negatives and constants, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.relu = nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(inplace=True)
        self.second, self.head = nn.Conv2d(7, 4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            self.first.weight[3] = self.first.weight[1]
            self.first.weight[4] = -2 * self.first.weight[0]
            self.first.weight[5] = 0
            nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.relu(self.norm(self.first(x))))
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int = 40) -> Tensor:
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference(maps: Tensor) -> np.ndarray:
    return np.corrcoef(maps.detach().mean((2, 3)).numpy().T)


def test_it_is_numpys_correlation_of_the_maps_that_the_nonlinearity_reads() -> None:
    net, batch = Net().eval(), images()
    first, second = channel_correlation(net, DataLoader(TensorDataset(batch), batch_size=7))
    assert [result.layer for result in (first, second)] == ["first", "second"]
    with torch.no_grad():
        behind = net.norm(net.first(batch))
        after = net.second(behind.relu())
    varying = [0, 1, 2, 3, 4, 6]
    np.testing.assert_allclose(first.correlation[varying][:, varying], reference(behind[:, varying]), atol=1e-12)
    np.testing.assert_allclose(second.correlation, reference(after), atol=1e-12)
    assert first.images == second.images == 40


def test_constant_channels_have_no_correlation_and_are_not_redundant() -> None:
    first, _ = channel_correlation(Net(), [images()])
    assert first.constant.tolist() == [False] * 5 + [True, False]
    assert bool(first.correlation[5].isnan().all())
    assert bool(first.correlation[:, 5].isnan().all())
    assert int(first.order[-1]) == 5
    # 3 is a copy of 1, and 4 the negative of 0.
    assert first.redundant.tolist() == [False, False, False, True, True, False, False]
    assert first.redundant_fraction == pytest.approx(2 / 7)


def test_a_copy_of_a_channel_that_is_left_out_counts_by_those_that_stay() -> None:
    # 0 and 1 are alike, and 1 and 2, but not 0 and 2: without 1, channel 2 is needed.
    chain = torch.tensor([[1, 0.96, 0.85], [0.96, 1, 0.96], [0.85, 0.96, 1]], dtype=torch.float64)
    assert correlation._redundant(chain, 0.95).tolist() == [False, True, False]
    assert correlation._redundant(chain, 0.85).tolist() == [False, True, True]
    assert correlation._redundant(chain, 1).tolist() == [False, False, False]


def test_equal_channels_reach_a_threshold_of_one() -> None:
    first, _ = channel_correlation(Net(), [images()], threshold=1)
    assert first.redundant.tolist() == [False, False, False, True, True, False, False]


def test_alike_channels_stand_side_by_side() -> None:
    first, _ = channel_correlation(Net(), [images()])
    order = first.order.tolist()
    assert sorted(order) == list(range(7))
    assert abs(order.index(1) - order.index(3)) == 1


@settings(max_examples=25)
@given(st.lists(st.integers(0, 39), min_size=3, max_size=60), st.integers(1, 9))
def test_order_batches_and_repetitions_change_nothing(drawn: list[int], size: int) -> None:
    net, data = Net(), TensorDataset(images())
    once = sorted(set(drawn))
    if len(once) < 3:
        return
    whole, _ = channel_correlation(net, [data[once]])
    batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    running = run(net, [(data[batch][0], torch.tensor(batch)) for batch in batches])
    found, _ = running.compute()
    np.testing.assert_allclose(found.correlation, whole.correlation, atol=1e-10)
    assert found.images == len(once)
    assert torch.equal(found.redundant, whole.redundant)


def run(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> RunningCorrelation:
    running = RunningCorrelation(net, select_layers(net))
    net.eval()
    for batch, indices in batches:
        with torch.inference_mode(), running.batch(batch, indices):
            net(batch)
    return running


def test_a_large_mean_leaves_small_deviations_exact() -> None:
    moments, generator = correlation._Moments(3), torch.Generator().manual_seed(2)
    rows = 1e4 + torch.rand(500, 3, dtype=torch.float64, generator=generator)
    for part in rows.split(13):
        moments.add(part)
    np.testing.assert_allclose(moments.result("layer", 0.9).correlation, np.corrcoef(rows.T), atol=1e-9)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("shares", ["sampler", "shuffled", "everything"])
def test_ranks_together_find_what_one_finds(ranks: int, shares: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(20)
    places = torch.randperm(20) if shares == "shuffled" else torch.arange(20)
    padded = torch.cat([places, places[: -20 % ranks]])  # as Lightning's sampler has it: some images come twice
    (whole, _) = run(Net(), [(data, torch.arange(20))]).compute()

    def one(rank: int) -> Any:
        own = places if shares == "everything" else padded[rank::ranks]
        running = run(Net(), [(data[part], part) for part in own.split(4)])
        running.merge()
        return running.compute()[0]

    for found in as_ranks(one, ranks, monkeypatch, correlation, once):
        assert found.images == 20
        np.testing.assert_allclose(found.correlation, whole.correlation, atol=1e-12)
        assert torch.equal(found.order, whole.order)


def test_a_rank_without_an_image_is_refused_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(rank: int) -> str:
        running = run(Net(), [(images(2), torch.arange(2))] if rank == 0 else [])
        with pytest.raises(ValueError, match="cannot be merged: a rank has seen no image"):
            running.merge()
        return "refused"

    assert as_ranks(one, 2, monkeypatch, correlation, once) == ["refused"] * 2


def half_of_the_images() -> Any:
    """What two ranks find together, of images that the sampler of validation has padded."""
    data = images(21)
    padded = torch.cat([torch.arange(21), torch.tensor([0])])
    running = run(Net(), [(data[part], part) for part in padded[torch.distributed.get_rank() :: 2].split(4)])
    running.merge()
    return running.compute()[0]


def test_two_real_processes_find_what_one_finds(tmp_path: Path) -> None:
    from core.two_ranks import on_two_ranks

    (whole, _) = run(Net(), [(images(21), torch.arange(21))]).compute()
    for found in on_two_ranks(__file__, "half_of_the_images", tmp_path):
        assert found.images == 21
        np.testing.assert_allclose(found.correlation, whole.correlation, atol=1e-12)


def test_images_that_are_not_finite_are_left_out_and_counted() -> None:
    data = images(12)
    data[3, 0, 0, 0] = torch.nan
    first, second = channel_correlation(Net(), [data])
    whole, _ = channel_correlation(Net(), [torch.cat([data[:3], data[4:]])])
    assert (first.images, first.left_out, second.left_out) == (11, 1, 1)
    np.testing.assert_allclose(first.correlation, whole.correlation, atol=1e-12)


def test_one_image_tells_nothing() -> None:
    first, _ = channel_correlation(Net(), [images(1)])
    assert bool(first.correlation.isnan().all())
    assert np.isnan(first.redundant_fraction)


def test_it_leaves_no_trace_also_through_an_error() -> None:
    net = Net().train()
    running, batch = RunningCorrelation(net, select_layers(net)), images(3)
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="the network failed"), running.batch(batch, torch.arange(3)):
        raise RuntimeError("the network failed")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(ValueError, match=r"layers \['first', 'second'\] gave no feature maps of so many"):  # noqa: SIM117
        with running.batch(batch, torch.arange(3)):
            pass
    channel_correlation(net, [batch])
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    # What failed was not taken.
    net.eval()
    with running.batch(batch, torch.arange(3)):
        net(batch)
    assert running.compute()[0].images == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold=0: give an absolute correlation above 0, up to 1"),
        ({"threshold": 1.1}, ValueError, r"threshold=1\.1"),
        ({"layers": "third"}, LayerNotFoundError, "no layer of Net matches 'third'"),
        ({"loader": []}, ValueError, "the loader list is empty"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        channel_correlation(**{"model": Net(), "loader": [images(2)], **arguments})


def test_nothing_seen_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no image was seen"):
        RunningCorrelation(Net(), select_layers(Net())).compute()
    with pytest.raises(ValueError, match=r"layer 'x': correlation .* do not go together"):
        ChannelCorrelation(
            layer="x",
            correlation=torch.eye(3),
            order=torch.arange(2),
            redundant=torch.zeros(2, dtype=torch.bool),
            threshold=0.9,
            images=2,
        )
