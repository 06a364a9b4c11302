from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from lightning_cnnviz.core.probing.lbfgs import FeatureSpace, GramSpace
from lightning_cnnviz.core.probing.solvers import Classifier, Head, fit_features, fit_gram, fit_path

HEADS: tuple[Head, ...] = ("svm", "softmax")


def problem(images: int, features: int, classes: int, seed: int = 0, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Rectified features of overlapping classes, in float64, with mean square norm 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    rank = min(features, 12)
    points = spread * torch.randn(classes, rank, generator=generator)[labels]
    points = points + torch.randn(images, rank, generator=generator)
    mixed = points @ torch.randn(rank, features, generator=generator)
    mixed = (mixed + torch.randn(images, features, generator=generator)).clamp(min=0).double()
    return mixed / mixed.square().sum(1).mean().sqrt(), labels


def objective(
    weights: Tensor, intercept: Tensor, features: Tensor, labels: Tensor, head: Head, strength: float
) -> float:
    """scikit-learn's objective, written down once more in float64 from its documentation.

    The weights are those of all classes, `(D, K)`; of two classes softmax regression is logistic regression.
    """
    weights, intercept, features = weights.double(), intercept.double(), features.double()
    scores = features @ weights + intercept
    if head == "svm":
        signs = torch.where(torch.nn.functional.one_hot(labels, scores.shape[1]) == 1, 1.0, -1.0)
        losses = (1 - signs * scores).clamp(min=0).square().sum()
        return float(0.5 * (weights.square().sum() + intercept.square().sum()) + strength * losses)
    square = weights.square().sum()
    if scores.shape[1] == 2:
        square = (weights[:, 1] - weights[:, 0]).square().sum()
    return float(0.5 * square + strength * torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))


def oracle(head: Head, strength: float, features: Tensor, labels: Tensor, **options: Any) -> tuple[Any, Tensor, Tensor]:
    """scikit-learn's model and its weights `(D, K)` and intercepts, of two classes as a pair of opposite ones."""
    model = LinearSVC(C=strength, **options) if head == "svm" else LogisticRegression(C=strength, **options)
    model.fit(features.numpy(), labels.numpy())
    weights, intercept = torch.tensor(model.coef_.T), torch.tensor(model.intercept_)
    if weights.shape[1] == 1:
        half = 1.0 if head == "svm" else 0.5
        weights, intercept = (torch.cat([-half * part, half * part], -1) for part in (weights, intercept))
    return model, weights, intercept


def in_features(found: Classifier, features: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Weights `(D, K)` and intercept of a classifier that was fitted in either space."""
    weights = features.T.double() @ found.weights.double() if space == "gram" else found.weights
    return weights.double(), found.intercept.double()


def fitted(space: str, features: Tensor, labels: Tensor, classes: int, **options: Any) -> Classifier:
    if space == "gram":
        return fit_gram(features @ features.T, labels, classes, **options)
    return fit_features(features, labels, classes, **options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("space", ["gram", "features"])
@pytest.mark.parametrize("strength", [0.1, 3.0, 30.0])
@pytest.mark.parametrize(("images", "size", "classes"), [(60, 150, 4), (200, 20, 5), (50, 80, 2)])
def test_coefficients_are_scikit_learns(
    head: Head, space: str, strength: float, images: int, size: int, classes: int
) -> None:
    features, labels = problem(images, size, classes)
    options = {"tol": 1e-10, "max_iter": 100_000}
    model, weights, intercept = oracle(head, strength, features, labels, **options)
    found = fitted(space, features, labels, classes, head=head, C=strength, tolerance=1e-11)
    assert found.converged
    ours, below = in_features(found, features, space)
    if head == "softmax":  # the same may be added to all intercepts
        intercept, below = intercept - intercept.mean(), below - below.mean()
    scale = float(weights.abs().max())
    assert torch.allclose(ours, weights, atol=2e-3 * scale)
    assert torch.allclose(below, intercept, atol=2e-3 * scale)
    best = objective(weights, intercept, features, labels, head, strength)
    # Of two classes the SVM is one problem in scikit-learn; ours are two, one the other's mirror.
    assert objective(ours, below, features, labels, head, strength) == pytest.approx(best, rel=1e-7)
    assert float(found.objective) == pytest.approx(best, rel=1e-7)
    other, _ = problem(90, size, classes, seed=1)
    inputs = other @ features.T if space == "gram" else other
    same = found.scores(inputs).argmax(1) == torch.tensor(model.predict(other.numpy()))
    assert same.double().mean() > 0.98


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("space", ["gram", "features"])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0, 100.0])
def test_single_precision_reaches_scikit_learns_objective(head: Head, space: str, strength: float) -> None:
    """At its default tolerance; what a float32 Gram matrix has rounded away is all that may be missing."""
    features, labels = problem(*((150, 400) if space == "gram" else (400, 60)), 6)
    features = features.float().double()
    _, weights, intercept = oracle(head, strength, features, labels, max_iter=10_000)
    theirs = objective(weights, intercept, features, labels, head, strength)
    found = fitted(space, features.float(), labels, 6, head=head, C=strength)
    assert found.weights.dtype == torch.float32
    ours = objective(*in_features(found, features.float(), space), features, labels, head, strength)
    assert ours <= theirs * (1 + 1e-11)


@given(
    st.integers(2, 5),
    st.integers(6, 40),
    st.integers(1, 30),
    st.sampled_from(HEADS),
    st.floats(-2, 1.5),
    st.integers(0, 99),
)
@settings(max_examples=40, derandomize=True)
def test_both_spaces_find_the_same_minimum(
    classes: int, images: int, size: int, head: Head, power: float, seed: int
) -> None:
    features, labels = problem(images, size, classes, seed)
    found = {
        space: fitted(space, features, labels, classes, head=head, C=10**power, tolerance=1e-10)
        for space in ("gram", "features")
    }
    values = [float(one.objective) for one in found.values()]
    assert values[0] == pytest.approx(values[1], rel=1e-8)
    # The objective is 1-strongly convex in the weights: so near values mean near weights.
    first, second = (in_features(found[space], features, space)[0] for space in found)
    assert (first - second).square().sum() <= 1e-6 * max(values)


@given(st.sampled_from(HEADS), st.sampled_from(["gram", "features"]), st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=30, derandomize=True)
def test_samples_that_come_twice_are_twice_the_c(head: Head, space: str, copies: int, seed: int) -> None:
    features, labels = problem(24, 16, 3, seed)
    twice = fitted(space, features.repeat(copies, 1), labels.repeat(copies), 3, head=head, C=1.0, tolerance=1e-11)
    once = fitted(space, features, labels, 3, head=head, C=float(copies), tolerance=1e-11)
    assert float(twice.objective) == pytest.approx(float(once.objective), rel=1e-8)
    first = in_features(twice, features.repeat(copies, 1), space)[0]
    assert torch.allclose(first, in_features(once, features, space)[0], atol=1e-4)


@given(st.sampled_from(HEADS), st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=30, derandomize=True)
def test_features_that_come_twice_are_features_times_the_root(head: Head, copies: int, seed: int) -> None:
    features, labels = problem(30, 12, 3, seed)
    repeated = fit_features(features.repeat(1, copies), labels, 3, head=head, C=2.0, tolerance=1e-11)
    scaled = fit_features(features * copies**0.5, labels, 3, head=head, C=2.0, tolerance=1e-11)
    assert float(repeated.objective) == pytest.approx(float(scaled.objective), rel=1e-8)
    parts = repeated.weights.view(copies, 12, 3)
    assert torch.allclose(parts[0], parts[-1], atol=1e-6)
    assert torch.allclose(parts.sum(0), scaled.weights * copies**0.5, atol=1e-4)


@given(st.sampled_from(HEADS), st.sampled_from(["gram", "features"]), st.permutations(range(4)), st.integers(0, 99))
@settings(max_examples=30, derandomize=True)
def test_renamed_classes_are_permuted_columns(head: Head, space: str, order: list[int], seed: int) -> None:
    features, labels = problem(32, 20, 4, seed)
    plain = fitted(space, features, labels, 4, head=head, tolerance=1e-11)
    renamed = fitted(space, features, torch.tensor(order)[labels], 4, head=head, tolerance=1e-11)
    assert torch.allclose(renamed.weights[:, order], plain.weights, atol=1e-4)
    assert torch.allclose(renamed.intercept[order], plain.intercept, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("space", ["gram", "features"])
def test_a_batch_is_its_problems_one_by_one(head: Head, space: str) -> None:
    many = [problem(40, 30, 3, seed) for seed in range(3)]
    inputs = torch.stack([x @ x.T if space == "gram" else x for x, _ in many])
    labels, strengths = torch.stack([y for _, y in many]), [0.3, 1.0, 5.0]
    fit = fit_gram if space == "gram" else fit_features
    batch = fit(inputs, labels, 3, head=head, C=strengths, tolerance=1e-10)
    for place, strength in enumerate(strengths):
        one = fit(inputs[place], labels[place], 3, head=head, C=strength, tolerance=1e-10)
        part = batch.part(place)
        assert float(part.objective) == pytest.approx(float(one.objective), rel=1e-8)
        assert torch.allclose(part.scores(inputs[place]), one.scores(inputs[place]), atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("space", ["gram", "features"])
def test_a_path_ends_where_single_fits_do_and_starts_are_taken_up(head: Head, space: str) -> None:
    features, labels = problem(60, 40, 4)
    inputs = features @ features.T if space == "gram" else features
    fit = fit_gram if space == "gram" else fit_features
    strengths = [5.0, 0.2, 1.0]
    path = fit_path(inputs, labels, 4, head=head, Cs=strengths, space=space, tolerance=1e-10)  # type: ignore[arg-type]
    singles = [fit(inputs, labels, 4, head=head, C=strength, tolerance=1e-10) for strength in strengths]
    for one, other in zip(path, singles, strict=True):
        assert float(one.objective) == pytest.approx(float(other.objective), rel=1e-8)
    again = fit(inputs, labels, 4, head=head, C=5.0, start=singles[0], tolerance=1e-8)
    assert again.iterations <= 2 < singles[0].iterations
    with pytest.raises(ValueError, match="start has weights"):
        fit(
            inputs[:50, :50] if space == "gram" else inputs[:, :30],
            labels[:50] if space == "gram" else labels,
            4,
            head=head,
            start=singles[0],
        )


def test_the_preconditioner_gives_the_product_that_it_saves() -> None:
    """`descend` reads `G a` off the solution; the plain product must be the same, also with a free intercept."""
    features, _ = problem(30, 50, 3)
    gram = (features - features.mean(0)) @ (features - features.mean(0)).T
    for free in (False, True):
        space = GramSpace(gram[None], free)
        space.prepare(torch.full((1, 1, 1), 7.0, dtype=torch.float64))
        gradient = torch.randn(1, 30 + free, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        step = space.descend(gradient)
        plain = space.vector(step.at)
        for one, other in zip(step, plain, strict=True):
            assert torch.allclose(one, other, atol=1e-10)
        matrix = torch.eye(30, dtype=torch.float64) + 7 * gram
        assert torch.allclose(matrix @ step.at[0, :30], gradient[0, :30], atol=1e-10)


def test_a_gram_matrix_that_rounding_made_indefinite_is_mended() -> None:
    features, labels = problem(60, 3, 3)
    gram = (1e4 * features @ features.T).float()
    gram -= 1e-2 * torch.eye(60)  # more than rounding would do
    space = FeatureSpace(gram[None], False)
    space.normal = lambda: gram[None].clone()  # type: ignore[method-assign]
    space.prepare(torch.full((1, 1, 1), 1e3))
    assert space._diagonal > 1
    found = fit_gram((features @ features.T).float(), labels, 3, head="softmax", C=1e4)
    assert found.weights.isfinite().all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"head": "ridge"}, 'head=\'ridge\': the solvers fit "svm" and "softmax"'),
        ({"C": 0.0}, r"C=\[0.0\]: .* positive"),
        ({"C": [1.0, 2.0]}, "C has 2 values for 1 problems"),
        ({"classes": 1, "labels": torch.zeros(4, dtype=torch.int64)}, "classes=1: there is nothing to tell apart"),
        ({"classes": 3}, r"classes \[2\] have no image"),
        ({"labels": torch.tensor([0, 1, 2, 1])}, "labels reach from 0 to 2; they are 0 to 1"),
        ({"labels": torch.tensor([0.0, 1, 0, 1])}, "labels are torch.float32"),
        ({"labels": torch.tensor([0, 1, 0])}, r"labels are torch.int64 \(1, 3\)"),
        ({"inputs": torch.ones(4, 4, dtype=torch.int64)}, "inputs are torch.int64"),
        ({"inputs": torch.full((4, 4), torch.nan)}, "NaN"),
        ({"inputs": torch.ones(4, 3)}, r"square, not \(4, 3\); fit_features"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], match: str) -> None:
    given = {"inputs": torch.eye(4), "labels": torch.tensor([0, 1, 0, 1]), "classes": 2, "head": "svm", "C": 1.0}
    given |= change
    with pytest.raises(ValueError, match=match):
        fit_gram(given["inputs"], given["labels"], given["classes"], head=given["head"], C=given["C"])
