"""A few images of a data set, drawn once, to make experiments on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.data.batches import BatchFn, class_labels, has_indices, indexed_batches, read_batch
from lightning_cnnviz.core.network.calling import GivenBatch
from lightning_cnnviz.core.network.hooks import keep_random_state

__all__ = ["Sample", "draw_sample"]

_Read = Callable[[Any], tuple[Tensor, Tensor | None]]
# To find images of different classes, so many times as many as asked for are opened.
_CANDIDATES = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A few images.

    Attributes:
        images: `(N, C, H, W)`, in the values that the network is given, on the CPU.
        labels: `(N, ...)` as the data has them (see `read_batch`), or None where it has none.
        indices: `(N,)` int64, data-set indices; the order of arrival where the data set does not number them.
        given: The batch that they were drawn in, with what else belongs to them (a `GivenBatch`), or None.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    given: Any = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> Tensor | None:
        """The class of each image, see `class_labels`."""
        return class_labels(self.labels)

    def part(self, chosen: slice | Tensor) -> Sample:
        """Return some of the images."""
        labels = None if self.labels is None else self.labels[chosen]
        given = None if self.given is None else self.given.part(torch.arange(len(self))[chosen])
        return Sample(images=self.images[chosen], labels=labels, indices=self.indices[chosen], given=given)


def draw_sample(
    loader: Iterable[Any],
    count: int,
    batch_fn: BatchFn | None = None,
    *,
    transfer: Callable[[Any], Any] | None = None,
    seed: int = 0,
    axes: Collection[int] = (2,),
) -> Sample:
    """Draw images at random by a seed, of different classes where there are enough.

    The same images come at every call, and random transforms give the same pixels. The loader and all random number
    generators stay as they were. Where a data set has no indices, or the loader batches in a way of its own, the first
    images are taken.

    Args:
        loader: Any loader of batches.
        count: How many images; fewer come where there are no more.
        batch_fn: See `read_batch`.
        transfer: Makes of each batch what `batch_fn` is given.
        seed: Which images.
        axes: How many axes of space images may have, see `read_batch`.

    Raises:
        ValueError: The count is below 1, or the loader gives no image.
        TypeError: See `read_batch`.
    """
    if count < 1:
        raise ValueError(f"{count} images asked for: give 1 or more")
    with keep_random_state(), torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(seed)
        draws = _drawn if has_indices(loader) else _first
        read = partial(read_batch, batch_fn=batch_fn, axes=axes)
        drawn = draws(loader, count, read, transfer or (lambda batch: batch))
    if drawn is None:
        raise ValueError(f"the loader {type(loader).__name__} is empty: it gave no image")
    return drawn


def _drawn(loader: Any, count: int, read: _Read, transfer: Callable[[Any], Any]) -> Sample | None:
    dataset = loader.dataset
    candidates = torch.randperm(len(dataset))[: _CANDIDATES * count]
    if not len(candidates):
        return None
    try:
        batch = transfer(loader.collate_fn([dataset[int(index)] for index in candidates]))
    except RuntimeError:  # they are of different sizes, and only the loader's own batches go together
        return _first(loader, count, read, transfer)
    images, labels = read(batch)
    if len(images) != len(candidates):
        # Its collate function leaves images out, or makes more of them.
        return _first(loader, count, read, transfer)
    everything = _sample(batch, images, labels, candidates)
    return everything.part(_of_different_classes(everything, count))


def _of_different_classes(sample: Sample, count: int) -> Tensor:
    """Places of images, one of each class first, then a second of each, and so on, in the order of drawing.

    Images without a class come last. Of rows of labels, equal rows are a class, and those of several labels come first:
    a few images with one label each would look like data of one class an image.
    """
    kinds = _kinds(sample)
    if kinds is None:
        return torch.arange(min(count, len(sample)))
    labels = sample.labels
    single = [True] * len(kinds) if labels is None or labels.ndim != 2 else (labels.sum(1) < 2).tolist()
    seen: dict[int, int] = {}
    turns = []
    for place, kind in enumerate(kinds.tolist()):
        seen[kind] = seen.get(kind, 0) + 1
        turns.append((kind < 0, seen[kind], single[place], place))
    return torch.tensor([place for *_, place in sorted(turns)[:count]])


def _kinds(sample: Sample) -> Tensor | None:
    """What images differ in, `(N,)` int64, below 0 for nothing; None where nobody knows."""
    labels = sample.labels
    if labels is None or sample.classes is not None:
        return sample.classes
    rows = labels.flatten(1) if labels.ndim == 2 and labels.shape[1] > 1 else None
    if rows is None or not bool(((rows == 0) | (rows == 1)).all()):
        return None
    kinds: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return kinds


def _sample(batch: Any, images: Tensor, labels: Tensor | None, indices: Tensor) -> Sample:
    given = None
    with suppress(ValueError):
        given = GivenBatch.of(batch, images).part(torch.arange(len(images)), torch.device("cpu"))
    return Sample(
        images=images.detach().cpu(),
        labels=None if labels is None else labels.detach().cpu(),
        indices=indices,
        given=given,
    )


def _first(loader: Any, count: int, read: _Read, transfer: Callable[[Any], Any]) -> Sample | None:
    parts: list[Sample] = []
    arrived = 0
    with closing(indexed_batches(loader)) as batches:
        for raw, indices in batches:
            batch = transfer(raw)
            images, labels = read(batch)
            if indices is None or len(indices) != len(images):
                indices = torch.arange(arrived, arrived + len(images))
            arrived += len(images)
            arrivals = _sample(batch, images, labels, indices)
            if len(arrivals) and (not parts or arrivals.images.shape[1:] == parts[0].images.shape[1:]):
                parts.append(arrivals.part(slice(count)))
            if sum(len(part) for part in parts) >= count:
                break
    if not parts:
        return None
    labelled = [part.labels for part in parts if part.labels is not None]
    whole = Sample(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat(labelled) if len(labelled) == len(parts) else None,
        indices=torch.cat([part.indices for part in parts]),
        given=None if None in [part.given for part in parts] else GivenBatch.joined([part.given for part in parts]),
    )
    return whole.part(slice(count))
