"""Probes of networks of signals and of volumes, against features computed plainly and scikit-learn's fits on them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.network.layers import LayerSpec, select_layers
from lightning_cnnviz.core.probing.features import Features
from lightning_cnnviz.core.probing.map_reader import MapReader, _grid
from lightning_cnnviz.core.probing.online import OnlineProbes
from lightning_cnnviz.core.probing.online_passes import OnlineLearner, OnlineTest
from lightning_cnnviz.core.probing.probe import probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.tap import tap_features

SIZES = {1: (2, 30), 3: (2, 6, 8, 9)}
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
POOLS: dict[int, Any] = {1: F.max_pool1d, 3: F.max_pool3d}
of_axes = pytest.mark.parametrize("axes", [pytest.param(1, id="signals"), pytest.param(3, id="volumes")])


class Net(nn.Module):
    """A BatchNorm, a functional pooling, and a head that takes means over all of space."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.axes = axes
        self.conv1 = CONVOLUTIONS[axes](2, 5, 3, padding=1)
        self.norm = NORMS[axes](5)
        self.conv2 = CONVOLUTIONS[axes](5, 6, 3)
        self.head = nn.Linear(6, 3)
        nn.init.normal_(self.norm.running_mean, std=0.3)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = self.norm(self.conv1(images))
        return first, self.conv2(POOLS[self.axes](first.relu(), 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.maps(images)[1].relu().flatten(2).mean(2))  # type: ignore[no-any-return]


def patterns(axes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise, in which the class is how fast a wave runs along the last axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    size = SIZES[axes]
    waves = torch.stack([(torch.arange(size[-1]) * speed).cos() for speed in (0.3, 1.2, 2.6)])[labels]
    images = torch.randn(count, *size, generator=generator) * 0.8
    return images + waves.view(count, *[1] * axes, -1), labels


def plain_features(model: Net, images: Tensor, layer: str, pooled: tuple[int, ...]) -> Tensor:
    """Means over the cells of a grid, each summed up in loops."""
    with torch.no_grad():
        first, second = model.eval().maps(images)
    maps = {"conv1": first.relu(), "conv2": second.relu(), "norm": first}[layer].double()
    rows = []
    for cell in torch.cartesian_prod(*map(torch.arange, pooled)).view(-1, len(pooled)).tolist():
        part = maps
        for axis, (at, cells) in enumerate(zip(cell, pooled, strict=True), start=2):
            side = maps.shape[axis]
            first_of, last_of = at * side // cells, math.ceil((at + 1) * side / cells)
            part = part.narrow(axis, first_of, last_of - first_of)
        rows.append(part.flatten(2).mean(2))
    return torch.stack(rows, 2).flatten(1)


def read(model: Net, axes: int, layers: LayerSpec = "conv", count: int = 45, seed: int = 1, **options: Any) -> Features:
    loader = DataLoader(TensorDataset(*patterns(axes, count, seed)), batch_size=7)
    return tap_features(model, loader, layers, **options)


@of_axes
@pytest.mark.parametrize("pool", [12, 60, None])
def test_features_are_means_over_the_cells_of_rectified_maps(axes: int, pool: int | None) -> None:
    model, images = Net(axes), patterns(axes, 45, 1)[0]
    features = [*read(model, axes, pool=pool), *read(model, axes, "norm", pool=pool)]
    assert [layer.layer for layer in features] == ["conv1", "conv2", "norm"]
    for layer in features:
        assert len(layer.shape) == axes + 1
        assert len(layer.pooled) == axes
        assert pool is None or layer.dimensions <= pool
        wanted = plain_features(model, images, layer.layer, layer.pooled)
        torch.testing.assert_close(layer.dense().double(), wanted, atol=1e-5, rtol=1e-5)


@of_axes
def test_probes_are_scikit_learns_on_these_features(axes: int) -> None:
    model, protocol = Net(axes), Protocol(heads=("softmax",), Cs=(10.0,), extensions=0, average="image")
    train, test = read(model, axes, pool=40), read(model, axes, pool=40, count=30, seed=2)
    found = probe_layers(train, protocol, test=test).scores
    assert [scores.layer for scores in found] == ["conv1", "conv2"]
    for scores in found:
        inner, outer = (
            plain_features(model, patterns(axes, count, seed)[0], scores.layer, train[scores.layer].pooled)
            for count, seed in ((45, 1), (30, 2))
        )
        mean = inner.mean(0)
        scale = (inner - mean).square().sum(1).mean().sqrt()
        fitted = LogisticRegression(C=10.0, tol=1e-8, max_iter=10_000).fit((inner - mean) / scale, train.labels)
        # One image of thirty may lie so near to a border that solvers differ.
        assert float(scores.accuracy[0, 0]) == pytest.approx(
            fitted.score((outer - mean) / scale, test.labels), abs=0.034
        )
        assert float(scores.accuracy[0, 0]) > 0.4


@of_axes
def test_probes_learn_along_from_features_computed_plainly(axes: int) -> None:
    model = Net(axes)
    reader = MapReader(model, select_layers(model), pool=24)
    learner, seen = OnlineLearner(reader, None), []
    for seed in range(4):
        images, labels = patterns(axes, 24, seed)
        with learner.batch(images, labels), torch.no_grad():
            model.eval()(images)
        seen.append((images, labels))
    assert isinstance(learner.probes, OnlineProbes)
    plain = OnlineLearner(_Plain(model, {name: grid for name, (_, grid) in reader.grids.items()}), None)  # type: ignore[arg-type]
    for images, labels in seen:
        with plain.batch(images, labels):
            pass
    for name, values in learner.probes.state_dict().items():
        _assert_close(values, plain.probes.state_dict()[name])  # type: ignore[union-attr]
    test = OnlineTest(reader, learner.probes)
    images, labels = patterns(axes, 30, 9)
    with test.batch(images, torch.arange(30), labels), torch.no_grad():
        model(images)
    assert len(test.compute().layers) == 2


class _Plain:
    """What a reader gives, of features computed plainly."""

    def __init__(self, model: Net, grids: dict[str, tuple[int, ...]]) -> None:
        self._model, self._grids, self.maps = model, grids, [SimpleNamespace(layer=name) for name in grids]
        self.values: dict[str, Tensor] = {}

    def reading(self, images: Tensor, *_: Any, **__: Any) -> Any:
        self.values = {
            name: plain_features(self._model, images, name, grid).float() for name, grid in self._grids.items()
        }
        return nullcontext()


def _assert_close(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_close(one[key], other[key])
    else:
        assert one == other or (isinstance(one, float) and one == pytest.approx(other, rel=1e-3))


def test_the_grid_is_as_fine_as_the_limit_allows_along_all_axes() -> None:
    assert _grid((8, 30), 64) == (8,)
    assert _grid((8, 30), 4) == (1,)
    assert _grid((4, 16, 16, 16), 4 * 64) == (4, 4, 4)
    assert _grid((4, 2, 16, 16), 4 * 64) == (1, 8, 8)  # cells of 2 x 2 x 2
    assert _grid((4, 2, 16, 16), None) == (2, 16, 16)


def test_labels_of_the_samples_of_a_signal_are_told_from_the_cell_of_each() -> None:
    model, images = Net(1), patterns(1, 9, 1)[0]
    labels = (images[:, :1] > 0).long()  # (N, 1, L): maps of one row
    features = tap_features(model, [(images, labels)], pool=12)
    assert (features.pixels, len(features.labels), features["conv1"].values.shape) == (8, 72, (72, 5))  # type: ignore[union-attr]
    with torch.no_grad():
        first = model.eval().maps(images)[0].relu()
    # A cell of the first layer is a sample: each feature row is one of its image's, with the class of that sample.
    for row, label, number in zip(features["conv1"].dense(), features.labels, features.indices // 8, strict=True):
        same = (first[number] == row[:, None]).all(0)
        assert bool((labels[number, 0, same] == label).any())


def test_labels_of_voxels_are_refused_in_words() -> None:
    images = patterns(3, 6, 1)[0]
    with pytest.raises(ValueError, match="a probe needs"):
        tap_features(Net(3), [(images, (images[:, 0] > 0).long())])
    with pytest.raises(ValueError, match="labels of each voxel, or of a clip's pixels, are not probed"):
        tap_features(Net(3), [(images, (images[:, 0, 0] > 0).long())])
