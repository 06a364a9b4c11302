from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from core.thread_ranks import as_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.data import once
from lightning_cnnviz.core.data.once import SeenImages
from lightning_cnnviz.core.top_patches import activity
from lightning_cnnviz.core.top_patches.activity import FeatureActivity, RunningActivity
from lightning_cnnviz.core.top_patches.search import mine_top_patches

ALL = slice(None)


def running(*batches: tuple[Tensor, Tensor | None]) -> RunningActivity:
    """The activity of batches of values, with labels, numbered in order."""
    seen = SeenImages()
    found = RunningActivity(batches[0][0].shape[1], seen)
    start = 0
    for values, labels in batches:
        indices = torch.arange(start, start + len(values))
        found.update(indices, values, labels)
        seen.add(indices)
        start += len(values)
    return found


def computed(*batches: tuple[Tensor, Tensor | None]) -> FeatureActivity:
    return running(*batches).compute(ALL, tuple(range(batches[0][0].shape[1])))


def assert_same(found: FeatureActivity, expected: FeatureActivity) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=1e-12, equal_nan=True)
        else:
            assert getattr(found, name) == value


def draw(images: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(-3, features - 3)
    return torch.randn(images, features, generator=generator, dtype=torch.float64) * scale


def test_it_is_what_plain_sums_find() -> None:
    values, labels = draw(60, 5), torch.arange(60) % 7
    found = computed((values[:11], labels[:11]), (values[11:], labels[11:]))
    np.testing.assert_allclose(found.mean, values.mean(0))
    np.testing.assert_allclose(found.std, values.std(0, correction=0))
    assert torch.equal(found.lowest, values.amin(0))
    assert torch.equal(found.highest, values.amax(0))
    assert found.images.tolist() == [60] * 5
    assert found.classes is not None
    assert found.class_means is not None
    assert found.selectivity is not None
    for feature in range(5):
        told = []
        for label in range(7):
            own, others = values[labels == label, feature], values[labels != label, feature]
            told.append(float((own.mean() - others.mean()) / values[:, feature].std(correction=0)))
        best = sorted(range(7), key=lambda label: -told[label])[:5]
        assert found.classes[feature].tolist() == best
        np.testing.assert_allclose(found.selectivity[feature], [told[label] for label in best])
        means = [float(values[labels == label, feature].mean()) for label in best]
        np.testing.assert_allclose(found.class_means[feature], means)


def test_a_histogram_counts_each_value_in_its_bin() -> None:
    values = draw(500, 6)
    found = computed(*((part, None) for part in values.split(13)))
    assert found.counts.dtype == torch.int32
    assert found.counts.sum(1).tolist() == [500] * 6
    for feature in range(6):
        low, width = float(found.low[feature]), float(found.width[feature])
        assert math.log2(width) == round(math.log2(width))
        edges = low + width * np.arange(33)
        assert edges[0] <= values[:, feature].min() < values[:, feature].max() < edges[-1]
        bins = ((values[:, feature] - low) / width).floor().long()
        assert found.counts[feature].tolist() == torch.bincount(bins, minlength=32).tolist()
        # No finer bins of this kind would hold them all.
        assert (values[:, feature].max() / (width / 2)).floor() - (values[:, feature].min() / (width / 2)).floor() >= 32


@given(
    st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1e-30, 5.0, -5.0]), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.integers(1, 7),
)
def test_neither_the_order_of_images_nor_the_batches_make_a_difference(
    numbers: list[float], order: Any, size: int
) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)[:, None]
    shuffled = list(range(len(numbers)))
    order.shuffle(shuffled)
    at_once, in_pieces = computed((values, None)), computed(*((part, None) for part in values[shuffled].split(size)))
    for name in ("counts", "low", "width", "lowest", "highest", "images"):
        assert torch.equal(getattr(at_once, name), getattr(in_pieces, name)), name
    assert int(at_once.counts.sum()) == len(numbers)


def test_what_is_not_finite_does_not_count() -> None:
    values, labels = draw(20, 2), torch.arange(20) % 2
    values[4, 0] = values[7, 1] = -torch.inf
    found = computed((values, labels))
    assert found.images.tolist() == [19, 19]
    kept = [place for place in range(20) if place != 4]
    np.testing.assert_allclose(found.mean[0], values[kept, 0].mean())
    nothing = computed((torch.full((3, 1), -torch.inf), labels[:3]))
    assert int(nothing.images) == int(nothing.counts.sum()) == 0
    assert bool(nothing.mean.isnan().all())
    assert nothing.classes is None


def test_images_without_a_label_are_in_no_class() -> None:
    values, labels = draw(20, 1), torch.arange(20) % 2
    labels[::5] = -100
    found = computed((values, labels))
    assert found.classes is not None
    assert sorted(found.classes[0].tolist()) == [-1, -1, -1, 0, 1]
    assert computed((values, torch.full((20,), -1))).classes is None
    assert computed((values, None)).classes is None


def test_a_constant_feature_map_is_selective_for_nothing() -> None:
    found = computed((torch.full((30, 1), 0.3, dtype=torch.float64), torch.arange(30) % 3))
    assert float(found.std) == 0
    assert found.classes is not None
    assert found.classes.tolist() == [[-1] * 5]


def test_too_many_classes_are_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_MOST_SUMS", 20)
    assert computed((draw(8, 4), torch.arange(8) % 5)).classes is not None
    assert computed((draw(8, 4), torch.arange(8) % 6)).classes is None


@pytest.mark.parametrize("order", ["sampler", "shuffled", "everything", "nothing on one rank"])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_together_find_what_one_finds(order: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = draw(25, 4), torch.arange(25) % 6
    expected = computed((values, labels))
    shuffled = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    padded = {
        "sampler": torch.cat([torch.arange(25), torch.arange(count)]),
        "shuffled": torch.cat([shuffled, shuffled[:count]]),
    }

    def own(rank: int) -> Tensor:
        if order == "everything":
            return torch.arange(25)
        if order == "nothing on one rank":
            return torch.arange(25)[: 25 if rank == 0 else 0]
        return padded[order][: (25 + count - 1) // count * count][rank::count]

    def work(rank: int) -> FeatureActivity:
        seen = SeenImages()
        found = RunningActivity(4, seen)
        for indices in own(rank).split(4):
            if len(indices):
                found.update(indices, values[indices], labels[indices])
                seen.add(indices)
        found.merge()
        return found.compute(ALL, (0, 1, 2, 3))

    for found in as_ranks(work, count, monkeypatch, once, activity):
        assert_same(found, expected)


def test_mining_tells_the_activity_of_the_feature_maps_that_are_shown() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).double().eval()
    images, labels = torch.rand(30, 1, 9, 9, dtype=torch.float64), torch.arange(30) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=7)
    found = mine_top_patches(net, loader, k=2, features={"0": [1, 4], "2": [3]})
    with torch.no_grad():
        maxima = [net[0](images).amax((2, 3)), net(images).amax((2, 3))]
    assert_same_mining(found["0"].activity, maxima[0][:, [1, 4]], labels, (1, 4))
    assert_same_mining(found["2"].activity, maxima[1][:, [3]], labels, (3,))
    narrowed = found.narrowed(["0"], 1, {"0": [4]})["0"].activity
    assert_same_mining(narrowed, maxima[0][:, [4]], labels, (4,))


def assert_same_mining(
    found: FeatureActivity | None, values: Tensor, labels: Tensor, features: tuple[int, ...]
) -> None:
    assert found is not None
    seen = SeenImages()
    expected = RunningActivity(values.shape[1], seen)
    expected.update(torch.arange(len(values)), values, labels)
    assert_same(found, expected.compute(ALL, features))
