"""Newton's method for the squared-hinge SVM, class by class, and the duality gap, which says how far off it ends.

The objective is quadratic as long as the same images violate the margin, and few do where C is large: a step then is
one small system of equations a class, and the minimum is exact once a step leaves the violating images as they were
(Keerthi & DeCoste 2005). L-BFGS, whose iterations say the same of all classes, needs hundreds there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.lbfgs import FeatureSpace, Minimum, Space, SquaredHinge, Vector, objective_of, search

__all__ = ["duality_gap", "newton", "step_cost"]

_STEPS = 60
_PATIENCE = 6  # steps in which neither gap nor objective becomes less, after which rounding is all there is left


def duality_gap(space: Space, loss: SquaredHinge, point: Vector) -> Tensor:
    """Return of each class how far its objective is at most above the minimum, `(B, 1, K)`.

    The dual variables are those that the violations at this point give, `2 C max(0, 1 - y s)`; the difference between
    primal and dual objective is then half the squared length of the gradient. The objective being 1-strongly convex,
    weights are no farther from the optimal ones than the root of twice the gap, and the score of an image changes by no
    more than that times the length of its features (with the constant one).
    """
    gradient = space.gradient(point.at, loss.slopes(point.scores))
    return 0.5 * loss.total(gradient * space.vector(gradient).dual)


def step_cost(space: Space, loss: SquaredHinge, point: Vector) -> float:
    """Return the number of multiplications of a step from a point, roughly."""
    violating = (loss.violations(point.scores) > 0).sum(-2).double()
    if not isinstance(space, FeatureSpace):
        return float((violating**3 / 3).sum())
    small, large = violating.clamp(max=space.rows), violating.clamp(min=space.rows)
    return float((small.square() * large + small**3 / 3).sum())


def newton(space: Space, loss: SquaredHinge, at: Tensor, tolerance: float, steps: int = _STEPS) -> Minimum:
    """Minimize by Newton's method; in float64.

    Args:
        space: Without a free intercept.
        loss: The loss.
        at: Where to start, near the minimum: a step costs the third power of the number of violating images.
        tolerance: The duality gap of each class, relative to its objective, at which to stop.
        steps: At most so many.
    """
    point = space.vector(at)
    least, waited = [float("inf")] * 2, 0
    for number in range(steps + 1):
        gap, objective = duality_gap(space, loss, point), objective_of(space, loss, point)
        done = gap <= tolerance * objective
        now = [float(gap.sum()), float(objective.sum())]
        waited = 0 if any(new < old for new, old in zip(now, least, strict=True)) else waited + 1
        least = [min(pair) for pair in zip(now, least, strict=True)]
        if bool(done.all()) or number == steps or waited > _PATIENCE:
            break
        step = point.plus(torch.tensor(-1.0), space.vector(_targets(space, loss, point, done)))
        gradient = space.gradient(point.at, loss.slopes(point.scores))
        length = search(space, loss, point, step, loss.total(gradient * step.dual)).masked_fill_(done, 0)
        point = point.plus(-length, step)
    return Minimum(point, objective, number, bool(done.all()), gap)


def _targets(space: Space, loss: SquaredHinge, point: Vector, done: Tensor) -> Tensor:
    """The minimum of each class that is not done, if the images that violate the margin now were to stay the same."""
    targets = point.at.clone()
    violating = loss.violations(point.scores) > 0
    for problem, _, number in (~done).nonzero().tolist():
        chosen = violating[problem, :, number].nonzero()[:, 0]
        signs = loss.signs[problem, chosen, number]
        ridge = float(1 / (2 * loss.strength.expand(len(done), 1, 1)[problem]))
        found = _solved(space, space.inputs[problem], chosen, signs, ridge)
        if found is not None:
            targets[problem, :, number] = found
    return targets


def _solved(space: Space, inputs: Tensor, chosen: Tensor, signs: Tensor, ridge: float) -> Tensor | None:
    """Regularized least squares on the chosen images; None where rounding has made the system indefinite."""
    in_features = isinstance(space, FeatureSpace)
    rows = inputs[chosen]
    primal = in_features and len(chosen) > rows.shape[1]
    matrix = rows.T @ rows if primal else rows @ rows.T if in_features else rows[:, chosen]
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return None
    right = rows.T @ signs if primal else signs
    solution = torch.cholesky_solve(right[:, None], factor)[:, 0]
    if primal:
        return solution
    return rows.T @ solution if in_features else inputs.new_zeros(len(inputs)).index_put_((chosen,), solution)
