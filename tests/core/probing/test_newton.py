"""The SVM's end: minima where the gradient is zero, and a duality gap that says how far off."""

from __future__ import annotations

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from lightning_cnnviz.core.probing.lbfgs import FeatureSpace, GramSpace, SquaredHinge, minimize
from lightning_cnnviz.core.probing.newton import duality_gap, newton, step_cost
from lightning_cnnviz.core.probing.solvers import fit_features, fit_gram


def problem(images: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rectified features of overlapping classes, float64, about their mean, of mean square norm 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    points = 0.3 * torch.randn(classes, 32, generator=generator)[labels] + torch.randn(images, 32, generator=generator)
    mixed = points @ torch.randn(32, size, generator=generator)
    features = (mixed + 2 * torch.randn(images, size, generator=generator)).clamp(min=0).double()
    features = features - features.mean(0)
    return features / features.square().sum(1).mean().sqrt(), labels


def primal_and_dual(weights: Tensor, features: Tensor, labels: Tensor, classes: int, C: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Both objectives of each class, as textbooks have them; the last feature is the constant one."""
    signs = torch.nn.functional.one_hot(labels, classes) * 2.0 - 1
    violations = (1 - signs * (features @ weights)).clamp(min=0)
    primal = 0.5 * weights.square().sum(0) + C * violations.square().sum(0)
    alpha = 2 * C * violations
    dual = alpha.sum(0) - 0.5 * (features.T @ (signs * alpha)).square().sum(0) - alpha.square().sum(0) / (4 * C)
    return primal, dual


@pytest.mark.parametrize("kind", [GramSpace, FeatureSpace])
@pytest.mark.parametrize("strength", [0.3, 20.0])
def test_the_gap_is_that_of_primal_and_dual(kind: type[GramSpace | FeatureSpace], strength: float) -> None:
    features, labels = problem(40, 30, 4)
    features = torch.cat([features, torch.ones(40, 1)], 1)
    space = kind((features @ features.T if kind is GramSpace else features)[None], False)
    loss = SquaredHinge(labels[None], 4, torch.full((1, 1, 1), strength, dtype=torch.float64))
    at = torch.randn(1, space.rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = features.T @ at[0] if kind is GramSpace else at[0]
    primal, dual = primal_and_dual(weights, features, labels, 4, strength)
    gap = duality_gap(space, loss, space.vector(at))
    assert torch.allclose(gap[0, 0], primal - dual)
    end = newton(space, loss, at, 1e-13)
    assert end.converged
    best = features.T @ end.point.at[0] if kind is GramSpace else end.point.at[0]
    # No score moves by more than the root of twice the gap, times the length of its features.
    moved = (features @ (weights - best)).abs()
    assert bool((moved <= (2 * gap[0]).sqrt() * features.norm(dim=1, keepdim=True)).all())
    assert torch.allclose(end.objective[0, 0], primal_and_dual(best, features, labels, 4, strength)[1])


@pytest.mark.parametrize("kind", [GramSpace, FeatureSpace])
@pytest.mark.parametrize("size", [20, 90])
def test_a_minimum_has_no_gradient(kind: type[GramSpace | FeatureSpace], size: int) -> None:
    features, labels = problem(60, size, 3)
    space = kind((features @ features.T if kind is GramSpace else features)[None], False)
    loss = SquaredHinge(labels[None], 3, torch.full((1, 1, 1), 50.0, dtype=torch.float64))
    start = torch.zeros(1, space.rows, 3, dtype=torch.float64)
    found = newton(space, loss, start, 1e-12)
    weights = (features.T @ found.point.at[0] if kind is GramSpace else found.point.at[0]).requires_grad_()
    primal_and_dual(weights, features, labels, 3, 50.0)[0].sum().backward()
    assert weights.grad is not None
    assert float(weights.grad.norm()) < 1e-5 * float(weights.detach().norm())
    assert step_cost(space, loss, found.point) < step_cost(space, loss, space.vector(start))
    few = newton(space, loss, start, 1e-12, steps=1)
    assert not few.converged
    assert few.gap is not None
    assert float(few.gap.sum()) > 1e-12 * float(few.objective.sum())


@pytest.mark.parametrize("space", ["gram", "features"])
@pytest.mark.parametrize("strength", [1.0, 10.0, 100.0, 1000.0])
def test_it_converges_where_first_order_methods_give_up_and_predicts_what_liblinear_does(
    space: str, strength: float
) -> None:
    """20 overlapping classes in single precision."""
    size = 1000 if space == "gram" else 200
    features, labels = problem(480, size, 20)
    features = features.float()
    train, test, own = features[:320], features[320:], labels[:320]
    gram = space == "gram"
    fit = fit_gram if gram else fit_features
    found = fit(train @ train.T if gram else train, own, 20, head="svm", C=strength)
    assert found.converged
    assert found.gap is not None
    assert float(found.gap) <= 1e-11 * float(found.objective)
    weights = train.T.double() @ found.weights.double() if gram else found.weights.double()
    wide = torch.cat([train.double(), torch.ones(320, 1)], 1)
    primal, dual = primal_and_dual(torch.cat([weights, found.intercept.double()[None]]), wide, own, 20, strength)
    # Weights, the Gram matrix and their product are of single precision.
    assert float((primal - dual).sum()) < 1e-5 * float(primal.sum())
    model = LinearSVC(C=strength, tol=1e-9, max_iter=200_000).fit(train.double().numpy(), own.numpy())
    scores = found.scores(test @ train.T if gram else test)
    best, second = scores.double().topk(2).values.unbind(1)
    clear = best - second > 1e-3 * scores.abs().max()
    assert clear.double().mean() > 0.9
    guesses = torch.tensor(model.predict(test.double().numpy()))
    assert torch.equal(guesses[clear], scores.argmax(1)[clear])
    assert float(found.objective) <= float(primal_and_dual(_of(model), wide, own, 20, strength)[0].sum()) * (1 + 1e-6)


def _of(model: LinearSVC) -> Tensor:
    return torch.cat([torch.tensor(model.coef_.T), torch.tensor(model.intercept_)[None]])


def test_first_order_methods_give_up() -> None:
    """Else the test above would say little of Newton's method."""
    features, labels = problem(320, 1000, 20)
    gram = (features @ features.T + 1).float()[None]
    loss = SquaredHinge(labels[None], 20, torch.full((1, 1, 1), 1000.0))
    assert not minimize(GramSpace(gram, False), loss, torch.zeros(1, 320, 20), 1e-11).converged
