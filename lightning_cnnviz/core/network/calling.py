"""A network as it is used: called in a way of its user's, with whatever else is in its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import analysis_mode

__all__ = [
    "CalledNetwork",
    "ForwardFn",
    "GivenBatch",
    "called",
    "floating_numbers",
    "give",
    "images_given",
    "needs_rows",
    "rows_of",
]

ForwardFn = Callable[[nn.Module, Any], Any]
"""Runs a network on a batch: `lambda network, batch: network(batch["image"], batch["meta"])`."""


_TRIED = 4  # images whose other inputs are exchanged


@dataclass(frozen=True, eq=False, kw_only=True)
class GivenBatch:
    """A batch as a loader gives it, in which other images can be put in the place of its own.

    Attributes:
        batch: The batch.
        path: The keys, numbers or names that lead to its images.
        count: How many images there are.
    """

    batch: Any
    path: tuple[Any, ...]
    count: int

    @classmethod
    def of(cls, batch: Any, images: Tensor) -> GivenBatch:
        """Return a batch of which these are the images.

        Raises:
            ValueError: They are none of its own tensors.
        """
        path = _path(batch, images)
        if path is None:
            raise ValueError(
                "forward_fn=... runs the network on a batch in which changed images stand in the place of its own, and "
                f"what batch_fn returns is no tensor of the {type(batch).__name__} itself: let it return one"
            )
        return cls(batch=batch, path=path, count=len(images))

    def part(self, rows: Tensor, device: torch.device | None = None) -> GivenBatch:
        """Return some rows of everything that has a row for each image; on a device, where one is given."""
        return GivenBatch(batch=_rows(self.batch, self.count, rows, device), path=self.path, count=len(rows))

    def with_images(self, images: Tensor, rows: Tensor) -> Any:
        """Return a batch of other images, in which all else is that of some rows, on the images' device."""
        return _replaced(_rows(self.batch, self.count, rows, images.device), self.path, images)

    def labels_of(self, name: str) -> Tensor | None:
        """Return what stands under a name and has an entry for each image; None where there is nothing."""
        return next((found for found in _named(self.batch, name) if found.shape[:1] == (self.count,)), None)

    @classmethod
    def joined(cls, parts: Sequence[GivenBatch]) -> GivenBatch:
        """Return several batches of one form as one."""
        counts = [part.count for part in parts]
        batch = _joined([part.batch for part in parts], counts)
        return cls(batch=batch, path=parts[0].path, count=sum(counts))


class CalledNetwork(nn.Module):
    """A network that is run by a function of its user's; its layers, weights and names are the network's own.

    Made by `called`. It is given batches by `give`; which of a batch's images are run is said by `rows_of`. Without it,
    as many images as the batch has are its own in their order, and others take what belongs to the first.

    Attributes:
        network: The network.
    """

    network: nn.Module
    _forward_fn: ForwardFn
    _given: GivenBatch | None
    _rows: Tensor | None

    def __init__(self, network: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        # The very same dictionaries: layers that are replaced in one are replaced in the other.
        own = {name: network.__dict__[name] for name in ("_modules", "_parameters", "_buffers")}
        self.__dict__.update(own, network=network, _forward_fn=forward_fn, _given=None, _rows=None)

    def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the network and its layers; this module is none of them."""
        yield from self.network.named_modules(*args, **options)

    def forward(self, images: Tensor) -> Any:
        """Run the network on images in the place of a batch's own."""
        given, rows = self._given, self._rows
        if given is None:
            raise ValueError(
                "forward_fn=... runs the network on batches, and there is none: give a monitor data=<a loader>, not "
                "images, and elsewhere called(network, forward_fn, batch, images)"
            )
        count = len(images)
        if rows is None:
            rows = torch.arange(count) if count == given.count else torch.zeros(count, dtype=torch.int64)
        # Several copies of the same images, one after the other.
        rows = rows.repeat(count // len(rows)) if len(rows) and count % len(rows) == 0 else rows[:1].expand(count)
        return self._forward_fn(self.network, given.with_images(images, rows))


def called(network: nn.Module, forward_fn: ForwardFn, batch: Any = None, images: Tensor | None = None) -> CalledNetwork:
    """Return a network as a function of its user's runs it, under its own name, to be looked at in the network's place.

    Functions that read a loader (`mine_top_patches`, `tap_features`, `channel_correlation`) run it on the loader's own
    batches. Others (`occlude`, `attribute`, `measure_invariance`, `project`, ...) run it on one batch, in which the
    images that they change stand in the place of its own; image n keeps what belongs to image n of the batch. What is
    made up from nothing, as by `maximize`, and what is traced once, as by `layer_table`, has what belongs to the first.

    Args:
        network: The network.
        forward_fn: Runs it on a batch, and returns what it returns.
        batch: A batch to run it on, as a loader gives it.
        images: Its images, the very tensor `(N, C, H, W)` that is in the batch.

    Raises:
        ValueError: The images are none of the batch's own tensors, or one of the two is missing.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> images = torch.ones(2, 1, 3, 3)
        >>> batch = {"image": images, "weight": torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1)}
        >>> network = called(layers, lambda network, batch: network(batch["image"]) * batch["weight"], batch, images)
        >>> network(images)[0].abs().max(), [name for name, _ in network.named_modules()]
        (tensor(0., grad_fn=<MaxBackward1>), ['', '0', '1'])
    """
    kind: Any = type(type(network).__name__, (CalledNetwork,), {})
    made: CalledNetwork = kind(network, forward_fn)
    if (batch is None) != (images is None):
        raise ValueError("called(network, forward_fn, batch, images): a batch comes with its images, and they with it")
    give(made, batch, images)
    return made


def give(network: nn.Module, batch: Any, images: Tensor | None = None) -> None:
    """Let a network run on a batch, of which these are the images; others than `CalledNetwork` need none.

    Args:
        network: The network.
        batch: As the loader gives it; or a `GivenBatch`.
        images: What `read_batch` has found in it.

    Raises:
        ValueError: See `GivenBatch.of`.
    """
    if isinstance(network, CalledNetwork):
        if batch is not None and not isinstance(batch, GivenBatch):
            assert images is not None, "a batch comes with its images"
            batch = GivenBatch.of(batch, images)
        network.__dict__["_given"] = batch


def images_given(network: nn.Module) -> int | None:
    """Return how many images the batch has that a network runs on; None where it is called with images alone."""
    return network._given.count if isinstance(network, CalledNetwork) and network._given is not None else None


def needs_rows(network: nn.Module, image: Tensor) -> bool:
    """Tell whether a network says something else of an image with what belongs to another one of its batch.

    Args:
        network: The network, in whatever mode it is.
        image: `(1, C, H, W)`.
    """
    if not isinstance(network, CalledNetwork) or network._given is None:
        return False
    said = []
    with analysis_mode(network):
        for row in range(min(network._given.count, _TRIED)):
            with rows_of(network, row):
                said.append(floating_numbers(network(image)))
    return not all(one.shape == said[0].shape and torch.equal(one, said[0]) for one in said)


def floating_numbers(output: Any) -> Tensor:
    """Return all floating numbers in what a network returned, `(numbers,)` float32 on the CPU."""
    if isinstance(output, Tensor):
        floating = output.is_floating_point()
        return output.detach().flatten().float().cpu() if floating else torch.empty(0)
    if not isinstance(output, (list, tuple)):
        output = list((output if isinstance(output, Mapping) else getattr(output, "__dict__", {})).values())
    return torch.cat([torch.empty(0), *(floating_numbers(part) for part in output)])


@contextmanager
def rows_of(network: nn.Module, rows: Tensor | slice | int) -> Iterator[None]:
    """Say which images of its batch a network is run on inside; nothing for others than `CalledNetwork`.

    Of rows, those that were said outside are meant.
    """
    if not isinstance(network, CalledNetwork) or network._given is None:
        yield
        return
    before = network._rows
    there = torch.arange(network._given.count) if before is None else before
    chosen = slice(rows, rows + 1) if isinstance(rows, int) else rows
    network.__dict__["_rows"] = there[chosen if isinstance(chosen, slice) else chosen.cpu()]
    try:
        yield
    finally:
        network.__dict__["_rows"] = before


@dataclass(frozen=True)
class _Name:
    """The name of an attribute, and no key."""

    name: str


def _inside(batch: Any) -> Iterator[tuple[Any, Any]]:
    """What a batch holds, each with what leads to it."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, (list, tuple)):
        yield from enumerate(batch)
    elif not isinstance(batch, (Tensor, str, bytes)) and hasattr(batch, "__dict__"):
        yield from ((_Name(name), value) for name, value in vars(batch).items())


def _path(batch: Any, images: Tensor) -> tuple[Any, ...] | None:
    if batch is images:
        return ()
    for key, value in _inside(batch):
        if isinstance(value, Tensor) and value is not images:
            continue
        found = _path(value, images)
        if found is not None:
            return (key, *found)
    return None


def _named(batch: Any, name: str) -> Iterator[Tensor]:
    for key, value in _inside(batch):
        if isinstance(value, Tensor):
            if name == (key.name if isinstance(key, _Name) else key):
                yield value
        else:
            yield from _named(value, name)


def _rows(batch: Any, count: int, rows: Tensor, device: torch.device | None = None) -> Any:
    if isinstance(batch, Tensor):
        chosen = batch[rows.to(batch.device)] if batch.shape[:1] == (count,) else batch
        return chosen if device is None else chosen.to(device)
    if isinstance(batch, list) and len(batch) == count and not any(isinstance(value, Tensor) for value in batch):
        return [batch[row] for row in rows.tolist()]  # names of files, or the like
    return _made(batch, {key: _rows(value, count, rows, device) for key, value in _inside(batch)})


def _replaced(batch: Any, path: tuple[Any, ...], images: Tensor) -> Any:
    if not path:
        return images
    values = dict(_inside(batch))
    return _made(batch, values | {path[0]: _replaced(values[path[0]], path[1:], images)})


def _joined(batches: Sequence[Any], counts: Sequence[int]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        rows = all(batch.shape[:1] == (count,) for batch, count in zip(batches, counts, strict=True))
        return torch.cat(list(batches)) if rows else first
    if isinstance(first, list) and len(first) == counts[0] and not any(isinstance(value, Tensor) for value in first):
        return [value for batch in batches for value in batch]
    parts = [dict(_inside(batch)) for batch in batches]
    return _made(first, {key: _joined([part[key] for part in parts], counts) for key in parts[0]})


def _made(batch: Any, values: Mapping[Any, Any]) -> Any:
    """A batch of the same form, of other values."""
    if not values:
        return batch
    if isinstance(batch, (list, tuple)):
        held = list(values.values())
        return type(batch)(*held) if hasattr(batch, "_fields") else type(batch)(held)
    made = copy.copy(batch)
    for key, value in values.items():
        if isinstance(key, _Name):
            object.__setattr__(made, key.name, value)  # also of a frozen dataclass
        else:
            made[key] = value
    return made
