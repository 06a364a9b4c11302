from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score

from lightning_cnnviz.core.probing.measures import average_precision, mean_of, r2_scores


@pytest.mark.parametrize("digits", [9, 1], ids=["distinct", "ties"])
def test_average_precision_is_that_of_scikit_learn(digits: int) -> None:
    generator = torch.Generator().manual_seed(digits)
    scores = torch.randn(60, 5, generator=generator, dtype=torch.float64).mul(10**digits).round().div(10**digits)
    labels = (scores + torch.randn(60, 5, generator=generator) > 0.4).to(torch.int8)
    labels[:, 3], labels[:, 4] = 0, 1
    found = average_precision(scores, labels)
    wanted = [average_precision_score(labels[:, k].numpy(), scores[:, k].numpy()) for k in range(3)]
    assert found[:3].tolist() == pytest.approx(wanted, abs=1e-12)
    assert bool(found[3:].isnan().all())
    assert mean_of(found) == pytest.approx(sum(wanted) / 3)


def test_r2_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(40, 3, generator=generator)
    values = wanted + torch.randn(40, 3, generator=generator)
    wanted[:, 2] = 5
    found = r2_scores(values, wanted)
    assert found[:2].tolist() == pytest.approx(
        r2_score(wanted[:, :2].double(), values[:, :2].double(), multioutput="raw_values").tolist(), abs=1e-9
    )
    assert bool(found[2].isnan())
