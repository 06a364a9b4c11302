"""What probes are to tell of images: a class, several labels, values, or the classes of some pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cnnviz.core.data.batches import class_labels
from lightning_cnnviz.core.network.task import IGNORED

__all__ = ["PIXELS", "DrawnPixels", "draw_pixels", "have_targets", "pixel_numbers", "probe_targets", "settled_targets"]

PIXELS = 8
"""Of how many pixels of each image with a label map the class is told."""

_TRIED = 256  # pixels of each image that are looked at for classes
_VOID = 255  # the border of label maps, by convention of Pascal VOC and Cityscapes
_STEPS = (0.7548776662466927, 0.5698402909980532)  # of a sequence that fills a square evenly (Roberts 2018)


class DrawnPixels(NamedTuple):
    """Some pixels of N images.

    Attributes:
        places: `(N, PIXELS, 2)` float64, row and column as fractions of height and width, 0 to 1.
        classes: `(N, PIXELS)` int64; -1 where there are not so many pixels with a class.
    """

    places: Tensor
    classes: Tensor


def probe_targets(labels: Tensor | None) -> Tensor | None:
    """Return labels `(N, ...)` in the form that probes learn from; None where they are of no such form.

    Returns:
        Whole numbers of one class an image, see `class_labels`: `(N,)` int64, -1 for none. Zeros and ones, or
        probabilities of classes: `(N, K)` int8, of probabilities one for the largest; -1 for none. Maps `(N, H, W)` of
        the pixels' classes: as they are, int64, -1 for none (of maps as bytes, 255 is none). Other values `(N, V)`:
        float32, NaN for none.

    Example:
        >>> probe_targets(torch.tensor([[1.0, 0.0, 1.0]])), probe_targets(torch.tensor([0.5, 2.5])).shape
        (tensor([[1, 0, 1]], dtype=torch.int8), torch.Size([2, 1]))
    """
    if labels is None or labels.ndim == 0:
        return None
    labels = labels.detach()
    if labels.dtype == torch.bool:
        labels = labels.to(torch.uint8)
    classes = class_labels(labels)
    if classes is not None:
        return classes
    if labels.ndim >= 3 and labels.numel() > len(labels):
        return _maps(labels)
    if (labels.numel() != len(labels) and labels.ndim > 2) or not labels.numel():
        return None
    return _rows(labels.reshape(len(labels), -1))


def _rows(labels: Tensor) -> Tensor | None:
    """Of labels `(N, K)`: zeros and ones, or values."""
    there = ~labels.isnan() if labels.is_floating_point() else ~torch.isin(labels, labels.new_tensor(IGNORED))
    known = there.all(1)
    if not bool(known.any()):
        return None
    kept = labels[known]
    if labels.shape[1] > 1:
        if bool(((kept == 0) | (kept == 1)).all()):
            return labels.nan_to_num(-1).masked_fill(~known[:, None], -1).to(torch.int8)
        if labels.is_floating_point() and bool((kept >= 0).all()) and _sum_to_one(kept):
            ones = torch.nn.functional.one_hot(labels.nan_to_num(-1).argmax(1), labels.shape[1])
            return ones.masked_fill(~known[:, None], -1).to(torch.int8)
    return labels.float().masked_fill(~known[:, None], torch.nan)


def _sum_to_one(rows: Tensor) -> bool:
    return torch.allclose(
        rows.double().sum(1), torch.ones(len(rows), dtype=torch.float64, device=rows.device), atol=1e-3
    )


def _maps(labels: Tensor) -> Tensor | None:
    """Of labels `(N, H, W)`, or with one channel: the class of each pixel."""
    maps = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
    if maps.ndim != 3 or bool((maps != maps.round()).any() if maps.is_floating_point() else False):
        return None
    numbers = maps.nan_to_num(-1).to(torch.int64)
    void = (numbers < 0) | (numbers == _VOID)
    return None if bool(void.all()) else numbers.masked_fill(void, -1)


def have_targets(targets: Tensor) -> Tensor:
    """Return which images have something to learn from, `(N,)` bool.

    Example:
        >>> have_targets(torch.tensor([2, -1])), have_targets(torch.tensor([[0.5, torch.nan]]))
        (tensor([ True, False]), tensor([False]))
    """
    there = ~targets.isnan() if targets.is_floating_point() else targets >= 0
    return there.flatten(1).any(1) if targets.ndim == 3 else there.reshape(len(there), -1).all(1)


def settled_targets(targets: Tensor) -> Tensor:
    """Return the targets of all images, with classes as numbers wherever each image has one.

    That is: rows of zeros and ones with a single one in each, and values that are all zero or one.

    Args:
        targets: `(N,)`, `(N, K)` or `(N, V)`, as `probe_targets` has them.

    Example:
        >>> settled_targets(torch.eye(3, dtype=torch.int8)), settled_targets(torch.tensor([[1.0], [0.0]]))
        (tensor([0, 1, 2]), tensor([1, 0]))
    """
    if targets.ndim == 1:
        return targets
    if targets.dtype == torch.int8:
        return targets.argmax(1) if bool((targets.sum(1) == 1).all()) else targets
    whole = targets.shape[1] == 1 and bool(((targets == 0) | (targets == 1)).all())
    return targets[:, 0].to(torch.int64) if whole else targets


def draw_pixels(maps: Tensor, numbers: Tensor) -> DrawnPixels:
    """Draw pixels of each image, from its classes in turn; the same for an image of the same number.

    A class that has fewer than about 1 in 256 of the pixels may be missed.

    Args:
        maps: `(N, H, W)` int64, below 0 for none.
        numbers: `(N,)` int64 of the images.

    Example:
        >>> drawn = draw_pixels(torch.arange(2).repeat(2, 4, 2), torch.arange(2))
        >>> drawn.places.shape, drawn.classes.sum(1)
        (torch.Size([2, 8, 2]), tensor([4, 4]))
    """
    maps, numbers = maps.cpu(), numbers.cpu()
    count = len(maps)
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    tried = torch.arange(1, _TRIED + 1, dtype=torch.float64)[:, None] * steps
    # Shifted by the image's number, so that pixels at other places are looked at in each.
    places = (tried + (numbers.double() * math.sqrt(2))[:, None, None] * steps.flip(0)).frac()
    size = torch.tensor(maps.shape[1:], dtype=torch.float64)
    rows, columns = (places * size).long().clamp(max=size.long() - 1).unbind(-1)
    classes = maps[torch.arange(count)[:, None], rows, columns]
    turns = _turns(classes).masked_fill(classes < 0, _TRIED)
    chosen = turns.argsort(dim=1, stable=True)[:, :PIXELS]
    return DrawnPixels(places[torch.arange(count)[:, None], chosen], classes.gather(1, chosen))


def pixel_numbers(numbers: Tensor, count: int) -> Tensor:
    """Return a number `(N * count,)` for each of so many pixels of images `(N,)`.

    Example:
        >>> pixel_numbers(torch.tensor([0, 3]), 2)
        tensor([0, 1, 6, 7])
    """
    return (numbers[:, None] * count + torch.arange(count)).flatten()


def _turns(classes: Tensor) -> Tensor:
    """How many of a row's earlier entries `(N, M)` are of the same class."""
    order = classes.argsort(dim=1, stable=True)
    ordered = classes.gather(1, order)
    positions = torch.arange(classes.shape[1]).expand_as(classes)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = torch.where(fresh, positions, 0).cummax(1).values
    return torch.empty_like(positions).scatter(1, order, positions - starts)
