"""What FineTuner trains for: one class an image, several labels, a yes or no, or values; their losses and labels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TunedTask", "check_task", "task_loss", "task_targets"]

TunedTask = Literal["multiclass", "multilabel", "binary", "regression"]
"""One class an image; any number of labels; one logit for a yes or no; values."""

_TASKS = get_args(TunedTask)
_LEAST: dict[str, tuple[int, str]] = {
    "multiclass": (2, 'a classifier has 2 classes or more; one logit for a yes or no is task="binary"'),
    "multilabel": (1, "give the number of labels, 1 or more"),
    "binary": (1, "a yes or no has one logit"),
    "regression": (1, "give the number of values, 1 or more"),
}


def check_task(task: str, num_classes: int, label_smoothing: float, mixup: float) -> None:
    """Refuse a task that there is not, and what does not go with it."""
    if task not in _TASKS:
        raise ValueError(f"task={task!r}: it is one of {', '.join(map(repr, _TASKS))}")
    least, why = _LEAST[task]
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or num_classes < least or (task == "binary" and num_classes != 1):
        raise ValueError(f"num_classes={num_classes!r}: {why}")
    if task != "multiclass" and mixup:
        raise ValueError(f'mixup={mixup} mixes classes, and task="{task}" has none; give 0')
    if task == "regression" and label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} is of classes, and values have none; give 0")


def task_targets(labels: Tensor, outputs: Tensor, task: TunedTask) -> Tensor:
    """Return the labels of a batch as its loss takes them, of the form of the outputs `(N, K)` or as classes `(N,)`.

    Raises:
        ValueError: They are of another form.

    Example:
        >>> task_targets(torch.tensor([1, 0]), torch.zeros(2, 1), "binary")
        tensor([[1.],
                [0.]])
    """
    if task == "multiclass":
        return labels
    given = labels[:, None] if labels.ndim == 1 and outputs.shape[1] == 1 else labels
    if given.shape != outputs.shape:
        what = "values" if task == "regression" else "zeros and ones"
        raise ValueError(
            f'task="{task}": labels are {labels.dtype} of shape {tuple(labels.shape)}, where each of {len(outputs)} '
            f"images has {outputs.shape[1]} {what}: give ({len(outputs)}, {outputs.shape[1]})"
        )
    wanted = given.to(torch.float64 if outputs.dtype == torch.float64 else torch.float32)
    if task != "regression" and bool(((wanted < 0) | (wanted > 1)).any()):
        raise ValueError(
            f'task="{task}": labels reach from {float(wanted.min()):g} to {float(wanted.max()):g}; they are 0 for no '
            'and 1 for yes (class numbers are of task="multiclass")'
        )
    return wanted


def task_loss(
    outputs: Tensor, labels: Tensor, task: TunedTask, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean loss: cross-entropy, of labels binary cross-entropy of each, of values the squared error.

    Args:
        outputs: `(N, K)`: logits, or values.
        labels: See `task_targets`.
        task: What they mean.
        weight: `(K,)`: of each class, label or value.
        label_smoothing: 0 to 1, towards all classes, or towards a half of each label.
    """
    targets = task_targets(labels, outputs, task)
    if task == "multiclass":
        return F.cross_entropy(outputs, targets, weight=weight, label_smoothing=label_smoothing)
    if task == "regression":
        errors = (outputs - targets).square()
        return errors.mean() if weight is None else (errors * weight).mean()
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(outputs, smoothed.to(outputs.dtype), weight=weight)
