"""Derivatives against autograd's, and minima where the gradient of the objective, written plainly, is zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.probing.lbfgs import CrossEntropy, FeatureSpace, GramSpace, Loss, SquaredHinge, minimize

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(2, 9, 4, generator=GENERATOR, dtype=torch.float64)
DIRECTION = torch.randn(2, 9, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.stack([torch.arange(9) % 4, torch.arange(9) % 3])
STRENGTH = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1)


def plain(kind: type[Loss], scores: Tensor) -> Tensor:
    """The loss of each problem of a batch, `(B,)`."""
    if kind is CrossEntropy:
        each = F.cross_entropy(scores.transpose(1, 2), LABELS, reduction="none").sum(1)
    else:
        signs = F.one_hot(LABELS, 4) * 2 - 1
        each = (1 - signs * scores).clamp(min=0).square().sum((1, 2))
    return STRENGTH.flatten() * each


@pytest.mark.parametrize("kind", [CrossEntropy, SquaredHinge])
def test_values_and_derivatives(kind: type[Loss]) -> None:
    loss = kind(LABELS, 4, STRENGTH)
    scores = SCORES.clone().requires_grad_()
    value = plain(kind, scores)
    torch.testing.assert_close(loss.value(SCORES).sum((1, 2)), value.detach())
    (slopes,) = torch.autograd.grad(value.sum(), scores, create_graph=True)
    torch.testing.assert_close(loss.slopes(SCORES), slopes.detach())
    first, second = loss.along(SCORES, DIRECTION)
    torch.testing.assert_close(first.sum((1, 2)), (slopes * DIRECTION).sum((1, 2)).detach())
    (curved,) = torch.autograd.grad((slopes * DIRECTION).sum(), scores)
    torch.testing.assert_close(second.sum((1, 2)), (curved * DIRECTION).sum((1, 2)))


@pytest.mark.parametrize("batch", [0, 1])
def test_curvature_is_the_mean_of_the_hessians_diagonal(batch: int) -> None:
    for kind in (CrossEntropy, SquaredHinge):
        hessian = torch.autograd.functional.hessian(
            lambda scores, kind=kind: plain(kind, torch.stack([scores, scores]))[batch], SCORES[batch]
        )
        diagonal = hessian.reshape(36, 36).diagonal()
        loss = kind(LABELS, 4, STRENGTH)
        twice = torch.stack([SCORES[batch], SCORES[batch]])
        torch.testing.assert_close(loss.curvature(twice)[batch].squeeze(), diagonal.mean())


def objective(features: Tensor, labels: Tensor, weights: Tensor, intercept: Tensor, strength: float) -> Tensor:
    return 0.5 * weights.square().sum() + strength * F.cross_entropy(
        features @ weights + intercept, labels, reduction="sum"
    )


def test_both_spaces_end_where_the_gradient_is_zero() -> None:
    features = torch.randn(30, 6, generator=GENERATOR, dtype=torch.float64)
    features -= features.mean(0)
    labels = torch.arange(30) % 3
    loss = CrossEntropy(labels[None], 3, torch.full((1, 1, 1), 2.0, dtype=torch.float64))
    by_feature = minimize(FeatureSpace(features[None], True), loss, features.new_zeros(1, 7, 3), 1e-12)
    by_image = minimize(GramSpace((features @ features.T)[None], True), loss, features.new_zeros(1, 31, 3), 1e-12)
    assert by_feature.converged
    assert by_image.converged
    weights = [by_feature.point.at[0, :-1], features.T @ by_image.point.at[0, :-1]]
    for found, minimum in zip(weights, (by_feature, by_image), strict=True):
        at, intercept = found.clone().requires_grad_(), minimum.point.at[0, -1].clone().requires_grad_()
        value = objective(features, labels, at, intercept, 2.0)
        torch.testing.assert_close(minimum.objective.sum(), value.detach())
        for gradient in torch.autograd.grad(value, (at, intercept)):
            assert float(gradient.abs().max()) < 1e-4
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-5)


def test_too_few_iterations_are_told() -> None:
    features = torch.randn(30, 6, generator=GENERATOR, dtype=torch.float64)
    loss = CrossEntropy((torch.arange(30) % 3)[None], 3, torch.full((1, 1, 1), 2.0, dtype=torch.float64))
    space = FeatureSpace((features - features.mean(0))[None], True)
    early = minimize(space, loss, features.new_zeros(1, 7, 3), 1e-12, iterations=1)
    assert not early.converged
    assert early.iterations == 1
