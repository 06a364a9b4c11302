"""Probes of several labels an image, of values and of pixels, against pipelines of scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core.probing.test_probe import problem, scaled
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import LinearSVC
from torch import Tensor

from lightning_cnnviz.core.probing.features import Features, LayerFeatures
from lightning_cnnviz.core.probing.image_splits import draw_image_splits
from lightning_cnnviz.core.probing.probe import probe, probe_layers
from lightning_cnnviz.core.probing.probed import ProbedClasses
from lightning_cnnviz.core.probing.protocols import Protocol

IMAGES = 200


def by_scikit_learn(
    measured: Callable[[float, Tensor, Tensor], float], split: Any, *, chooses: bool
) -> tuple[float, float]:
    """The measure and C of a pipeline: C chosen on held-out images, on a grid that goes on by tens and tenths."""
    if not chooses:
        return measured(math.nan, split.train, split.test), math.nan
    found = {power: measured(10.0**power, split.fit, split.held_out) for power in (-1, 0, 1)}
    for _ in range(4):
        last, first = max(found), min(found)
        if found[last] > max(value for power, value in found.items() if power != last):
            found[last + 1] = measured(10.0 ** (last + 1), split.fit, split.held_out)
        elif found[first] == max(found.values()) and found[first] > found[first + 1]:
            found[first - 1] = measured(10.0 ** (first - 1), split.fit, split.held_out)
    best = 10.0 ** min(power for power, value in found.items() if value == max(found.values()))
    return measured(best, split.train, split.test), best


@pytest.mark.parametrize("size", [300, 30], ids=["gram", "features"])
def test_several_labels_are_told_as_a_pipeline_of_scikit_learn_does(size: int) -> None:
    features, classes = problem(IMAGES, size, 4)
    labels = torch.stack([classes < 2, classes == 3, classes % 2 == 0, torch.ones(IMAGES)], 1).to(torch.int8)
    protocol = Protocol(splits=2, heads=("svm", "softmax", "knn"))
    found = probe(features, labels, protocol)
    assert (found.heads, found.measure, found.classes) == (("svm", "logistic", "knn"), "mean average precision", 3)
    assert found.chance == pytest.approx(float(labels[:, :3].double().mean()))
    assert bool(found.converged.all())

    def measured(head: str, strength: float, learned: Tensor, tested: Tensor) -> float:
        inputs = scaled(features, learned, "center").numpy()
        precisions = []
        for label in labels[:, :3].T.numpy():
            if head == "knn":
                scores = KNeighborsRegressor(5).fit(inputs[learned], label[learned]).predict(inputs[tested])
            else:
                kind: Any = LinearSVC if head == "svm" else LogisticRegression
                model = kind(C=strength, tol=1e-8, max_iter=100_000).fit(inputs[learned], label[learned])
                scores = model.decision_function(inputs[tested])
            precisions.append(average_precision_score(label[tested], np.round(scores, 6)))
        return float(np.mean(precisions))

    for place, split in enumerate(draw_image_splits(torch.arange(IMAGES), protocol).splits):
        for row, head in enumerate(found.heads):
            value, strength = by_scikit_learn(
                lambda *given, head=head: measured(head, *given), split, chooses=head != "knn"
            )
            assert float(found.accuracy[row, place]) == pytest.approx(value, abs=0.003), head
            assert float(found.C[row, place]) == pytest.approx(strength, nan_ok=True), head


@pytest.mark.parametrize("size", [300, 30], ids=["gram", "features"])
def test_values_are_told_as_ridge_regression_of_scikit_learn_does(size: int) -> None:
    features, classes = problem(IMAGES, size, 4)
    noise = torch.randn(IMAGES, 2, generator=torch.Generator().manual_seed(1))
    values = torch.cat([torch.stack([classes * 1.5, 100.0 - classes], 1) + noise, torch.full((IMAGES, 1), 3.0)], 1)
    protocol = Protocol(splits=2, heads=("svm", "softmax", "knn"))
    found = probe(features, values, protocol)
    assert (found.heads, found.measure, found.classes, found.chance) == (("ridge", "knn"), "R2", 2, 0.0)

    def measured(head: str, strength: float, learned: Tensor, tested: Tensor) -> float:
        inputs = scaled(features, learned, "center").numpy()
        model = KNeighborsRegressor(5) if head == "knn" else Ridge(alpha=1 / (2 * strength))
        said = model.fit(inputs[learned], values[learned, :2].numpy()).predict(inputs[tested])
        return float(r2_score(values[tested, :2].numpy(), said))

    for place, split in enumerate(draw_image_splits(torch.arange(IMAGES), protocol).splits):
        for row, head in enumerate(found.heads):
            value, strength = by_scikit_learn(
                lambda *given, head=head: measured(head, *given), split, chooses=head != "knn"
            )
            assert float(found.accuracy[row, place]) == pytest.approx(value, abs=1e-4), head
            assert float(found.C[row, place]) == pytest.approx(strength, nan_ok=True), head


def pixels_of(count: int, each: int, classes: int, seed: int) -> Features:
    rows, labels = problem(count * each, 12, classes, seed=0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    layer = LayerFeatures(layer="conv", values=rows[order], shape=(12, 4, 4), pooled=(1, 1), images=len(rows))
    return Features(layers=(layer,), labels=labels[order], indices=torch.arange(len(rows)), pixels=each)


def test_pixels_of_an_image_are_learned_from_or_tested_on_together() -> None:
    features = pixels_of(60, 4, 3, seed=0)
    (scores,) = probe_layers(features, Protocol(splits=2))
    manifest = draw_image_splits(torch.arange(240) // 4, Protocol(splits=2))
    alone = probe(features["conv"], features.labels, Protocol(splits=2), manifest=manifest)
    torch.testing.assert_close(scores.accuracy, alone.accuracy)
    assert (scores.pixels, scores.measure, scores.digest[:8]) == (4, "accuracy", scores.digest[:8])
    assert probe_layers(features, Protocol(splits=2)).images == (60, 0)


def test_a_class_of_pixels_that_is_rare_does_not_stop_probes() -> None:
    features = pixels_of(60, 4, 3, seed=0)
    labels = features.labels.clone()
    labels[7] = 9  # in one image: where that is tested or held out, no probe can say it
    rare = Features(layers=features.layers, labels=labels, indices=features.indices, pixels=4)
    (scores,) = probe_layers(rare, Protocol(splits=6))
    assert bool(scores.accuracy.isfinite().all())
    test = pixels_of(10, 4, 3, seed=1)
    unknown = Features(layers=test.layers, labels=test.labels.clone().fill_(5), indices=test.indices, pixels=4)
    both = torch.cat([test.labels[:20], unknown.labels[20:]])
    mixed = Features(layers=test.layers, labels=both, indices=test.indices, pixels=4)
    (scores,) = probe_layers(features, Protocol(splits=1), test=mixed)
    assert bool(scores.accuracy.isfinite().all())


def test_a_single_class_among_what_is_learned_is_said_of_all() -> None:
    features, labels = torch.rand(6, 3), torch.tensor([1, 1, 1, 1, 1, 0])
    probed = ProbedClasses(count=2, average="image")
    (fitted,) = probed.fit(features, labels[:5], "svm", [1.0], space="features")
    assert fitted.scores(features).argmax(1).tolist() == [1] * 6
