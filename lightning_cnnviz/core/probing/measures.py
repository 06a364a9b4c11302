"""How right a probe's scores are: average precision of labels, R2 of values."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_precision", "mean_of", "r2_scores"]


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each label's average precision `(K,)` float64; NaN where all images have it, or none.

    The sum over thresholds of precision times the gain in recall, as scikit-learn's `average_precision_score`: images
    of equal scores come together.

    Args:
        scores: `(N, K)`.
        labels: `(N, K)` zeros and ones.

    Example:
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [0], [1]]))
        tensor([0.8333], dtype=torch.float64)
    """
    ordered, order = scores.double().sort(0, descending=True)
    right = labels.to(order.device).gather(0, order).double().cumsum(0)
    positives, count = right[-1:], len(scores)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    precision = right / torch.arange(1, count + 1, device=right.device)[:, None]
    recall = right / positives.clamp(min=1)
    # The gain since the threshold before: the recall at the last of the images of higher scores.
    reached = torch.where(last, recall, 0).cummax(0).values
    gain = recall - torch.cat([torch.zeros_like(reached[:1]), reached[:-1]])
    value = torch.where(last, precision * gain, 0).sum(0)
    return value.masked_fill((positives[0] == 0) | (positives[0] == count), torch.nan).cpu()


def r2_scores(values: Tensor, wanted: Tensor) -> Tensor:
    """Return R2 of each value `(V,)` float64: 1 less the squared errors over the squares about the mean; at most 1.

    NaN where all that was wanted is the same.

    Args:
        values: `(N, V)`, by a probe.
        wanted: `(N, V)`.

    Example:
        >>> r2_scores(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    values, wanted = values.double().cpu(), wanted.double().cpu()
    spread = (wanted - wanted.mean(0)).square().sum(0)
    return torch.where(spread > 0, 1 - (values - wanted).square().sum(0) / spread, torch.nan)


def mean_of(values: Tensor) -> float:
    """Return the mean of those that are not NaN; NaN where all are.

    Example:
        >>> mean_of(torch.tensor([0.5, torch.nan]))
        0.5
    """
    return float(values.nanmean())
