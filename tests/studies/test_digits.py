from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cnnviz.studies.digits import digits_transfer
from lightning_cnnviz.studies.options import StudyError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::FutureWarning:lightning.*")


def test_what_some_digits_teach_of_others(tmp_path: Path, made: list[str]) -> None:
    options: dict[str, Any] = {"per_class": [3], "seeds": [0, 1], "variants": ["pretrained-full", "scratch"]}
    options |= {"folder": tmp_path, "steps": 15, "pretraining_steps": 60, "progress": False}
    result = digits_transfer(**options)
    assert (result.classes, result.data) == (5, "digits")
    assert "Pretrained on digits 0 to 4" in result.notes[0]
    assert float(result.accuracies("pretrained-full", 3).mean()) > float(result.accuracies("scratch", 3).mean())
    (weights,) = tmp_path.glob("*.pt")
    assert torch.equal(digits_transfer(**options).top1, result.top1)
    assert len(made) == 4
    # Lost weights are learned again: the same ones, so that all results still hold.
    before = torch.load(weights, weights_only=True)
    weights.unlink()
    assert torch.equal(digits_transfer(**options).top1, result.top1)
    after = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert len(made) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["pretrained"]}, "there is no 'pretrained'"),
        ({"pretraining_steps": 0}, "steps=0"),
        ({"variant": ["scratch"]}, "digits_transfer has no option 'variant'.* Did you mean 'variants'"),
    ],
)
def test_what_is_wrong_is_refused_before_the_pretraining(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        digits_transfer(tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()
