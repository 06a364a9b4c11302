from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.comparison.similarity import centered_gram, channel_correlations


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unbiased_hsic(first: Tensor, second: Tensor) -> float:
    """Equation 5 of Song et al., 2012, written out."""
    k, m = (first @ first.T).fill_diagonal_(0).numpy(), (second @ second.T).fill_diagonal_(0).numpy()
    n = len(k)
    trace = np.trace(k @ m)
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
    both = 2 / (n - 2) * (k @ m).sum()
    return float((trace + sums - both) / (n * (n - 3)))


def test_cka_is_the_ratio_of_the_unbiased_estimates_of_hsic() -> None:
    first, second = draw(30, 5), draw(30, 8, seed=1)
    second[:, :3] += first[:, :3]
    expected = unbiased_hsic(first, second) / np.sqrt(unbiased_hsic(first, first) * unbiased_hsic(second, second))
    assert float((centered_gram(first) * centered_gram(second)).sum()) == pytest.approx(expected, abs=1e-12)


def test_cka_does_not_change_when_channels_are_rotated_scaled_or_moved() -> None:
    first, second = draw(20, 6), draw(20, 6, seed=1)
    rotation, _ = torch.linalg.qr(draw(6, 6, seed=2))
    moved = 7 * (second @ rotation) - 3
    plain, rotated = (float((centered_gram(first) * centered_gram(side)).sum()) for side in (second, moved))
    assert rotated == pytest.approx(plain, abs=1e-12)


def test_unrelated_features_of_more_channels_than_images_have_a_cka_of_nothing_on_average() -> None:
    values = [
        float((centered_gram(draw(20, 200, seed=seed)) * centered_gram(draw(20, 200, seed=1000 + seed))).sum())
        for seed in range(60)
    ]
    assert abs(np.mean(values)) < 0.02  # the usual, biased estimate is 0.91 here


def test_features_that_are_the_same_for_all_images_have_no_cka() -> None:
    assert bool(centered_gram(torch.ones(6, 3) * torch.tensor([0.1, 0.2, 0.3])).isnan().all())


def test_cka_of_three_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 images, and was given 3"):
        centered_gram(draw(3, 2))


def test_correlations_are_numpys_and_those_of_constant_channels_are_nan() -> None:
    first, second = draw(25, 4), draw(25, 3, seed=1)
    first[:, 2] = 0.1
    found = channel_correlations(first.float(), second.float())
    varying = [0, 1, 3]
    expected = np.corrcoef(first[:, varying].T, second.T)[:3, 3:]
    np.testing.assert_allclose(found[varying], expected, atol=1e-6)
    assert bool(found[2].isnan().all())
