"""What is told from features, how it is fitted and how it is measured: classes, several labels, or values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.measures import average_precision, mean_of, r2_scores
from lightning_cnnviz.core.probing.ridge import fit_ridge
from lightning_cnnviz.core.probing.solvers import Classifier, Head, fit_features, fit_gram, fit_path

__all__ = ["Measure", "Probed", "ProbedClasses", "ProbedLabels", "ProbedValues"]

Measure = Literal["accuracy", "mean average precision", "R2"]
"""Right ones of all; the mean of the labels' average precision; the explained part of the values' variance."""

_BATCH = 30_000_000  # numbers of the inputs of labels that are fitted together


class Probed(Protocol):
    """What probes of one layer tell."""

    @property
    def measure(self) -> Measure:
        """What `measured` returns."""

    @property
    def count(self) -> int:
        """How many classes, labels or values there are."""

    @property
    def chance(self) -> float:
        """What would be measured without looking at the features."""

    def heads(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Return what is fitted where these heads are asked for."""

    def fit(
        self,
        inputs: Tensor,
        own: Tensor,
        head: str,
        Cs: Sequence[float],  # noqa: N803
        *,
        space: Literal["gram", "features"],
        start: Classifier | None = None,
        tolerance: float = 1e-11,
    ) -> list[Classifier]:
        """Fit targets `own (N, ...)` by one head, for each C, ascending; see `fit_path`."""

    def votes(self, nearest: Tensor) -> Tensor:
        """Return the scores `(M, count)` that the targets `(M, k, ...)` of the nearest images give."""

    def measured(self, scores: Tensor, wanted: Tensor) -> float:
        """Return the measure of scores `(M, count)`, given the targets `(M, ...)`."""


@dataclass(frozen=True, kw_only=True)
class ProbedClasses:
    """One class of each image, or pixel: targets are `(N,)` int64 from 0 up.

    Attributes:
        count: Number of classes.
        average: `"class"` for the mean of the classes' accuracies, `"image"` for right ones of all.
        numbers: What each is called among the labels; none where that is not known.
    """

    count: int
    average: str
    numbers: tuple[int, ...] = ()
    measure: Measure = "accuracy"

    @property
    def chance(self) -> float:
        """The accuracy of guesses."""
        return 1 / self.count

    def heads(self, asked: Sequence[str]) -> tuple[str, ...]:
        """All of them."""
        return tuple(asked)

    def fit(
        self,
        inputs: Tensor,
        own: Tensor,
        head: str,
        Cs: Sequence[float],  # noqa: N803
        *,
        space: Literal["gram", "features"],
        start: Classifier | None = None,
        tolerance: float = 1e-11,
    ) -> list[Classifier]:
        """Fit all classes together; one that is not there is never said."""
        kind: Head = "svm" if head == "svm" else "softmax"
        there, numbers = own.unique(return_inverse=True)
        if len(there) == self.count:
            options: Any = {"start": start, "tolerance": tolerance}
            return fit_path(inputs, own, self.count, head=kind, Cs=Cs, space=space, **options)
        if len(there) == 1:
            alone = Classifier(
                weights=inputs.new_zeros(inputs.shape[1], 1),
                intercept=inputs.new_zeros(1),
                objective=torch.zeros(()),
                iterations=0,
                converged=True,
            )
            return [_among(alone, there, self.count) for _ in Cs]
        path = fit_path(inputs, numbers, len(there), head=kind, Cs=Cs, space=space, tolerance=tolerance)
        return [_among(one, there, self.count) for one in path]

    def votes(self, nearest: Tensor) -> Tensor:
        """Count them; of equal counts the class with the lower number wins."""
        votes = torch.nn.functional.one_hot(nearest, self.count).sum(1).double()
        return votes - torch.arange(self.count, device=votes.device) / (2 * self.count)

    def measured(self, scores: Tensor, wanted: Tensor) -> float:
        """Accuracy of the class with the highest score."""
        if self.average == "image":
            return float((scores.argmax(1).cpu() == wanted).double().mean())
        return mean_of(self.by_class(scores, wanted))

    def by_class(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Return the accuracy of each class `(count,)` float64; NaN where none is of it."""
        right, learned = (scores.argmax(1).cpu() == wanted).double(), wanted >= 0
        counts = torch.bincount(wanted[learned], minlength=self.count)
        return torch.bincount(wanted[learned], right[learned], minlength=self.count) / counts


@dataclass(frozen=True, kw_only=True)
class ProbedLabels:
    """Any number of labels of each image, each against the rest: targets are `(N, K)` zeros and ones.

    Attributes:
        count: Number of labels that some images have and some have not: others count nowhere.
        chance: The mean of their frequencies.
    """

    count: int
    chance: float
    measure: Measure = "mean average precision"

    def heads(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Softmax of a label and its absence is the logistic function."""
        return tuple("logistic" if head == "softmax" else head for head in asked)

    def fit(
        self,
        inputs: Tensor,
        own: Tensor,
        head: str,
        Cs: Sequence[float],  # noqa: N803
        *,
        space: Literal["gram", "features"],
        start: Classifier | None = None,
        tolerance: float = 1e-11,
    ) -> list[Classifier]:
        """Fit each label by itself; one that all images have, or none, has scores of 0."""
        own = own.long()
        fitted = (own.amin(0) != own.amax(0)).nonzero().flatten()
        parts = [
            _labels_path(inputs, own[:, some].T, head, Cs, space, tolerance)
            for some in fitted.split(max(1, _BATCH // max(inputs.numel(), 1)))
        ]
        return [_joined([part[place] for part in parts], fitted, own.shape[1], inputs) for place in range(len(Cs))]

    def votes(self, nearest: Tensor) -> Tensor:
        """How many of them have each label."""
        return nearest.double().mean(1)

    def measured(self, scores: Tensor, wanted: Tensor) -> float:
        """Mean of the average precision of each label."""
        return mean_of(average_precision(scores, wanted))


@dataclass(frozen=True, kw_only=True)
class ProbedValues:
    """Values of each image: targets are `(N, V)` floats.

    Attributes:
        count: Number of values.
    """

    count: int
    chance: float = 0.0
    measure: Measure = "R2"

    def heads(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Ridge regression in the place of classifiers."""
        return tuple(dict.fromkeys("knn" if head == "knn" else "ridge" for head in asked))

    def fit(
        self,
        inputs: Tensor,
        own: Tensor,
        head: str,
        Cs: Sequence[float],  # noqa: N803
        *,
        space: Literal["gram", "features"],
        start: Classifier | None = None,
        tolerance: float = 1e-11,
    ) -> list[Classifier]:
        """Fit all values together, in closed form."""
        return fit_ridge(inputs, own, Cs=Cs, space=space)

    def votes(self, nearest: Tensor) -> Tensor:
        """Their mean."""
        return nearest.double().mean(1)

    def measured(self, scores: Tensor, wanted: Tensor) -> float:
        """Mean of R2 of each value."""
        return mean_of(r2_scores(scores, wanted))


def _among(fitted: Classifier, there: Tensor, count: int) -> Classifier:
    """A classifier of some classes as one of all."""
    weights = fitted.weights.new_zeros(len(fitted.weights), count)
    intercept = fitted.intercept.new_full((count,), -torch.inf)
    weights[:, there], intercept[there] = fitted.weights, fitted.intercept
    return replace(fitted, weights=weights, intercept=intercept)


def _labels_path(
    inputs: Tensor, own: Tensor, head: str, strengths: Sequence[float], space: str, tolerance: float
) -> list[Classifier]:
    """Some labels `(K, N)` as a batch of problems of two classes, each C from the one before."""
    fit = fit_gram if space == "gram" else fit_features
    kind: Head = "svm" if head == "svm" else "softmax"
    fitted: list[Classifier] = []
    for strength in strengths:
        start = fitted[-1] if fitted else None
        batch = inputs.expand(len(own), *inputs.shape)
        fitted.append(fit(batch, own, 2, head=kind, C=strength, start=start, tolerance=tolerance))
    return fitted


def _joined(parts: Sequence[Classifier], fitted: Tensor, labels: int, inputs: Tensor) -> Classifier:
    """One score a label: that of having it, less that of not having it."""
    weights = torch.zeros(inputs.shape[1], labels, dtype=inputs.dtype, device=inputs.device)
    intercept = torch.zeros(labels, dtype=inputs.dtype, device=inputs.device)
    if parts:
        both = torch.cat([part.weights for part in parts])
        shift = torch.cat([part.intercept for part in parts])
        weights[:, fitted] = (both[..., 1] - both[..., 0]).T
        intercept[fitted] = shift[:, 1] - shift[:, 0]
    return Classifier(
        weights=weights,
        intercept=intercept,
        objective=sum((part.objective.sum() for part in parts), torch.zeros(())),
        iterations=max((part.iterations for part in parts), default=0),
        converged=all(part.converged for part in parts),
    )
