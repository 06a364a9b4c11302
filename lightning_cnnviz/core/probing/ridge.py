"""Ridge regression on fixed features, in closed form and for several strengths at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.solvers import Classifier

__all__ = ["fit_ridge"]


def fit_ridge(
    inputs: Tensor,
    targets: Tensor,
    *,
    Cs: Sequence[float],  # noqa: N803
    space: Literal["gram", "features"],
) -> list[Classifier]:
    """Fit values by linear functions, one for each C: scikit-learn's `Ridge(alpha=1 / (2 * C))`.

    The objective is `0.5 |w|² + C * sum of squared errors`; the intercept is free.

    Args:
        inputs: `(N, N)` Gram matrix or `(N, D)` features of the images to learn from, as `space` says.
        targets: `(N, V)`.
        Cs: Positive.
        space: What `inputs` are.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0]])
        >>> fitted, = fit_ridge(features, 3 * features + 1, Cs=[1e9], space="features")
        >>> fitted.scores(torch.tensor([[10.0]]))
        tensor([[31.0000]], dtype=torch.float64)
    """
    inputs, targets = inputs.double(), targets.to(inputs.device).double()
    means, level = inputs.mean(0), targets.mean(0)
    away = targets - level
    in_gram = space == "gram"
    if in_gram:
        matrix = inputs - means - means[:, None] + means.mean()
        product = away
    else:
        centered = inputs - means
        matrix, product = centered.T @ centered, centered.T @ away
    values, vectors = torch.linalg.eigh(matrix)
    turned = vectors.T @ product
    fitted = []
    for strength in Cs:
        weights = vectors @ (turned / (values.clamp(min=0) + 0.5 / strength)[:, None])
        if in_gram:
            weights = weights - weights.mean(0)  # which a centered Gram matrix does not notice
        intercept = level - means @ weights
        # Squared weights of the features themselves.
        size = (weights * (matrix @ weights)).sum() if in_gram else weights.square().sum()
        errors = inputs @ weights + intercept - targets
        fitted.append(
            Classifier(
                weights=weights,
                intercept=intercept,
                objective=0.5 * size + strength * errors.square().sum(),
                iterations=1,
                converged=True,
            )
        )
    return fitted
