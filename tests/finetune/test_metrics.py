"""What FineTuner measures, where scores are not finite."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from lightning_cnnviz.finetune.cli import _PredictionWriter
from lightning_cnnviz.finetune.metrics import ConfusionMatrix, make_metrics
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.report import Scalar


@pytest.mark.fault(
    "numbers",
    "a fine-tuned network gives NaN for some images, or for all",
    "FineTuner's accuracies are NaN, and the confusion matrix says how many images are left out",
)
@pytest.mark.parametrize("every", [False, True], ids=["some", "all"])
def test_scores_that_are_not_finite_are_no_class(every: bool) -> None:
    scores, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 1, 0])
    scores[slice(None) if every else 0] = torch.nan
    found = make_metrics(3, "val/")
    found.update(scores, labels)
    assert all(value.isnan() for value in found.compute().values())
    matrix = ConfusionMatrix(3)
    matrix.update(scores, labels)
    counts = matrix.compute()
    assert (int(counts.sum()), matrix.left_out) == ((0, 4) if every else (3, 1))
    report = confusion_report(counts, unscored=matrix.left_out)
    assert report.notes[0].startswith(f"Not finite: {matrix.left_out} images are left out")
    assert all(math.isnan(item.value) for item in report.items if isinstance(item, Scalar))
    found.reset()
    found.update(torch.eye(3), torch.arange(3))
    assert all(value == 1 for value in found.compute().values())


@pytest.mark.fault(
    "numbers",
    "a network gives NaN for an image that `cnnviz predict` writes down",
    "the image's line names no class, and its probabilities are nan",
)
def test_predictions_that_are_not_finite_name_no_class() -> None:
    images = SimpleNamespace(files=["a.png", "b.png"], targets=[-1, 0], classes=["cat", "dog"])
    trainer = SimpleNamespace(predict_dataloaders=SimpleNamespace(dataset=images))
    scores = torch.tensor([[torch.nan, 1.0], [0.0, 0.0]])
    writer = _PredictionWriter()
    writer.write_on_batch_end(trainer, None, scores, [0, 1], None, 0, 0)
    assert writer._rows[0] == ["a.png", "", "", "nan", "", "nan"]
    assert writer._rows[1][3:] == ["0.500000", writer._rows[1][4], "0.500000"]
