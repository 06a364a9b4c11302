from __future__ import annotations

import io

import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor

from lightning_cnnviz.core.probing import online
from lightning_cnnviz.core.probing.online import RATE, OnlineProbes
from lightning_cnnviz.core.probing.solvers import fit_features


def batches(
    count: int, sizes: dict[str, int], classes: int = 3, seed: int = 0
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Features far from zero, of classes that overlap, and of all classes in the first batch."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    centers = {layer: torch.rand(classes, size, generator=generator) for layer, size in sizes.items()}
    for _ in range(count):
        labels = torch.cat([torch.arange(classes), torch.randint(classes, (13,), generator=generator)])
        features = {
            layer: 5 + 3 * (centers[layer][labels] + 0.4 * torch.randn(len(labels), size, generator=generator))
            for layer, size in sizes.items()
        }
        found.append((features, labels))
    return found


def reference(work: list[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer by autograd and torch's Adam in float64: weights, intercept, mean and variance."""
    size = work[0][0].shape[1]
    weights, intercept = (
        torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((size, classes), (classes,))
    )
    optimizer = torch.optim.Adam([weights, intercept], lr=RATE)
    mean = variance = torch.zeros(size, dtype=torch.float64)
    for number, (features, labels) in enumerate(work, start=1):
        features = features.double()
        weight = max(1 / number, 0.01)
        away = features.mean(0) - mean
        variance = (1 - weight) * (variance + weight * away**2) + weight * features.var(0, correction=0)
        mean = mean + weight * away
        noise = 1e-3 * (variance + 1e-6 * mean**2).mean()
        scores = (features - mean) / (size * (variance + noise)).sqrt() @ weights + intercept
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
    return weights.detach(), intercept.detach(), mean, variance


def test_all_layers_learn_as_each_would_alone_by_adam() -> None:
    sizes = {"a": 5, "b": 17, "c": 1}
    work = batches(150, sizes)
    probes = OnlineProbes(sizes)
    for features, labels in work:
        probes.update(features, labels)
    assert (probes.batches, probes.classes, probes.layers) == (150, 3, ("a", "b", "c"))
    for place, (layer, size) in enumerate(sizes.items()):
        weights, intercept, mean, variance = reference([(f[layer], labels) for f, labels in work], 3)
        assert torch.allclose(probes._weights[place, :size].double(), weights, atol=2e-3)
        assert torch.allclose(probes._weights[place, -1].double(), intercept, atol=2e-3)
        assert torch.allclose(probes._mean[place, 0, :size].double(), mean, rtol=1e-4)
        assert torch.allclose(probes._variance[place, 0, :size].double(), variance, rtol=1e-3)
        assert not probes._weights[place, size:-1].any()


def test_they_come_close_to_the_best_classifier() -> None:
    work = batches(800, {"a": 40}, classes=5)
    (test, labels), (more, others) = batches(2, {"a": 40}, classes=5, seed=0)[:2]
    probes = OnlineProbes({"a": 40})
    for features, targets in work[2:]:
        probes.update(features, targets)
    known, targets = torch.cat([f["a"] for f, _ in work[2:]]), torch.cat([y for _, y in work[2:]])
    mean, spread = known.mean(0), known.std(0)
    best = fit_features((known - mean) / spread, targets, 5, head="softmax", C=1.0)
    images, wanted = torch.cat([test["a"], more["a"]]), torch.cat([labels, others])
    agree = best.scores((images - mean) / spread).argmax(1) == probes.predict({"a": images})[0]
    right = probes.predict({"a": images})[0] == wanted
    assert agree.double().mean() > 0.9
    assert right.double().mean() > 0.8


def test_images_without_a_class_or_with_broken_features_are_left_out() -> None:
    sizes = {"a": 4, "b": 6}
    plain, other = OnlineProbes(sizes), OnlineProbes(sizes)
    for features, labels in batches(20, sizes):
        plain.update(features, labels)
        bad = {layer: torch.cat([rows, torch.full((2, rows.shape[1]), 1e6)]) for layer, rows in features.items()}
        bad["b"][-1, 3] = torch.nan
        bad["a"][-1, 0] = torch.inf
        other.update(bad, torch.cat([labels, torch.tensor([-100, 1])]))
    assert torch.allclose(plain._weights, other._weights, atol=1e-5)
    assert other.left_out.tolist() == [20, 20]
    assert plain.left_out.tolist() == [0, 0]


def test_classes_are_learned_from_when_they_come() -> None:
    probes = OnlineProbes({"a": 8})
    with pytest.raises(ValueError, match="learned no class yet"):
        probes.predict({"a": torch.rand(2, 8)})
    probes.update({"a": torch.rand(3, 8)}, torch.tensor([-1, -1, -1]))
    assert (probes.classes, probes.batches) == (0, 0)
    for features, labels in batches(8, {"a": 8}, classes=2):
        probes.update(features, labels)
    assert probes.classes == 2
    for features, labels in batches(200, {"a": 8}, classes=5):
        probes.update(features, labels)
    assert probes.classes == 5
    features, labels = batches(1, {"a": 8}, classes=5)[0]
    assert (probes.predict(features)[0] == labels).double().mean() > 0.7


def test_features_that_do_not_vary_say_nothing() -> None:
    probes = OnlineProbes({"a": 3, "b": 3})
    for number in range(150):
        labels = torch.arange(9) % 3
        rows = torch.nn.functional.one_hot(labels, 3) + 0.0
        probes.update({"a": rows, "b": torch.full((9, 3), 0.1 + 1e-8 * number)}, labels)
    found = probes.predict({"a": torch.eye(3), "b": torch.full((3, 3), 0.1)})
    assert found[0].tolist() == [0, 1, 2]
    assert len(set(found[1].tolist())) == 1
    assert float(probes._weights.abs().max()) < 10


def test_what_was_saved_goes_on_the_same() -> None:
    sizes = {"a": 4, "b": 6}
    work = batches(30, sizes)
    probes = OnlineProbes(sizes)
    for features, labels in work[:15]:
        probes.update(features, labels)
    file = io.BytesIO()
    torch.save(probes.state_dict(), file)
    file.seek(0)
    again = OnlineProbes.from_state_dict(torch.load(file, weights_only=True))
    for features, labels in work[15:]:
        probes.update(features, labels)
        again.update(features, labels)
    assert torch.equal(probes._weights, again._weights)
    assert again.batches == 30
    assert again.dimensions == sizes
    with pytest.raises(ValueError, match=r"layer 'b' gives features \(5, 6\), but its probe reads 6 of each of 4"):
        again.predict({"a": torch.rand(4, 4), "b": torch.rand(5, 6)})


def test_labels_and_values_come_near_the_best_linear_functions() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 * torch.randn(300, 6, generator=generator) + 20
    plain = features @ torch.randn(6, 2, generator=generator) + 6 * torch.randn(300, 2, generator=generator)
    labels = (plain > plain.median(0).values).to(torch.int8)
    several, values = OnlineProbes({"conv": 6}, "labels"), OnlineProbes({"conv": 6}, "values")
    for _ in range(600):
        several.update({"conv": features}, labels)
        values.update({"conv": features}, plain)
    (scores,), (said,) = several.scores({"conv": features}), values.scores({"conv": features})
    for place in range(2):
        best = LogisticRegression(C=1e6, max_iter=10_000).fit(features, labels[:, place].numpy())
        wanted = torch.from_numpy(best.predict_proba(features)[:, 1]).float()
        assert float((scores[:, place].sigmoid() - wanted).abs().max()) < 0.05
    fitted = torch.from_numpy(LinearRegression().fit(features, plain).predict(features)).float()
    assert float((said - fitted).abs().max()) < 0.02 * float(plain.std())
    again = OnlineProbes.from_state_dict(values.state_dict())
    assert again.kind == "values"
    assert torch.equal(again.scores({"conv": features})[0], said)


def test_ranks_with_labels_of_other_forms_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = OnlineProbes({"conv": 2}, "values")
    monkeypatch.setattr(online, "ranks", lambda: 2)
    monkeypatch.setattr(online, "gathered", lambda own: [own, torch.tensor([3, 0])])
    with pytest.raises(ValueError, match="labels have different forms on different ranks"):
        probes.average()
