"""Receptive fields that no border cuts off: measured where the image is so large that units see none.

A field grows beyond the image in every deep network, and the boxes of `receptive_field` end at its border. So the
network runs again, without values, on an image that is much longer along one axis; units in the middle of it have their
full field, through whatever branches. The boxes are those of `receptive_field`, by the same rules. Where they are still
cut off, the image is made twice as long, unless something that sees all of any image has run: a mean over the map,
attention. That is known by its step: from boxes that are much shorter to ones that are longer by more than the whole
image that was given. What then covers all of the long image is "the whole image".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import takes_hooks
from lightning_cnnviz.core.tracing.operations import Along, Lines, Operation, OperationLog, log_operations

__all__ = ["Field", "UnclippedFields"]

# Larger images than this are not tried: on them boxes take gigabytes.
_LARGEST_STRIP = 12_000
# Multiply-adds that a larger image may take where a network cannot run without values.
_AFFORDABLE = 2e11


@dataclass(frozen=True, kw_only=True)
class Field:
    """The receptive field of an operation's units: see `LayerRow`, which says what each part means."""

    size: tuple[int | None, ...] | None
    jump: tuple[float, ...] | None
    center: tuple[float, ...] | None
    clipped: bool


@dataclass(frozen=True)
class _Axis:
    """The field along one axis; a size of None is the whole image."""

    size: int | None
    jump: Fraction | None = None
    center: Fraction | None = None
    clipped: bool = False


class UnclippedFields:
    """Receptive fields of all operations of a pass, measured on images so large that no border cuts them off.

    An image is `(1, C, H, W)` and has two axes, a signal `(1, C, L)` one, that of an image's columns, a volume
    `(1, C, D, H, W)` three.
    """

    def __init__(self, model: nn.Module, image: Tensor, log: OperationLog, values: bool) -> None:
        self._operations, self._dims = log.operations, image.ndim
        self._map_dims = {4, image.ndim} if image.ndim < 5 else {5}
        self._axes = max(image.ndim - 2, 2)
        own = range(self._axes) if image.ndim > 3 else (1,)
        self._size = {axis: image.shape[axis - self._axes] for axis in own}
        self._strips = dict[int, _Strip]()
        # Attention within a long volume takes minutes to follow: a network of clips with tokens is measured as it is.
        attends = image.ndim == 5 and any(operation.kind == "matmul" for operation in log.operations)
        for axis, size in self._size.items():
            if attends:
                self._strips[axis] = _Strip([], axis, size)
                continue
            alike = axis == 1 and image.ndim == 4 and log.axes_alike and size == self._size.get(0)
            self._strips[axis] = self._strips[0] if alike else _strip(model, image, log.operations, values, axis)

    def of(self, position: int) -> Field:
        """Return the field of an operation by its position."""
        operation = self._operations[position]
        if operation.lines is None:
            return Field(size=None, jump=None, center=None, clipped=False)
        along = {axis: self._along(position, axis) for axis in self._strips}
        tracked = operation.jump or (None,) * self._axes
        jump = _all([field.jump or tracked[axis] for axis, field in along.items()])
        shape, size = operation.output_shape, tuple(field.size for field in along.values())
        if len(shape) not in self._map_dims or (set(shape[2:]) == {1} and size[0] is None):
            jump = None  # there is no next unit
        center, clipped = _all([field.center for field in along.values()]), any(f.clipped for f in along.values())
        return Field(size=size, jump=jump, center=center, clipped=clipped)

    def _along(self, position: int, axis: int) -> _Axis:
        here, strip = self._operations[position], self._strips[axis]
        # Pooling to the size that is there already changes nothing, and on larger images is something else.
        if here.kind == "pool" and here.window is None and here.after is not None:
            before = self._operations[here.after]
            if here.output_shape == here.input_shape == before.output_shape:
                return self._along(here.after, axis)
        # What reads a flattened map reads all of it; a network that does so takes no other size to measure it on. A
        # line for each token, as attention projects them, is none.
        if (
            here.kind == "linear"
            and len(here.output_shape) == 2
            and len(here.input_shape) == 2
            and here.input_shape[0] == 1
            and here.after is not None
        ):
            before = self._operations[here.after]
            if math.prod(before.output_shape) == math.prod(here.input_shape):
                return _Axis(None) if len(before.output_shape) in self._map_dims else self._along(here.after, axis)
        there = strip.operations[position] if position < len(strip.operations) else None
        if there is not None and _alike(here, there) and there.lines is not None:
            measured = _measured(there, strip)
            if measured is not None:
                return self._on_image(here, axis, measured)
        assert here.lines is not None  # see `of`
        return _measured_here(here.lines[axis], self._size[axis])

    def _on_image(self, here: Operation, axis: int, measured: _Axis) -> _Axis:
        """A field as measured on the long image; of one that grows with the image, as on the image itself.

        Where halves of a map become channels, units of the image see less, and yet no border cuts them.
        """
        length = self._size[axis]
        if here.lines is None or measured.size is None or measured.size <= 1.5 * length:
            return measured
        own = _measured_here(here.lines[axis], length)
        return own if not own.clipped and own.size is not None and own.size < length else measured


def _all(numbers: list[Fraction | None]) -> tuple[float, ...] | None:
    known = tuple(float(number) for number in numbers if number is not None)
    return known if len(known) == len(numbers) else None


@dataclass(frozen=True)
class _Strip:
    """What ran on an image that is much longer along one axis, which alone was followed."""

    operations: list[Operation]
    followed: int
    length: int

    def lines(self, operation: Operation) -> tuple[Tensor, Tensor]:
        """First and last pixel of what each row of a map reaches, or each column."""
        assert operation.lines is not None  # see `UnclippedFields.of`
        first, last = operation.lines[self.followed]
        return first.double(), last.double()

    def middle(self, count: int) -> Tensor:
        """Units in the middle: some 128 pixels to either side, enough for all phases of what was enlarged before."""
        span = max(2, round(128 * count / self.length))
        return torch.arange(max(0, count // 2 - span), min(count, count // 2 + span + 1))


def _strip(model: nn.Module, image: Tensor, operations: list[Operation], values: bool, axis: int) -> _Strip:
    """Run on longer and longer images, until one is long enough or the longest that is tried."""
    place = axis - max(image.ndim - 2, 2)
    size = image.shape[place]
    along, longest = Along(axis=axis, farthest=size), max(size, _LARGEST_STRIP)
    length, step = _first_length(operations, image.ndim, size, axis)
    covered = set[int]()
    while True:
        macs = sum(operation.macs for operation in operations) * length / size
        if values and macs > _AFFORDABLE:
            return _Strip([], axis, length)
        shape = [*image.shape]
        shape[place] = length
        strip = image.new_zeros(shape) if values else torch.empty(shape, dtype=image.dtype, device="meta")
        # A network that refuses this size is followed as far as it comes.
        with _up_to_recurrence(model):
            made = _Strip(log_operations(model, strip, values=values, along=along).operations, axis, length)
        cut = _cut_off(operations, made)
        # What has covered all of two images would cover a third: it is not read along this axis, as in (N, H, W, C).
        if length >= longest or all(covers and position in covered for position, covers in cut.items()):
            return made
        covered = {position for position, covers in cut.items() if covers}
        length = min(size + step * (2 * (length - size) // step), longest)


@contextmanager
def _up_to_recurrence(model: nn.Module) -> Iterator[None]:
    """Let passes end where a GRU, an LSTM or one of their cells begins.

    These see all that came before, on any image, and run a dozen operations a position: on a strip, thousands. What is
    behind them is measured on the image itself.
    """

    def end(module: nn.Module, _inputs: Any) -> None:
        raise RuntimeError(f"a strip is not followed into {type(module).__name__}")

    recurrent = [module for module in model.modules() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))]
    handles = [module.register_forward_pre_hook(end) for module in recurrent if takes_hooks(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut_off(operations: list[Operation], strip: _Strip) -> dict[int, bool]:
    """Operations whose units in the middle a border cuts off, though nothing has run that sees all of any image.

    By position, with whether each of these units covers all of the image.
    """
    found = {}
    for position, (here, there) in enumerate(zip(operations, strip.operations, strict=False)):
        if there.boundless or there.lines is None or not _alike(here, there):
            continue
        first, last = strip.lines(there)
        chosen = strip.middle(len(first))
        begins, ends = first[chosen] <= 0, last[chosen] >= strip.length - 1
        if len(first) > 1 and bool((begins | ends).any()):
            found[position] = bool((begins & ends).all())
    return found


def _alike(here: Operation, there: Operation) -> bool:
    """Whether it is the same operation on a larger image: what stretches with the image is another."""
    same = (here.owner, here.type, here.window, here.parameters, here.scaled)
    return same == (there.owner, there.type, there.window, there.parameters, there.scaled)


def _first_length(operations: list[Operation], dims: int, size: int, axis: int) -> tuple[int, int]:
    """Return a length of image in which a unit in the middle mostly sees no border, and what it may grow by.

    It differs from the true length by a multiple of all strides, so that windows lie on it in the same way.
    """
    reach, odd, ratios, place = 1.0, set[int](), [1.0], axis - max(dims - 2, 2)
    for operation in operations:
        if not len(operation.input_shape) == len(operation.output_shape) == dims:
            continue
        before, after = max(1, operation.input_shape[place]), max(1, operation.output_shape[place])
        ratio = max(1.0, math.ceil(size / before))
        if operation.kind == "resize":  # windows of up to six rows; of what is reduced, so many times longer
            reach += 6 * ratio * max(1.0, before / after)
        if operation.window is None:
            continue
        kernel, stride, _, dilation = (numbers[place] for numbers in operation.window)
        if operation.jump is not None:  # of its output; a small map, rounded up, is larger than its stride says
            ratio = max(ratio, float(operation.jump[axis]) / (stride if operation.kind != "transposed" else 1))
        ratios += [ratio * stride] if before > 1 else []
        # A sum over all windows: paths that run side by side count as if one behind the other.
        reach += dilation * (kernel - 1) * ratio
        while stride % 2 == 0:
            stride //= 2
        odd.add(stride)
    step = 64 * math.prod(odd)
    step = step if step <= 2048 else 64
    wanted = 1.25 * reach + 6 * max(64, min(max(ratios), 512))
    return min(size + step * math.ceil(wanted / step), max(size, _LARGEST_STRIP)), step


def _measured(operation: Operation, strip: _Strip) -> _Axis | None:
    """The field of units in the middle of a large image; None if that does not tell."""
    first, last = strip.lines(operation)
    chosen = strip.middle(len(first))
    # Not all of it may be seen: the last rows are dropped where windows do not fit.
    if operation.boundless and bool((last[chosen] - first[chosen] > 0.9 * strip.length).all()):
        return _Axis(None)
    cut = (first[chosen] <= 0) | (last[chosen] >= strip.length - 1)
    return None if bool(cut.any()) else _periodic(first, last, chosen)


def _periodic(first: Tensor, last: Tensor, chosen: Tensor) -> _Axis | None:
    """Size, jump and first center of units whose boxes come again, shifted, after one or a few units."""
    a, b = first[chosen], last[chosen]
    for period in range(1, len(chosen) // 2 + 1):
        shift = float(a[period] - a[0])
        if shift > 0 and bool((a[period:] - a[:-period] == shift).all() and (b[period:] - b[:-period] == shift).all()):
            jump = Fraction(int(shift), period)
            unit = -(-int(chosen[0]) // period) * period
            center = Fraction(int(first[unit] + last[unit]), 2) - jump * unit
            return _Axis(int((b - a).max()) + 1, jump, center)
    return None


def _measured_here(lines: Lines, length: int) -> _Axis:
    """The field on the image itself: exact where there are units that no border cuts, else as far as it goes."""
    first, last = lines[0].double(), lines[1].double()
    inside = ((first > 0) & (last < length - 1)).nonzero().flatten()
    if len(inside) > 1 and len(inside) == int(inside[-1] - inside[0]) + 1:
        measured = _periodic(first, last, inside)
        if measured is not None:
            return measured
    finite = torch.isfinite(first)
    size = int((last - first)[finite].max()) + 1
    return _Axis(None if size >= length else size, clipped=True)
