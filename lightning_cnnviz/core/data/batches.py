"""What is in a batch, and which image of the data set each of its images is."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from lightning_cnnviz.core.network.task import IGNORED

__all__ = [
    "BatchFn",
    "IndexReader",
    "NumberedBatch",
    "class_labels",
    "has_indices",
    "indexed_batches",
    "numbered_batches",
    "read_batch",
]

BatchFn = Callable[[Any], Any]
"""Takes a batch as the loader gives it and returns the images, or `(images, labels)`."""

_IMAGE_NAMES = ("image", "images", "pixel_values", "x", "input", "inputs", "img", "imgs", "data")
_OF_LISTS = (
    ". Networks of lists of images, as those of detection are, can be looked at by their backbone, in passes of a "
    'monitor\'s own: data=<a loader>, model="<the backbone>", batch_fn=lambda batch: torch.stack(batch[0])'
)
_OF_AXES = {1: ("signals", "(N, C, L)"), 2: ("images", "(N, C, H, W)"), 3: ("clips and volumes", "(N, C, D, H, W)")}
_LABEL_NAMES = ("label", "labels", "y", "target", "targets")


def read_batch(
    batch: Any, batch_fn: BatchFn | None = None, *, axes: Collection[int] = (2,)
) -> tuple[Tensor, Tensor | None]:
    """Return the images `(N, C, H, W)` of a batch and their labels `(N, ...)` as they are, None where there are none.

    A batch is a tensor, `(x, y)`, or a mapping with usual names (`image`, `pixel_values`, ..., `label`, ...). Labels
    are whatever tensor has an entry for each image: numbers of classes, rows of zeros and ones, values, label maps (see
    `class_labels`); all else, such as boxes, counts as none.

    Args:
        batch: What the loader gives.
        batch_fn: Makes a batch of usual form of it.
        axes: How many axes of space images may have, see `image_axes`: 1 of signals `(N, C, L)`, 2 of images, 3 of
            clips and volumes `(N, C, D, H, W)`, for views that take them.

    Raises:
        TypeError: The batch is of another form, or its images are no float or uint8 tensor of so many axes.
    """
    given = batch if batch_fn is None else batch_fn(batch)
    labels: Any = None
    if isinstance(given, Mapping):
        images = next((given[name] for name in _IMAGE_NAMES if name in given), None)
        labels = next((given[name] for name in _LABEL_NAMES if name in given), None)
    elif isinstance(given, (list, tuple)) and given:
        images, labels = given[0], given[1] if len(given) > 1 else None
    else:
        images = given
    if not isinstance(images, Tensor):
        raise TypeError(
            f"no images found in a batch of form {_form(given)}: it takes a tensor, (images, labels), or a mapping "
            f"with one of {', '.join(_IMAGE_NAMES[:4])}, ...; give batch_fn=... that returns (images, labels)"
            + (_OF_LISTS if isinstance(images, (list, tuple)) and images and isinstance(images[0], Tensor) else "")
        )
    if images.ndim == 5 and 3 not in axes:
        raise TypeError(
            f"the batch's input has five dimensions, {tuple(images.shape)}, as clips (N, C, T, H, W) and volumes have, "
            "and views are of images (N, C, H, W): what a network makes of a clip as a whole is not shown. A network "
            "of single frames can be: give batch_fn=lambda batch: (batch[0][:, :, 0], batch[1]), or each frame as an "
            "image"
        )
    if images.ndim - 2 not in axes or not (images.is_floating_point() or images.dtype == torch.uint8):
        kinds, forms = (
            " or ".join(words) for words in zip(*(_OF_AXES[number] for number in sorted(axes)), strict=True)
        )
        raise TypeError(
            f"the batch's input is {images.dtype} of shape {tuple(images.shape)}; {kinds} are float or uint8 tensors "
            f"{forms}; give batch_fn=... that returns (images, labels)"
        )
    there = isinstance(labels, Tensor) and labels.shape[:1] == (len(images),) and not labels.is_complex()
    return images, labels if there else None


def class_labels(labels: Tensor | None) -> Tensor | None:
    """Return labels `(N, ...)` as the class of each image, `(N,)` int64, -1 where an image has none.

    None where labels are no whole number for each image, or stand for no class in all of them (see `IGNORED`).

    Example:
        >>> class_labels(torch.tensor([[3], [-100]])), class_labels(torch.rand(2))
        (tensor([ 3, -1]), None)
    """
    if labels is None or labels.is_floating_point() or labels.dtype == torch.bool or labels.numel() != len(labels):
        return None
    numbers = labels.reshape(len(labels)).to(torch.int64)
    ignored = torch.isin(numbers, numbers.new_tensor(IGNORED))
    return None if len(numbers) and bool(ignored.all()) else numbers.masked_fill(ignored, -1)


def _form(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in list(batch.items())[:6]) + "}"
    if isinstance(batch, (list, tuple)):
        return type(batch).__name__ + "(" + ", ".join(type(value).__name__ for value in batch[:6]) + ")"
    return type(batch).__name__


class IndexReader:
    """Tells the data-set index of each image that a loader gives, without touching the loader.

    The order of sequential and distributed samplers (shuffled or not, padded or not) can be foretold. In any other
    order images are numbered as they arrive, and `indices_known` is False.

    Attributes:
        indices_known: Whether the numbers are indices of the data set.
    """

    def __init__(self, loader: Any, rank: int = 0, world_size: int = 1) -> None:
        self._rank, self._world_size = rank, world_size
        self._arrived = 0
        order = _known_order(loader)
        self.indices_known = order is not None
        self._order = iter(order) if order is not None else None
        self._batch_size = _batch_size(loader)
        # Where the order is lost on the way, numbers from here on are no index of the data set.
        self._beyond = 0
        if self.indices_known and isinstance(loader, DataLoader):
            self._beyond = len(loader.dataset)  # type: ignore[arg-type]

    def take(self, count: int) -> Tensor:
        """Return the indices `(count,)` int64 of the next `count` images."""
        numbers = self._next(count)
        if numbers is None:
            # From here on, images are numbered as they arrive.
            self.indices_known, self._order = False, None
            places = range(self._arrived, self._arrived + count)
            numbers = [self._beyond + place * self._world_size + self._rank for place in places]
        self._arrived += count
        return torch.tensor(numbers, dtype=torch.int64)

    def _next(self, count: int) -> list[int] | None:
        """The sampler's next numbers; None where they and the images do not match one by one."""
        if self._order is None:
            return None
        numbers = list(islice(self._order, count))
        if len(numbers) < count:
            return None  # the loader gave more than its sampler has
        if self._batch_size is not None and count != self._batch_size:
            # Only the last batch is smaller, unless the loader's collate function leaves images out.
            last = count < self._batch_size and next(self._order, None) is None
            return numbers if last else None
        return numbers


def _batch_size(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader):
        return None
    size: int = getattr(loader.batch_sampler, "batch_size", 1)  # without batches, an image for each number
    return size


def _known_order(loader: Any) -> Iterable[int] | None:
    if isinstance(loader, (list, tuple)):
        return _count()
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    # torch's batch sampler keeps the sampler's order; one of the user's own may do anything.
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    if not getattr(loader, "in_order", True):
        return None
    if type(sampler) is SequentialSampler:
        return range(len(sampler))
    if isinstance(sampler, DistributedSampler):
        inner = getattr(sampler.dataset, "_sampler", None)
        if inner is not None and type(inner) is not SequentialSampler:
            return None  # Lightning's wrapper around a sampler that only it can ask
        if type(sampler).__iter__ is not DistributedSampler.__iter__ and not _is_lightnings_unshuffled(sampler):
            return None  # an order of its own
        # Its order comes from a generator of its own, seeded by seed and epoch: asking twice gives the same.
        return DistributedSampler.__iter__(sampler)
    return None


def _is_lightnings_unshuffled(sampler: DistributedSampler[Any]) -> bool:
    return type(sampler).__module__.startswith(("lightning.", "pytorch_lightning.")) and not sampler.shuffle


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


class _Recorder:
    """A sampler, or batch sampler, that remembers what it gave until it is asked."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.given: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        for item in self._sampler:
            self.given.append(item)
            yield item

    def __len__(self) -> int:
        return len(self._sampler)


def indexed_batches(loader: Iterable[Any]) -> Generator[tuple[Any, Tensor | None], None, None]:
    """Iterate a loader in any order, with the data-set indices of each batch; None where it has no map-style data set.

    The loader itself is left as it is, with the state of its generators: once this is exhausted or closed
    (`contextlib.closing`), since an error elsewhere leaves it suspended.
    """
    recording = _recording(loader)
    if recording is None:
        yield from ((batch, None) for batch in loader)
        return
    clone, recorder = recording
    states = [(generator, generator.get_state()) for generator in _generators(loader)]
    try:
        for batch in clone:
            yield batch, _numbers(recorder.given.popleft())
    finally:
        for generator, state in states:
            generator.set_state(state)


class NumberedBatch(NamedTuple):
    """The images of a batch, and which ones they are.

    Attributes:
        images: `(N, C, H, W)`, at least one.
        labels: `(N,)` int64, the images' classes, or None where there are none; see `class_labels`.
        indices: `(N,)` int64.
        indices_known: Whether the indices are those of the data set; else they only tell images apart.
        given: The batch as the loader gave it.
        given_labels: `(N, ...)`, the labels as they are in it.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    indices_known: bool
    given: Any
    given_labels: Tensor | None = None


def numbered_batches(
    loader: Iterable[Any],
    batch_fn: BatchFn | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    *,
    axes: Collection[int] = (2,),
) -> Iterator[NumberedBatch]:
    """Iterate over the images of a loader in any order, each with a number of its own.

    Args:
        loader: A DataLoader, or any iterable of batches; see `indexed_batches`.
        batch_fn: See `read_batch`.
        progress: Wraps the iterable of batches to show progress.
        axes: See `read_batch`.

    Raises:
        TypeError: A batch holds no images, or the loader has no batches.
        ValueError: The loader gives no image.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"a {type(loader).__name__} has no batches: give a DataLoader, or any iterable of batches")
    arrived = 0
    with closing(indexed_batches(loader)) as batches:
        for batch, numbers in progress(batches) if progress is not None else batches:
            images, labels = read_batch(batch, batch_fn, axes=axes)
            if len(images) == 0:
                continue
            indices, known = numbers, True
            if indices is None or len(indices) != len(images):
                # A collate function leaves images out, or makes more of them: numbers beyond those of the data set.
                first = arrived if indices is None else arrived + len(loader.dataset)  # type: ignore[attr-defined]
                indices, known = torch.arange(first, first + len(images)), isinstance(loader, (list, tuple))
            arrived += len(images)
            yield NumberedBatch(images, class_labels(labels), indices, known, batch, labels)
    if arrived == 0:
        raise ValueError(f"the loader {type(loader).__name__} is empty: it gave no image")


def _numbers(given: Any) -> Tensor | None:
    """What a sampler gave for a batch; None where that is no number, as the names of files are not."""
    many = isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) > 0
    try:
        return torch.tensor([index(number) for number in (given if many else [given])], dtype=torch.int64)
    except TypeError:
        return None


def has_indices(loader: Any) -> bool:
    """Tell whether a loader makes its batches from a data set whose images can be asked for by index."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and hasattr(loader.dataset, "__len__")
    )


def _recording(loader: Any) -> tuple[DataLoader[Any], _Recorder] | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    # A loader of another kind may read ahead, or go on where it stopped.
    if not getattr(loader, "in_order", True) or type(loader).__iter__ is not DataLoader.__iter__:
        return None
    clone = copy.copy(loader)
    place = "sampler" if loader.batch_sampler is None else "batch_sampler"
    recorder = _Recorder(getattr(loader, place))
    # DataLoader forbids assigning these, since its own iterators may be alive; the clone has none yet.
    clone.__dict__[place] = recorder
    clone.__dict__["_iterator"] = None
    return clone, recorder


def _generators(loader: Any) -> list[torch.Generator]:
    holders = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    generators = {id(held): held for holder in holders if (held := getattr(holder, "generator", None)) is not None}
    return list(generators.values())
