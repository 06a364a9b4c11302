from __future__ import annotations

import torch
from core.probing.test_probe import problem
from sklearn.linear_model import Ridge

from lightning_cnnviz.core.probing.ridge import fit_ridge


def test_ridge_is_the_same_of_features_and_of_their_inner_products() -> None:
    features, _ = problem(50, 80, 3)
    targets = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    (direct,) = fit_ridge(features, targets, Cs=[0.01], space="features")
    (inner,) = fit_ridge(features.double() @ features.double().T, targets, Cs=[0.01], space="gram")
    torch.testing.assert_close(features.T.double() @ inner.weights, direct.weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(inner.intercept, direct.intercept, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inner.objective, direct.objective, rtol=1e-6, atol=1e-6)
    wanted = Ridge(alpha=50.0).fit(features.double().numpy(), targets.double().numpy())
    torch.testing.assert_close(direct.weights, torch.from_numpy(wanted.coef_.T), atol=1e-6, rtol=1e-5)
