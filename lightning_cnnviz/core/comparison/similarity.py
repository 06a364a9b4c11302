"""How alike two representations of the same images are: correlation of channels, and CKA of layers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FEWEST_IMAGES", "centered_gram", "channel_correlations"]

FEWEST_IMAGES = 4
"""With fewer images CKA is not defined."""

# A channel whose standard deviation is a smaller fraction of its root mean square than this varies by rounding alone.
_CONSTANT = 1e-6


def centered_gram(features: Tensor) -> Tensor:
    """Return what CKA needs to know of a layer: CKA of two layers is the sum of the product of these two matrices.

    It is the linear CKA with the unbiased estimate of HSIC: unlike the usual one, it is 0 on average for unrelated
    features, also where a layer has more channels than there are images. It can then be a little below 0.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019; the estimate is that of Song et
    al., "Feature Selection via Dependence Maximization", 2012, equation 5.

    Args:
        features: `(N, C)`, of at least four images.

    Returns:
        `(N, N)` float64, zero on its diagonal, with a root of the sum of squares of 1; NaN where the features are
        the same for all images.

    Example:
        >>> features = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 5.0], [4.0, 1.0], [7.0, 2.0]])
        >>> gram = centered_gram(features)
        >>> round(float((gram * centered_gram(-3 * features + 1)).sum()), 6)
        1.0
    """
    count = len(features)
    if count < FEWEST_IMAGES:
        raise ValueError(f"CKA takes at least {FEWEST_IMAGES} images, and was given {count}")
    rows = features.double()
    centered = rows - rows.mean(0)
    if not bool(_varying(rows, centered).any()):
        return torch.full((count, count), torch.nan, dtype=torch.float64)
    gram = (centered @ centered.T).fill_diagonal_(0)
    sums = gram.sum(1) / (count - 2)
    gram -= sums[:, None] + sums
    gram += sums.sum() / (count - 1)
    gram.fill_diagonal_(0)
    scaled: Tensor = gram / gram.norm()
    return scaled


def channel_correlations(features: Tensor, others: Tensor) -> Tensor:
    """Return Pearson's r of each channel of one layer with each of another, over the same images.

    Args:
        features: `(N, C)`.
        others: `(N, D)`.

    Returns:
        `(C, D)` float64, -1 to 1; NaN where a channel is the same for all images.
    """
    first, second = _standardized(features), _standardized(others)
    products: Tensor = first.T @ second
    return products.clamp(-1, 1)


def _standardized(features: Tensor) -> Tensor:
    rows = features.double()
    centered = rows - rows.mean(0)
    scaled: Tensor = centered / centered.norm(dim=0)
    return scaled.masked_fill(~_varying(rows, centered), torch.nan)


def _varying(rows: Tensor, centered: Tensor) -> Tensor:
    """Which channels vary by more than rounding: `(C,)` bool."""
    varying: Tensor = centered.norm(dim=0) > _CONSTANT * rows.norm(dim=0)
    return varying
