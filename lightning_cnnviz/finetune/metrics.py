"""What FineTuner measures: accuracies over all images and over the classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

__all__ = ["MeanClassAccuracy", "make_metrics"]

_TOP = 5


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """The mean over the classes of each one's accuracy, 0 to 1; classes without images are left out."""

    def compute(self) -> Tensor:
        """Return the mean, float32."""
        counts = super().compute().double()
        seen = counts.sum(1) > 0
        return (counts.diagonal()[seen] / counts.sum(1)[seen]).mean().float()


def make_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Return the accuracies that are logged under a prefix such as `"val/"`."""
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "mean_class_accuracy": MeanClassAccuracy(num_classes),
    }
    if num_classes > _TOP:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=_TOP)
    # Without groups that share a state: torchmetrics would take the class mean for another confusion matrix.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
