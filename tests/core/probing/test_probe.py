from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.probing.features import Features, LayerFeatures
from lightning_cnnviz.core.probing.probe import ProbeScores, _Data, gram_matrix, probe, probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol, Split, draw_splits
from lightning_cnnviz.core.probing.solvers import fit_features, fit_gram
from lightning_cnnviz.core.probing.tap import tap_features


def problem(images: int, size: int, classes: int, seed: int = 0, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Rectified features of overlapping classes, far from zero and of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    points = spread * torch.randn(classes, 12, generator=generator)[labels]
    points = points + torch.randn(images, 12, generator=generator)
    mixed = points @ torch.randn(12, size, generator=generator) + torch.randn(images, size, generator=generator)
    return mixed.clamp(min=0) * torch.logspace(-0.5, 0.5, size) + 3, labels


def scaled(features: Tensor, learned: Tensor, scaling: str) -> Tensor:
    """What `Protocol.scaling` says, written down once more in float64."""
    features = features.double()
    seen = features[learned]
    if scaling == "none":
        return features
    if scaling == "center":
        return (features - seen.mean(0)) / (seen - seen.mean(0)).square().sum(1).mean().sqrt()
    scaler = StandardScaler().fit(seen.numpy())
    return torch.tensor(scaler.transform(features.numpy())) / features.shape[1] ** 0.5


def oracle(head: str, strength: float) -> Any:
    options = {"tol": 1e-7, "max_iter": 100_000}
    if head == "knn":
        return KNeighborsClassifier(5)
    return LinearSVC(C=strength, **options) if head == "svm" else LogisticRegression(C=strength, **options)


def by_scikit_learn(features: Tensor, labels: Tensor, split: Split, head: str, protocol: Protocol) -> tuple[float, Any]:
    """Accuracy and C of a whole pipeline: C chosen on held-out images, of equal ones the smallest.

    The grid goes on by tenths and tens while its end is the best and better than the one beside it; and by tens while
    all are alike but for chance, and least squares miss less than half of the training images that the last one misses.
    """

    def right(predicted: Any, places: Tensor) -> float:
        hits = torch.tensor(predicted == labels[places].numpy()).double()
        return float((torch.bincount(labels[places], hits) / torch.bincount(labels[places])).mean())

    def accuracy(strength: float, learned: Tensor, tested: Tensor) -> float:
        inputs = scaled(features, learned, protocol.scaling).numpy()
        return right(
            oracle(head, strength).fit(inputs[learned], labels[learned].numpy()).predict(inputs[tested]), tested
        )

    def underfits(strength: float) -> bool:
        inputs = scaled(features, split.fit, protocol.scaling).numpy()[split.fit]
        least = LinearRegression().fit(inputs, torch.nn.functional.one_hot(labels[split.fit]).numpy())
        missed = 1 - accuracy(strength, split.fit, split.fit)
        return missed > 0 and missed > 2 * (1 - right(least.predict(inputs).argmax(1), split.fit))

    def alike(values: Any) -> bool:
        best = max(values)
        return best - min(values) <= 2 * math.sqrt(best * (1 - best) / len(split.held_out))

    chosen = math.nan
    if head != "knn":
        found = {power: accuracy(10.0**power, split.fit, split.held_out) for power in (-1, 0, 1)}
        while True:
            first, last = min(found), max(found)
            others = [value for power, value in found.items() if power != last]
            if found[last] > max(others) or (alike(found.values()) and underfits(10.0**last)):
                following = last + 1
            elif found[first] == max(found.values()) and found[first] > found[first + 1]:
                following = first - 1
            else:
                break
            found[following] = accuracy(10.0**following, split.fit, split.held_out)
        best = max(found.values())
        chosen = 10.0 ** min(power for power, value in found.items() if value == best)
    return accuracy(chosen, split.train, split.test), chosen


@pytest.mark.parametrize("scaling", ["center", "standard", "none"])
@pytest.mark.parametrize("size", [300, 40], ids=["gram", "features"])
def test_scores_are_those_of_a_pipeline_of_scikit_learn(scaling: Any, size: int) -> None:
    features, labels = problem(600, size, 4)
    if scaling == "none":
        features = (features - 3) / 30
    protocol = Protocol(per_class=50, splits=2, heads=("svm", "softmax", "knn"), scaling=scaling)
    found = probe(features, labels, protocol, layer="conv")
    assert (found.layer, found.dimensions, found.classes) == ("conv", size, 4)
    assert bool(found.converged.all())
    manifest = draw_splits(labels, protocol)
    assert found.digest == manifest.digest
    for place, split in enumerate(manifest.splits):
        for row, head in enumerate(protocol.heads):
            accuracy, strength = by_scikit_learn(features, labels, split, head, protocol)
            assert float(found.accuracy[row, place]) == pytest.approx(accuracy, abs=0.005), head
            assert float(found.C[row, place]) == pytest.approx(strength, nan_ok=True), head
            if head != "knn":
                assert found.tried is not None
                assert float(found.tried[row, place, 0]) <= strength <= float(found.tried[row, place, 1])
    assert found.bracketed is not None
    assert bool(found.bracketed.all())
    # The problem is neither solved nor hopeless: else the comparison would say little.
    assert 0.4 < found.mean("svm") < 0.95
    assert found.std("svm") == pytest.approx(float(found.accuracy[0].std()))


@pytest.mark.parametrize("head", ["svm", "softmax"])
@pytest.mark.parametrize("size", [300, 40], ids=["gram", "features"])
def test_the_objective_is_not_above_scikit_learns(head: Any, size: int) -> None:
    features, labels = problem(160, size, 4)
    learned, others = torch.arange(120), torch.arange(120, 160)
    data = _Data(layer_of(features), None, Protocol(), None, [learned])
    inner, outer, _ = data.matrices(learned, others, test=False)
    fit = fit_gram if data.in_gram else fit_features
    found = fit(inner, labels[:120], 4, head=head, C=10.0)
    inputs = scaled(features, learned, "center")
    model = oracle(head, 10.0).fit(inputs[:120].numpy(), labels[:120].numpy())
    weights, intercept = torch.tensor(model.coef_.T), torch.tensor(model.intercept_)
    scores = inputs[:120] @ weights + intercept
    if head == "svm":
        signs = torch.nn.functional.one_hot(labels[:120], 4) * 2 - 1
        theirs = 0.5 * (weights.square().sum() + intercept.square().sum())
        theirs += 10 * (1 - signs * scores).clamp(min=0).square().sum()
    else:
        theirs = 0.5 * weights.square().sum()
        theirs += 10 * torch.nn.functional.cross_entropy(scores, labels[:120], reduction="sum")
    assert float(found.objective) <= float(theirs) * (1 + 1e-5)
    agree = found.scores(outer).argmax(1) == torch.tensor(model.predict(inputs[120:].numpy()))
    assert agree.double().mean() > 0.97


def test_both_spaces_give_the_same_scores() -> None:
    features, labels = problem(400, 90, 4)
    protocol = Protocol(per_class=40, splits=2, heads=("svm", "softmax", "knn"))  # 160 images: in feature space
    wide = torch.cat([features, torch.zeros(400, 200)], 1)  # the same problem, in Gram coordinates
    for scaling in ("center", "none"):
        changed = replace(protocol, scaling=scaling)
        one, other = (probe(inputs / 50, labels, changed) for inputs in (features, wide))
        assert (one.accuracy - other.accuracy).abs().max() <= 0.005
        assert torch.equal(one.C.nan_to_num(), other.C.nan_to_num())


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 999), st.sampled_from(["center", "standard"]), st.sampled_from([12, 90]), st.booleans())
def test_neither_labels_nor_features_of_test_images_matter(seed: int, scaling: Any, size: int, own_test: bool) -> None:
    """C is the same, and so is every prediction for the images that were left as they were."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = problem(90, size, 3, seed)
    protocol = Protocol(per_class=12, splits=1, scaling=scaling, average="image")
    if own_test:
        test = features[60:].clone(), labels[60:].clone()
        features, labels = features[:60], labels[:60]
        manifest = draw_splits(labels, protocol, test_labels=test[1])
    else:
        test = None
        manifest = draw_splits(labels, protocol)
    split = manifest.splits[0]
    # One image alone is tested, so that its accuracy tells its prediction.
    kept, lost = split.test[:1], split.test[1:]
    alone = replace(manifest, splits=(replace(split, test=kept),))
    before = probe(features, labels, protocol, test=test, manifest=alone)
    inputs, targets = (features, labels) if test is None else test
    inputs[lost] = 100 * torch.randn(len(lost), size, generator=generator)
    targets[lost] = targets[lost][torch.randperm(len(lost), generator=generator)]
    again = probe(features, labels, protocol, test=test, manifest=alone)
    assert torch.equal(before.C, again.C)
    assert torch.equal(before.accuracy, again.accuracy)
    shuffled = probe(features, labels, protocol, test=test, manifest=manifest)
    assert torch.equal(before.C, shuffled.C)
    targets[kept] = (targets[kept] + 1) % 3
    wrong = probe(features, labels, protocol, test=test, manifest=alone)
    assert torch.equal(wrong.C, before.C)
    assert bool((wrong.accuracy * before.accuracy == 0).all())


@pytest.mark.parametrize("scaling", ["center", "standard"])
@pytest.mark.parametrize("size", [12, 90], ids=["features", "gram"])
def test_training_images_do_matter(scaling: Any, size: int) -> None:
    """The test above could not fail if nothing mattered."""
    features, labels = problem(90, size, 3)
    protocol = Protocol(per_class=12, splits=1, scaling=scaling)
    split = draw_splits(labels, protocol).splits[0]
    data = layer_of(features)
    plain = _Data(data, None, protocol, None, [split.train]).matrices(split.train, split.test, test=True)
    lost = features.clone()
    lost[split.test[1:]] = 1e3
    other = _Data(replace(data, values=lost), None, protocol, None, [split.train])
    inner, outer, norms = other.matrices(split.train, split.test, test=True)
    assert torch.equal(inner, plain[0])
    assert torch.equal(outer[0], plain[1][0])
    assert torch.equal(norms, plain[2])
    lost[split.train[0]] += 5
    changed = _Data(replace(data, values=lost), None, protocol, None, [split.train])
    assert not torch.allclose(changed.matrices(split.train, split.test, test=True)[0], plain[0])


def test_a_test_set_of_its_own_is_tested_on() -> None:
    features, labels = problem(300, 60, 3)
    test = features[200:], labels[200:]
    protocol = Protocol(splits=1, average="image")
    found = probe(features[:200], labels[:200], protocol, test=test)
    manifest = draw_splits(labels[:200], protocol, test_labels=labels[200:])
    split = manifest.splits[0]
    assert torch.equal(split.train, torch.arange(200))
    # The same, from one set with the test images behind the others.
    joined = replace(manifest, splits=(replace(split, test=split.test + 200),))
    assert torch.equal(found.accuracy, probe(features, labels, protocol, manifest=joined).accuracy)
    other = probe(features[:200], labels[:200], protocol, test=(features[:100].flip(0), labels[:100]))
    assert not torch.equal(other.accuracy, found.accuracy)
    # Class numbers need not be consecutive.
    numbers = torch.tensor([5, 7, 90])
    named = probe(features[:200], numbers[labels[:200]], protocol, test=(test[0], numbers[test[1]]))
    assert torch.equal(named.accuracy, found.accuracy)
    assert named.classes == 3


def test_features_that_do_not_vary_are_left_out() -> None:
    features, labels = problem(80, 30, 2)
    still = torch.cat([features, torch.full((80, 30), 7.0)], 1)
    protocol = Protocol(per_class=20, splits=1)
    assert torch.equal(probe(still, labels, protocol).accuracy, probe(features, labels, protocol).accuracy)
    # With twice as many features, each is divided by a number that is larger by the root of 2.
    standard = replace(protocol, scaling="standard", heads=("softmax",), Cs=(1.0,))
    twice = probe(still, labels, replace(standard, Cs=(2.0,)))
    assert torch.equal(twice.accuracy, probe(features, labels, standard).accuracy)
    nothing = probe(torch.ones(80, 30), labels, Protocol(per_class=20, splits=1))
    assert nothing.accuracy.flatten().tolist() == [0.5, 0.5]


def layer_of(features: Tensor, folder: Path | None = None) -> LayerFeatures:
    count, size = features.shape
    layer = LayerFeatures(layer="conv", values=features, shape=(size, 1, 1), pooled=(1, 1), images=count)
    if folder is None:
        return layer
    file = folder / "conv.f32"
    features.numpy().tofile(file)
    return replace(layer, values=None, file=file)


@pytest.mark.parametrize("scaling", ["center", "standard"])
def test_features_on_disk_give_the_scores_of_those_in_memory(scaling: Any, tmp_path: Path) -> None:
    features, labels = problem(90, 5000, 3)  # more than a chunk
    protocol = Protocol(per_class=10, splits=2, scaling=scaling)
    memory, disk = (probe(layer, labels, protocol) for layer in (layer_of(features), layer_of(features, tmp_path)))
    assert torch.equal(memory.accuracy, disk.accuracy)
    assert torch.equal(memory.C, disk.C)
    assert disk.layer == "conv"
    test = layer_of(features, tmp_path), labels
    assert torch.equal(
        probe(layer_of(features), labels, protocol, test=test).accuracy,
        probe(features, labels, protocol, test=(features, labels)).accuracy,
    )


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
@settings(max_examples=30, derandomize=True)
def test_a_gram_matrix_of_chunks_is_that_of_the_whole(count: int, size: int, width: int, seed: int) -> None:
    features = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    found = gram_matrix(features.split(width, 1))
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert torch.allclose(found, features.double() @ features.double().T, atol=1e-4)


def test_a_large_gram_matrix_is_made_by_rows() -> None:
    features = torch.randn(1500, 3)
    assert torch.allclose(gram_matrix([features]), features.double() @ features.double().T, atol=1e-5)
    with pytest.raises(ValueError, match="no features to multiply"):
        gram_matrix([])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.own = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.body(images) * self.own
        return found


def loader(count: int = 60) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 10, 10, generator=generator)
    images[:, :, :3] += labels.view(-1, 1, 1, 1) * 0.4
    return DataLoader(TensorDataset(images, labels), batch_size=7)


def test_all_layers_are_probed_on_the_same_images() -> None:
    torch.manual_seed(0)
    net, protocol = Net(), Protocol(per_class=12, splits=3, heads=("svm", "knn"))
    features = tap_features(net, loader())
    found = probe_layers(features, protocol, progress=lambda layers: reversed(list(layers)))
    assert [scores.layer for scores in found] == ["body.3", "body.0"]
    assert len({scores.digest for scores in found}) == 1
    alone = probe(features["body.0"], features.labels, protocol)
    assert torch.equal(found["body.0"].accuracy, alone.accuracy)
    assert found.images == (60, 0)
    assert found["body.0"].mean("svm") > 0.6
    with pytest.raises(KeyError, match=r"body\.9"):
        found["body.9"]
    tested = probe_layers(features, protocol, test=tap_features(net, loader(15)))
    assert tested.images == (60, 15)
    assert tested["body.0"].digest != alone.digest


def test_whole_maps_on_disk_agree_with_memory() -> None:
    torch.manual_seed(0)
    net, protocol = Net(), Protocol(per_class=12, splits=2)
    memory, disk = (probe_layers(tap_features(net, loader(), pool=pool), protocol) for pool in (10_000, None))
    for one, other in zip(memory, disk, strict=True):
        assert torch.equal(one.accuracy, other.accuracy)
        assert one.digest == other.digest


def bad(features: Any = None, labels: Any = None, **options: Any) -> ProbeScores:
    known = torch.rand(30, 4) if features is None else features
    return probe(known, torch.arange(30) % 3 if labels is None else labels, Protocol(per_class=5), **options)


def with_nan() -> Tensor:
    features = torch.rand(30, 4)
    features[17, 2] = torch.nan
    return features


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"labels": torch.zeros(30, dtype=torch.int64)}, r"all 30 images are of class \[0\]"),
        ({"labels": torch.rand(30, 2, 5, 5)}, "labels are torch.float32"),
        ({"labels": torch.full((30,), torch.nan)}, "labels are torch.float32"),
        ({"labels": torch.ones(30, 2, dtype=torch.int64)}, "all 30 have the same labels"),
        ({"labels": torch.ones(30)}, r"all 30 images are of class \[1\]"),
        ({"labels": torch.full((30, 2), 0.7)}, "all 30 have the same values"),
        ({"labels": torch.rand(30)}, "per_class=5, but no image has one class"),
        ({"labels": torch.arange(29) % 3}, r"30 images, but labels of shape \(29,\)"),
        ({"labels": torch.arange(30)}, "needs 6 or more images a class"),
        ({"features": with_nan(), "layer": "conv2"}, "features of layer 'conv2' of image 17 are NaN"),
        ({"features": torch.ones(30, 4, dtype=torch.int64)}, "give floats"),
        ({"features": torch.rand(30)}, r"shape \(30,\)"),
        ({"test": (torch.rand(6, 5), torch.arange(6) % 3)}, "4 features to learn from, but 5 to test on"),
        ({"test": (torch.rand(6, 4), torch.arange(6))}, r"classes \[3, 4, 5\] of which the training set has no image"),
        ({"test": (torch.rand(6, 4), torch.arange(5) % 3)}, "6 images, but labels"),
    ],
)
def test_bad_input_is_named(given_: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bad(**given_)
    if "test" in given_ and len(given_["test"][1]) == 6 and "classes" in match:
        manifest = draw_splits(torch.arange(30) % 3, Protocol(per_class=5), test_labels=torch.arange(6) % 3)
        with pytest.raises(ValueError, match=match):
            bad(manifest=manifest, **given_)


def test_results_have_shapes_that_fit() -> None:
    found = bad()
    with pytest.raises(ValueError, match="scores of 2 heads have shapes"):
        replace(found, C=found.C[:1])
    names = ("accuracy", "C", "converged", "tried", "bracketed")
    single = replace(found, **{name: getattr(found, name)[:, :1] for name in names})
    assert math.isnan(single.std("svm"))
    empty = Features(layers=(), labels=torch.empty(0, dtype=torch.int64), indices=torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="tells classes apart, but all 0 images"):
        probe_layers(empty)
