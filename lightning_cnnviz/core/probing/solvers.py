"""Linear classifiers on fixed features, solved to the optimum: a squared-hinge SVM and softmax regression.

The objectives, the meaning of C and the treatment of intercepts are scikit-learn's (`LinearSVC`, `LogisticRegression`).
Problems of one size can be solved as a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.lbfgs import (
    CrossEntropy,
    FeatureSpace,
    GramSpace,
    Minimum,
    Space,
    SquaredHinge,
    minimize,
)
from lightning_cnnviz.core.probing.newton import newton, step_cost

__all__ = ["HEADS", "Classifier", "Head", "fit_features", "fit_gram", "fit_path"]

Head = Literal["svm", "softmax"]
"""`"svm"`: squared hinge, one class against the rest; `"softmax"`: multinomial cross-entropy."""

HEADS: tuple[Head, ...] = ("svm", "softmax")

_FIRST_ITERATIONS, _ITERATIONS = 15, 400  # of L-BFGS, before a step of Newton's method is looked at, and in all
_STEP_IN_ITERATIONS = 20  # a step may cost as much as so many iterations
_CAUTION = 0.1  # an estimate is no bound


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """A linear classifier in the coordinates in which it was fitted.

    Attributes:
        weights: `(D, K)` of the features where it was fitted on features; `(N, K)` of the training images where it was
            fitted on their Gram matrix, so that a feature-space weight is `features.T @ weights`. With a leading
            dimension for a batch.
        intercept: `(K,)`.
        objective: Value of scikit-learn's objective, `()`; for the SVM the sum over its classes. Float64.
        iterations: Number of iterations.
        converged: Whether it is as near to the optimum as was asked for: of the SVM by the duality gap, for each class
            by itself; of softmax by an estimate. False where the iterations ran out or the precision did.
        gap: Of the SVM, `()` float64: the duality gap of the sum over its classes. The objective is at most so far
            above the least one, and each class's weights are no farther than the root of twice its gap from the best
            ones. Before rounding to the precision of the inputs. None for softmax.
    """

    weights: Tensor
    intercept: Tensor
    objective: Tensor
    iterations: int
    converged: bool
    gap: Tensor | None = None

    def scores(self, inputs: Tensor) -> Tensor:
        """Return the scores `(M, K)` of features `(M, D)`, or of Gram rows `(M, N)` against the training images."""
        return inputs.to(self.weights.dtype) @ self.weights + self.intercept.unsqueeze(-2)

    def part(self, place: int) -> Classifier:
        """Return one classifier of a batch."""
        return Classifier(
            weights=self.weights[place],
            intercept=self.intercept[place],
            objective=self.objective[place],
            iterations=self.iterations,
            converged=self.converged,
            gap=None if self.gap is None else self.gap[place],
        )


def fit_gram(
    gram: Tensor,
    labels: Tensor,
    classes: int,
    *,
    head: Head,
    C: float | Sequence[float] | Tensor = 1.0,  # noqa: N803
    start: Classifier | None = None,
    tolerance: float = 1e-11,
) -> Classifier:
    """Fit a linear classifier, given the inner products of the training images' features.

    The cost of an iteration is that of the product of an `(N, N)` and an `(N, K)` matrix, whatever the number of
    features. `C` means what it means in scikit-learn: the objective is `0.5 |w|² + C * sum of losses`, where the
    intercept of the SVM counts into `|w|²` (`LinearSVC`, `intercept_scaling=1`) and that of softmax does not
    (`LogisticRegression`, whose loss of two classes is the logistic one).

    Args:
        gram: `(N, N)`, or `(B, N, N)` for a batch of problems; float32 or float64.
        labels: `(N,)` int64 in `[0, classes)`, or `(B, N)`.
        classes: K, at least 2.
        head: Which loss.
        C: Inverse strength of the regularization; one for each problem of a batch, or one for all.
        start: Where to start, for example the solution for a smaller C.
        tolerance: Relative distance of the objective from its minimum at which to stop: of the SVM the duality gap,
            which it cannot exceed, of softmax an estimate.

    Raises:
        ValueError: Shapes, labels or C do not fit, or something is not finite.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> classifier = fit_gram(features @ features.T, torch.tensor([0, 0, 1, 1]), 2, head="svm")
        >>> classifier.scores(features @ features.T).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    return _fit(gram, labels, classes, head, C, start, tolerance, GramSpace)


def fit_features(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    head: Head,
    C: float | Sequence[float] | Tensor = 1.0,  # noqa: N803
    start: Classifier | None = None,
    tolerance: float = 1e-11,
) -> Classifier:
    """Fit a linear classifier on features, where images outnumber them; otherwise `fit_gram` is faster.

    Args:
        features: `(N, D)`, or `(B, N, D)` for a batch of problems; float32 or float64.
        labels: See `fit_gram`, as for all others.
        classes: K.
        head: Which loss.
        C: Inverse strength of the regularization.
        start: Where to start.
        tolerance: When to stop.

    Raises:
        ValueError: As `fit_gram`.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> classifier = fit_features(features, torch.tensor([0, 0, 1, 1]), 2, head="softmax", C=10)
        >>> classifier.scores(features).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    return _fit(features, labels, classes, head, C, start, tolerance, FeatureSpace)


def fit_path(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    head: Head,
    Cs: Sequence[float],  # noqa: N803
    space: Literal["gram", "features"],
    start: Classifier | None = None,
    tolerance: float = 1e-11,
) -> list[Classifier]:
    """Fit one classifier for each C: from the smallest up, each from the last one; as one batch on a GPU.

    Args:
        inputs: `(N, N)` Gram matrix or `(N, D)` features, as `space` says.
        labels: `(N,)`.
        classes: K.
        head: Which loss.
        Cs: Any order; the result is in it.
        space: What `inputs` are.
        start: Where the first fit starts; not used on a GPU.
        tolerance: When to stop.
    """
    fit = fit_gram if space == "gram" else fit_features
    if inputs.is_cuda and len(Cs) > 1:
        batch = inputs.expand(len(Cs), *inputs.shape)
        whole = fit(batch, labels.expand(len(Cs), -1), classes, head=head, C=Cs, tolerance=tolerance)
        return [whole.part(place) for place in range(len(Cs))]
    fitted: dict[float, Classifier] = {}
    last = start
    for C in sorted(set(Cs)):  # noqa: N806
        last = fitted[C] = fit(inputs, labels, classes, head=head, C=C, start=last, tolerance=tolerance)
    return [fitted[C] for C in Cs]


def _fit(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    head: Head,
    C: float | Sequence[float] | Tensor,  # noqa: N803
    start: Classifier | None,
    tolerance: float,
    kind: type[Space],
) -> Classifier:
    batched = inputs.ndim == 3
    if not batched:
        inputs, labels = inputs[None], labels[None]
    _check(inputs, labels, classes, head, square=kind is GramSpace)
    strength = _strengths(C, inputs)
    free = head == "softmax"
    if free and classes == 2:
        # scikit-learn has one weight vector, the difference of ours, whose square is twice as large.
        strength = strength / 2
    shift = inputs.mean(-2, keepdim=True) if free else None
    coordinates = _coordinates(inputs, shift, kind)
    at = _start(start, coordinates, classes, shift, kind, batched)
    solve = _solve_softmax if free else _solve_hinge
    solution = solve(kind, coordinates, labels, classes, strength, at, tolerance)
    weights, intercept = _weights(solution.point.at, shift, kind)
    objective = solution.objective.double().sum((-2, -1)) * (2 if free and classes == 2 else 1)
    whole = Classifier(
        weights=weights.to(inputs.dtype),
        intercept=intercept.to(inputs.dtype),
        objective=objective,
        gap=None if solution.gap is None else solution.gap.sum((-2, -1)),
        iterations=solution.iterations,
        converged=solution.converged,
    )
    return whole if batched else whole.part(0)


def _solve_softmax(
    kind: type[Space], coordinates: Tensor, labels: Tensor, classes: int, strength: Tensor, at: Tensor, tolerance: float
) -> Minimum:
    iterations = 0
    # What single precision cannot settle, double precision ends from there.
    for dtype in dict.fromkeys((coordinates.dtype, torch.float64)):
        space, loss = kind(coordinates.to(dtype), True), CrossEntropy(labels, classes, strength.to(dtype))
        solution = minimize(space, loss, at.to(dtype), tolerance)
        iterations, at = iterations + solution.iterations, solution.point.at
        if solution.converged:
            break
    return replace(solution, iterations=iterations)


def _solve_hinge(
    kind: type[Space], coordinates: Tensor, labels: Tensor, classes: int, strength: Tensor, at: Tensor, tolerance: float
) -> Minimum:
    """L-BFGS until few images violate the margin, then Newton's method; the duality gap says when to stop."""
    iterations = 0
    iteration_cost = 2.0 * coordinates.numel() * classes
    for dtype in dict.fromkeys((coordinates.dtype, torch.float64)):
        space, loss = kind(coordinates.to(dtype), False), SquaredHinge(labels, classes, strength.to(dtype))
        for limit in (_FIRST_ITERATIONS, _ITERATIONS):
            solution = minimize(space, loss, at.to(dtype), tolerance * _CAUTION, limit)
            iterations, at = iterations + solution.iterations, solution.point.at
            cheap = step_cost(space, loss, solution.point) <= _STEP_IN_ITERATIONS * iteration_cost
            if cheap or solution.converged:
                break
        if cheap:
            break
    space, loss = kind(coordinates.double(), False), SquaredHinge(labels, classes, strength.double())
    solution = newton(space, loss, at.double(), tolerance)
    return replace(solution, iterations=iterations + solution.iterations)


def _coordinates(inputs: Tensor, shift: Tensor | None, kind: type[Space]) -> Tensor:
    if kind is GramSpace:
        if shift is None:
            return inputs + 1
        return inputs - shift - shift.mT + shift.mean(-1, keepdim=True)
    if shift is None:
        return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1)
    return inputs - shift


def _start(
    start: Classifier | None,
    coordinates: Tensor,
    classes: int,
    shift: Tensor | None,
    kind: type[Space],
    batched: bool,
) -> Tensor:
    rows = coordinates.shape[-1] + (shift is not None)
    if start is None:
        return coordinates.new_zeros(len(coordinates), rows, classes)
    weights, intercept = (start.weights, start.intercept) if batched else (start.weights[None], start.intercept[None])
    if weights.shape != (len(coordinates), rows - (shift is not None or kind is not GramSpace), classes):
        raise ValueError(f"start has weights {tuple(start.weights.shape)}, which are not those of this problem")
    below = intercept[..., None, :].to(coordinates)
    at = weights.to(coordinates)
    if shift is not None:
        below = below + shift @ at
    return at if kind is GramSpace and shift is None else torch.cat([at, below], -2)


def _weights(at: Tensor, shift: Tensor | None, kind: type[Space]) -> tuple[Tensor, Tensor]:
    """Weights and intercept in the coordinates of the caller's inputs."""
    if shift is None:
        return (at, at.sum(-2)) if kind is GramSpace else (at[..., :-1, :], at[..., -1, :])
    weights, intercept = at[..., :-1, :], at[..., -1:, :]
    if kind is GramSpace:
        weights = weights - weights.mean(-2, keepdim=True)  # which a centered Gram matrix does not notice
    return weights, (intercept - shift.to(weights.dtype) @ weights)[..., 0, :]


def _strengths(C: float | Sequence[float] | Tensor, inputs: Tensor) -> Tensor:  # noqa: N803
    values = torch.as_tensor(C, dtype=inputs.dtype, device=inputs.device).reshape(-1)
    if len(values) not in (1, len(inputs)):
        raise ValueError(f"C has {len(values)} values for {len(inputs)} problems: give one, or one for each")
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"C={values.tolist()}: the inverse strength of regularization is positive and finite")
    return values.expand(len(inputs))[:, None, None]


def _check(inputs: Tensor, labels: Tensor, classes: int, head: Head, *, square: bool) -> None:
    if head not in HEADS:
        raise ValueError(f'head={head!r}: the solvers fit "svm" and "softmax"')
    if inputs.ndim != 3 or inputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"inputs are {inputs.dtype} {tuple(inputs.shape)}: give float32 or float64 of 2 or 3 dimensions"
        )
    if square and inputs.shape[-1] != inputs.shape[-2]:
        raise ValueError(f"a Gram matrix is square, not {tuple(inputs.shape[-2:])}; fit_features takes features")
    if labels.shape != inputs.shape[:2] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}: give an int64 for each of {tuple(inputs.shape[:2])} rows"
        )
    if not bool(inputs.isfinite().all()):
        raise ValueError("inputs hold NaN or infinite values")
    if classes < 2:
        raise ValueError(f"classes={classes}: there is nothing to tell apart; give 2 or more")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels reach from {int(labels.min())} to {int(labels.max())}; they are 0 to {classes - 1}")
    counts = torch.nn.functional.one_hot(labels, classes).sum(-2).amin(0)
    if not bool(counts.all()):
        raise ValueError(f"classes {(counts == 0).nonzero().flatten().tolist()} have no image to learn from")
