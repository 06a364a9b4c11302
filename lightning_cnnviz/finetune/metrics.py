"""What FineTuner measures: accuracies over all images and over the classes; of labels and values what suits them.

Scores that are not finite are no class, though torch takes the largest of them to be the first: where there are any,
accuracies are NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAveragePrecision,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
)

from lightning_cnnviz.finetune.tasks import TunedTask

__all__ = ["ConfusionMatrix", "MeanClassAccuracy", "make_metrics"]

_TOP = 5


class _Scored(Metric):
    """Leaves images out whose scores are not finite, and counts them."""

    unscored: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_state("unscored", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch, given logits `(N, classes)` and labels `(N,)`."""
        finite = scores.detach().float().softmax(1).isfinite().all(1)
        self.unscored += (~finite).sum()
        if bool(finite.any()):
            super().update(scores[finite], labels[finite])  # type: ignore[safe-super]


class ConfusionMatrix(_Scored, MulticlassConfusionMatrix):
    """Counts, for each true class, what its images are taken for.

    Attributes:
        left_out: How many images, of all ranks, had no finite scores when it was last computed.
    """

    left_out = 0

    def compute(self) -> Tensor:
        """Return the counts `(classes, classes)`, a true class a row."""
        self.left_out = int(self.unscored)
        return super().compute()


class _Accuracy(_Scored, MulticlassAccuracy):
    def compute(self) -> Tensor:
        return super().compute().masked_fill(self.unscored > 0, torch.nan)


class MeanClassAccuracy(ConfusionMatrix):
    """The mean over the classes of each one's accuracy, 0 to 1; classes without images are left out."""

    def compute(self) -> Tensor:
        """Return the mean, float32; NaN where scores were not finite."""
        counts = super().compute().double()
        seen = counts.sum(1) > 0
        mean = (counts.diagonal()[seen] / counts.sum(1)[seen]).mean().float()
        return mean.masked_fill(self.unscored > 0, torch.nan)


class _OfLabels(Metric):
    """Has labels `(N, labels)` as floats, and takes them as whole numbers."""

    def update(self, scores: Tensor, labels: Tensor) -> None:
        super().update(scores.float(), labels.long())  # type: ignore[safe-super]


class _LabelAccuracy(_OfLabels, MultilabelAccuracy):
    pass


class _LabelPrecision(_OfLabels, MultilabelAveragePrecision):
    pass


class _YesAccuracy(_OfLabels, BinaryAccuracy):
    pass


class _YesPrecision(_OfLabels, BinaryAveragePrecision):
    pass


def make_metrics(num_classes: int, prefix: str, task: TunedTask = "multiclass") -> MetricCollection:
    """Return what is logged under a prefix such as `"val/"`.

    They are updated with outputs `(N, classes)`, and labels `(N,)`; of other tasks than `"multiclass"` with labels as
    `task_targets` returns them.
    """
    metrics: dict[str, Any]
    if task == "multilabel":
        metrics = {"accuracy": _LabelAccuracy(num_classes), "mean_average_precision": _LabelPrecision(num_classes)}
    elif task == "binary":
        metrics = {"accuracy": _YesAccuracy(), "average_precision": _YesPrecision()}
    elif task == "regression":
        metrics = {"mean_absolute_error": MeanAbsoluteError(), "r2": R2Score()}
    else:
        metrics = {
            "accuracy": _Accuracy(num_classes, average="micro"),
            "mean_class_accuracy": MeanClassAccuracy(num_classes),
        }
    if task == "multiclass" and num_classes > _TOP:
        metrics["accuracy_top5"] = _Accuracy(num_classes, average="micro", top_k=_TOP)
    # Without groups that share a state: torchmetrics would take the class mean for another confusion matrix.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
