"""Preconditioned L-BFGS for linear classifiers, in the coordinates of images or of features.

Coordinates are chosen so that the problem is nearly round: a Cholesky factor of the Hessian with the mean curvature of
the loss is the preconditioner. The line search needs no product, since scores are linear along a line, and the product
with the Gram matrix is read off the preconditioner, so that an iteration costs one pair of triangular solves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CrossEntropy",
    "FeatureSpace",
    "GramSpace",
    "Loss",
    "Minimum",
    "Space",
    "SquaredHinge",
    "Vector",
    "minimize",
    "objective_of",
    "search",
]

_MEMORY = 10
_ITERATIONS = 400
_LINE_STEPS = 12
_SLOPE = 0.1  # a line search ends where the slope has fallen to this fraction of that at its start
_CURVATURE_CHANGE = 2.0  # the preconditioner is made anew once the mean curvature has changed by this factor
_PATIENCE = 8  # iterations without progress after which a precision has given all it has
_REFRESHES = 3


class Vector(NamedTuple):
    """A point or direction: its coordinates, the same seen through the metric, and the scores it gives the images."""

    at: Tensor  # (B, rows, K)
    dual: Tensor  # (B, rows, K): an inner product is the sum of one's `at` times the other's `dual`
    scores: Tensor  # (B, N, K)

    def plus(self, factor: Tensor, other: Vector) -> Vector:
        """Return this one plus a multiple of another, of each block its own."""
        return Vector(*(torch.addcmul(mine, factor, theirs) for mine, theirs in zip(self, other, strict=True)))

    def times(self, factor: Tensor) -> Vector:
        """Return a multiple."""
        return Vector(*(part * factor for part in self))


class Space(ABC):
    """Coordinates in which linear scores are written, the free intercept in a row of its own below them.

    An intercept that counts into the regularizer is a constant feature. A free one has inputs centered, which is the
    same problem and better conditioned.
    """

    def __init__(self, inputs: Tensor, free_intercept: bool) -> None:
        self.inputs = inputs
        self.free = free_intercept
        self._factor: Tensor | None = None
        self._strength = inputs.new_ones(1, 1, 1)
        self._diagonal = 1.0

    @property
    def images(self) -> int:
        """Number of training images."""
        return self.inputs.shape[-2]

    @property
    def rows(self) -> int:
        """Number of coordinates of a class."""
        return self.inputs.shape[-1] + self.free

    @abstractmethod
    def vector(self, at: Tensor) -> Vector:
        """Complete a point that is given by its coordinates."""

    @abstractmethod
    def gradient(self, at: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient's coordinates, given the derivatives `(B, N, K)` of the loss by the scores."""

    @abstractmethod
    def descend(self, gradient: Tensor) -> Vector:
        """Return the inverse of the preconditioner, applied to a gradient."""

    @abstractmethod
    def normal(self) -> Tensor:
        """Return the Hessian, intercept left out, of a loss that has curvature 1 everywhere, in a fresh tensor."""

    def regular(self, rows: Tensor) -> Tensor:
        """Return the rows that count into the regularizer."""
        return rows[..., :-1, :] if self.free else rows

    def prepare(self, strength: Tensor) -> None:
        """Make the preconditioner: the Hessian if the loss had the curvature `strength` `(B, 1, 1)` everywhere."""
        self._strength, self._diagonal = strength, 1.0
        while True:
            matrix = self.normal().mul_(strength)
            diagonal = matrix.diagonal(dim1=-2, dim2=-1)
            rounding = float(diagonal.max()) * torch.finfo(matrix.dtype).eps
            diagonal += self._diagonal
            self._factor, failed = torch.linalg.cholesky_ex(matrix)
            if not bool(failed.any()):
                return
            # Rounding has made the matrix indefinite: add no more than that.
            self._diagonal = 1.0 + max(10 * (self._diagonal - 1.0), rounding)

    def _solve(self, rows: Tensor) -> Tensor:
        assert self._factor is not None, "prepare comes first"
        return torch.cholesky_solve(rows, self._factor)

    def _free_row(self, gradient: Tensor) -> Tensor:
        return gradient[..., -1:, :] / (self._strength * self.images)


class GramSpace(Space):
    """Scores `G a`: a coordinate an image, and the Gram matrix `G` as the metric."""

    def vector(self, at: Tensor) -> Vector:
        """Multiply by the Gram matrix."""
        product = self.inputs @ self.regular(at)
        if not self.free:
            return Vector(at, product, product)
        intercept = at[..., -1:, :]
        return Vector(at, torch.cat([product, intercept], -2), product + intercept)

    def gradient(self, at: Tensor, slopes: Tensor) -> Tensor:
        """Add: the metric takes the product away."""
        if not self.free:
            return at + slopes
        return torch.cat([at[..., :-1, :] + slopes, slopes.sum(-2, keepdim=True)], -2)

    def descend(self, gradient: Tensor) -> Vector:
        """Solve, and read the product with the Gram matrix off the solution."""
        rows = self.regular(gradient)
        at = self._solve(rows)
        # (d + c G) a = g, and so G a = (g - d a) / c: no product is needed.
        product = torch.add(rows, at, alpha=-self._diagonal).div_(self._strength)
        if not self.free:
            return Vector(at, product, product)
        intercept = self._free_row(gradient)
        return Vector(torch.cat([at, intercept], -2), torch.cat([product, intercept], -2), product + intercept)

    def normal(self) -> Tensor:
        """Return the Gram matrix."""
        return self.inputs.clone()


class FeatureSpace(Space):
    """Scores `X w`: a coordinate a feature, and the usual metric."""

    def vector(self, at: Tensor) -> Vector:
        """Multiply by the features."""
        scores = self.inputs @ self.regular(at)
        return Vector(at, at, scores + at[..., -1:, :] if self.free else scores)

    def gradient(self, at: Tensor, slopes: Tensor) -> Tensor:
        """Pull the derivatives back to the features."""
        pulled = self.inputs.mT @ slopes
        if not self.free:
            return at + pulled
        return torch.cat([at[..., :-1, :] + pulled, slopes.sum(-2, keepdim=True)], -2)

    def descend(self, gradient: Tensor) -> Vector:
        """Solve."""
        at = self._solve(self.regular(gradient))
        if self.free:
            at = torch.cat([at, self._free_row(gradient)], -2)
        return self.vector(at)

    def normal(self) -> Tensor:
        """Return the features' own Gram matrix."""
        return self.inputs.mT @ self.inputs


class Loss(ABC):
    """The sum of losses times C; `blocks` are the dimensions over which a problem of its own extends."""

    blocks: tuple[int, ...]

    def __init__(self, labels: Tensor, classes: int, strength: Tensor) -> None:
        self.targets = torch.nn.functional.one_hot(labels, classes).to(strength.dtype)
        self.strength = strength

    def total(self, values: Tensor) -> Tensor:
        """Sum over each block, keeping dimensions."""
        return values.sum(self.blocks, keepdim=True)

    @abstractmethod
    def value(self, scores: Tensor) -> Tensor:
        """Return the loss of each block."""

    @abstractmethod
    def slopes(self, scores: Tensor) -> Tensor:
        """Return the derivatives by the scores, `(B, N, K)`."""

    @abstractmethod
    def along(self, scores: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and second derivative of each block along a direction."""

    @abstractmethod
    def curvature(self, scores: Tensor) -> Tensor:
        """Return the mean second derivative `(B, 1, 1)`."""


class SquaredHinge(Loss):
    """Squared hinge of each class against the rest: each class is a block of its own."""

    blocks = (-2,)

    def __init__(self, labels: Tensor, classes: int, strength: Tensor) -> None:
        super().__init__(labels, classes, strength)
        self.signs = self.targets * 2 - 1

    def violations(self, scores: Tensor) -> Tensor:
        """Return by how much each image misses the margin of each class, `(B, N, K)`, at least 0."""
        return (1 - self.signs * scores).clamp_(min=0)

    def value(self, scores: Tensor) -> Tensor:
        """Sum the losses."""
        return self.strength * self.total(self.violations(scores).square_())

    def slopes(self, scores: Tensor) -> Tensor:
        """Differentiate."""
        return self.violations(scores).mul_(self.signs).mul_(-2 * self.strength)

    def along(self, scores: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate along a direction."""
        slopes = self.slopes(scores)
        curved = (slopes != 0).to(scores.dtype).mul_(direction).mul_(direction)
        return self.total(slopes.mul_(direction)), 2 * self.strength * self.total(curved)

    def curvature(self, scores: Tensor) -> Tensor:
        """Count the curved places."""
        violated = (self.signs * scores < 1).to(scores.dtype)
        return 2 * self.strength * violated.mean((-2, -1), keepdim=True)


class CrossEntropy(Loss):
    """Cross-entropy of a softmax over all classes."""

    blocks = (-2, -1)

    def value(self, scores: Tensor) -> Tensor:
        """Sum the losses."""
        right = (scores * self.targets).sum(-1)
        return self.strength * (scores.logsumexp(-1) - right).sum(-1)[..., None, None]

    def slopes(self, scores: Tensor) -> Tensor:
        """Differentiate."""
        return scores.softmax(-1).sub_(self.targets).mul_(self.strength)

    def along(self, scores: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate along a direction."""
        probabilities = scores.softmax(-1)
        weighted = probabilities * direction
        mean = weighted.sum(-1, keepdim=True)
        second = self.total(weighted.mul_(direction)) - mean.square().sum((-2, -1), keepdim=True)
        first = self.total(probabilities.sub_(self.targets).mul_(direction))
        return self.strength * first, self.strength * second

    def curvature(self, scores: Tensor) -> Tensor:
        """Average the diagonal of the Hessian."""
        probabilities = scores.softmax(-1)
        return self.strength * (probabilities * (1 - probabilities)).mean((-2, -1), keepdim=True)


@dataclass
class Minimum:
    """Where the solver has ended.

    Attributes:
        point: The point.
        objective: Of each block, `(B, 1, K)` or `(B, 1, 1)`.
        iterations: Number of iterations.
        converged: Whether every block is as near to its minimum as was asked for.
        gap: The duality gap of each block, like `objective`, where it was measured.
    """

    point: Vector
    objective: Tensor
    iterations: int
    converged: bool
    gap: Tensor | None = None


def minimize(space: Space, loss: Loss, at: Tensor, tolerance: float, iterations: int = _ITERATIONS) -> Minimum:
    """Minimize by preconditioned L-BFGS, each block by itself; converged by an estimate of the distance."""
    point = space.vector(at)
    history: list[tuple[Vector, Tensor, Tensor]] = []
    curvature = loss.curvature(point.scores)
    space.prepare(curvature)
    gradient = space.gradient(point.at, loss.slopes(point.scores))
    best, waited, fresh, refreshed = math.inf, 0, True, 0
    for iteration in range(iterations):
        step = _descent(space, loss, gradient, history)
        decrement = loss.total(gradient * step.dual)
        objective = objective_of(space, loss, point)
        done = decrement <= 2 * tolerance * objective
        whole = float(objective.double().sum())
        waited = 0 if whole < best * (1 - torch.finfo(objective.dtype).eps) else waited + 1
        best = min(best, whole)
        if bool(done.all()) or waited > _PATIENCE:
            if fresh or refreshed == _REFRESHES:
                return Minimum(point, objective, iteration, bool(done.all()))
            # Scores have gathered rounding with each step: see whether it holds for those of the point itself.
            point, fresh, refreshed, waited, best = space.vector(point.at), True, refreshed + 1, 0, math.inf
            gradient = space.gradient(point.at, loss.slopes(point.scores))
            continue
        fresh = False
        length = search(space, loss, point, step, decrement).masked_fill_(done, 0)
        move = step.times(-length)
        point = Vector(*(a + b for a, b in zip(point, move, strict=True)))
        before, gradient = gradient, space.gradient(point.at, loss.slopes(point.scores))
        change = gradient - before
        product = loss.total(change * move.dual)
        history.append((move, change, torch.where(product > 0, 1 / product, 0)))
        del history[:-_MEMORY]
        now = loss.curvature(point.scores)
        ratio = float((now / curvature).log().abs().max())
        if ratio > math.log(_CURVATURE_CHANGE):
            curvature = now
            space.prepare(curvature)
    return Minimum(point, objective_of(space, loss, point), iterations, False)


def _descent(space: Space, loss: Loss, gradient: Tensor, history: Sequence[tuple[Vector, Tensor, Tensor]]) -> Vector:
    """L-BFGS's two loops around the preconditioner."""
    rest, weights = gradient, []
    for move, change, inverse in reversed(history):
        weight = inverse * loss.total(rest * move.dual)
        rest = torch.addcmul(rest, weight, change, value=-1)
        weights.append(weight)
    step = space.descend(rest)
    for (move, change, inverse), weight in zip(history, reversed(weights), strict=True):
        step = step.plus(weight - inverse * loss.total(change * step.dual), move)
    return step


def search(space: Space, loss: Loss, point: Vector, step: Vector, decrement: Tensor) -> Tensor:
    """Return how far to go against `step`: Newton's method along the line, kept in a bracket."""
    linear = -loss.total(space.regular(point.at) * space.regular(step.dual))
    square = loss.total(space.regular(step.at) * space.regular(step.dual))
    low, high = torch.zeros_like(decrement), torch.full_like(decrement, math.inf)
    length = torch.ones_like(decrement)
    direction = -step.scores
    for _ in range(_LINE_STEPS):
        first, second = loss.along(torch.addcmul(point.scores, length, direction), direction)
        slope, bend = linear + length * square + first, square + second
        if bool((slope.abs() <= _SLOPE * decrement.abs()).all()):
            break
        low, high = torch.where(slope < 0, length, low), torch.where(slope < 0, high, length)
        newton = length - slope / bend
        inside = (newton > low) & (newton < high)
        length = torch.where(inside, newton, torch.where(high.isinf(), 2 * length, (low + high) / 2))
    return length


def objective_of(space: Space, loss: Loss, point: Vector) -> Tensor:
    """Return the objective of each block."""
    return 0.5 * loss.total(space.regular(point.at) * space.regular(point.dual)) + loss.value(point.scores)
