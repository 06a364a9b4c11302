"""What labels say of each image, by the task."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.network.task import IGNORED, Task

__all__ = ["Meaning", "read_labels"]

_VOID = 255  # the border of label maps, by convention of Pascal VOC and Cityscapes


class Meaning(NamedTuple):
    """What the labels of N images say.

    Attributes:
        targets: `(N,)` int64, the class that is followed; 0 where there is no label.
        known: `(N,)` bool, the images that have a label.
        present: `(N, classes)` bool, of several labels an image: the classes that are there; None where an image has
            one class at most.
        regions: `(N, H, W)` bool, of segmentation: the pixels of the followed class.
    """

    targets: Tensor
    known: Tensor
    present: Tensor | None = None
    regions: Tensor | None = None


def read_labels(labels: Tensor | None, probabilities: Tensor, task: Task, follow: int | None = None) -> Meaning:
    """Say which class of each image is followed.

    Whole numbers of `IGNORED`, and NaN, are no label; in label maps neither is 255.

    Args:
        labels: One class an image: `(N,)` numbers of classes, or `(N, classes)` one-hot or soft. Several: `(N,
            classes)` of zeros and ones. A yes or no: `(N,)` or `(N, 1)` of zeros and ones. Segmentation: `(N, H, W)`
            numbers of classes, of any size. Regression: read by nobody. None where there are none.
        probabilities: `(N, classes)`, of segmentation `(N, classes, height, width)`: by the network.
        task: What labels mean.
        follow: Of segmentation, the class that is followed in every image; by default that of the most pixels.

    Raises:
        ValueError: Labels have another shape, or are no classes.
    """
    probabilities = probabilities.detach().cpu()
    count, classes = probabilities.shape[:2]
    if task.kind == "segmentation":
        return _of_maps(labels, probabilities, follow)
    nothing = Meaning(torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool))
    if labels is None or task.kind == "regression":
        return nothing
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape == (count, classes) and classes > 1:
        return _of_rows(labels, probabilities, several=task.kind == "multilabel")
    if task.kind == "multilabel" and classes == 1 and labels.numel() == count:
        return _of_rows(labels.view(count, 1), probabilities, several=True)
    numbers = labels.flatten() if labels.shape == (count, 1) else labels
    whole = not numbers.is_floating_point() or bool((numbers == numbers.round())[~numbers.isnan()].all())
    if numbers.shape != (count,) or not whole or task.kind == "multilabel":
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give one whole number for each of the {count} "
            f"images, or zeros and ones ({count}, {classes}), or no labels"
        )
    known = _there(numbers)
    found = torch.where(known, numbers, 0).long()
    _check_range(found, classes)
    return Meaning(found, known)


def _of_rows(labels: Tensor, probabilities: Tensor, *, several: bool) -> Meaning:
    rows = torch.where(_there(labels), labels.float(), 0)
    if not several:
        return Meaning(rows.argmax(1), rows.amax(1) > 0)
    present = rows > 0.5
    # Of those that are there, the most probable one; NaN would win.
    targets = probabilities.nan_to_num(-1).masked_fill(~present, -2).argmax(1)
    return Meaning(targets, present.any(1), present)


def _of_maps(labels: Tensor | None, probabilities: Tensor, follow: int | None) -> Meaning:
    count, classes = probabilities.shape[:2]
    numbers = probabilities.nan_to_num(-1).argmax(1)
    known = torch.zeros(count, dtype=torch.bool)
    if labels is not None:
        given = _resized(labels.detach().cpu(), count, tuple(probabilities.shape[2:]), classes)
        known = (given >= 0).flatten(1).any(1)
        numbers = torch.where(known[:, None, None], given, numbers)
    present = torch.stack([(numbers == number).flatten(1).sum(1) for number in range(classes)], 1)
    # Class 0 is mostly the background, and everywhere.
    others = present.clone()
    others[:, 0] = 0
    largest = torch.where(others.any(1), others.argmax(1), 0)
    targets = largest if follow is None else torch.full_like(largest, follow)
    return Meaning(targets, known, present > 0, numbers == targets[:, None, None])


def _resized(labels: Tensor, count: int, size: tuple[int, ...], classes: int) -> Tensor:
    """Label maps `(N, height, width)` as large as the network's output; -1 where there is no label."""
    maps = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
    if maps.ndim != 3 or len(maps) != count:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; segmentation has label maps ({count}, height, "
            "width) of whole numbers, or no labels"
        )
    there = _there(maps) & ((maps != _VOID) | (classes > _VOID))
    numbers = torch.where(there, maps, 0).long()
    _check_range(numbers, classes)
    numbers = numbers.masked_fill(~there, -1)
    return F.interpolate(numbers[:, None].double(), size=size, mode="nearest")[:, 0].long()


def _there(labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return ~labels.isnan()
    known = torch.ones_like(labels, dtype=torch.bool)
    for sign in IGNORED if labels.dtype != torch.bool else ():
        known &= labels.to(torch.int64) != sign
    return known


def _check_range(numbers: Tensor, classes: int) -> None:
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if len(wrong):
        raise ValueError(
            f"labels {sorted(set(wrong.tolist()))[:6]} are out of range: the network has {classes} classes "
            f"(0 to {classes - 1})"
        )
