"""Signals on their way back to the pixels, and how they are moved about.

A signal lives in a window: the part of a feature map that a unit can depend on. All units of a layer have windows of
one size, at places of their own, and go back together. Where a window no longer makes sense, it is the whole map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Seed", "Signal", "Window", "add", "channels_last", "gathered_at", "placed", "whole"]


class Window(NamedTuple):
    """Where the signals of a layer's units lie: that of a unit in row r begins at row `jump * r + offset`.

    One number for each of the last axes: of images for rows and columns.
    """

    jump: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Signal:
    """What has come back to one value of the network, for U units.

    Attributes:
        values: `(U, ..., h, w)` inside a window, else `(U, ...)` in the value's own shape without its batch.
        window: Where it lies; None for the whole value.
    """

    values: Tensor
    window: Window | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Seed:
    """Units of one layer, all strength one.

    Attributes:
        slots: `(U,)` int64, whose image of the recorded batch each belongs to.
        channels: `(U,)` int64.
        rows: `(U,)` int64.
        columns: `(U,)` int64; of signals the positions.
        depths: `(U,)` int64, of volumes.
    """

    slots: Tensor
    channels: Tensor
    rows: Tensor
    columns: Tensor
    depths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, chosen: slice) -> Seed:
        """Some of the units."""
        return Seed(
            slots=self.slots[chosen],
            channels=self.channels[chosen],
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            depths=None if self.depths is None else self.depths[chosen],
        )

    def starts(self, window: Window) -> tuple[Tensor, ...]:
        """First row and column of each unit's window, `(U,)` each; or along whatever axes it has."""
        depths = torch.zeros_like(self.rows) if self.depths is None else self.depths
        places = (depths, self.rows, self.columns)[-len(window.jump) :]
        steps = zip(places, window.jump, window.offset, strict=True)
        return tuple(place * jump + offset for place, jump, offset in steps)


def channels_last(values: Tensor) -> Tensor:
    """The same `(N, C, H, W)`, the channels of a place side by side in memory: on a CPU, convolutions like it best."""
    if values.device.type != "cpu" or values.ndim != 4:
        return values
    return values.contiguous(memory_format=torch.channels_last)


def whole(signal: Signal, shape: Sequence[int], seed: Seed) -> Tensor:
    """A signal in the value's own shape `(U, ...)`."""
    if signal.window is None:
        return signal.values
    values, axes = signal.values, len(signal.window.jump)
    size = tuple(shape[-axes:])
    if values.ndim == 4 and axes == 2:
        maps = values.new_zeros(len(values), *size, values.shape[1]).permute(0, 3, 1, 2)
    else:
        maps = values.new_zeros(*values.shape[:-axes], *size)
    starts = torch.stack(seed.starts(signal.window), 1).tolist()
    for unit, first in enumerate(starts):
        places = [_overlap(*each) for each in zip(first, values.shape[-axes:], size, strict=True)]
        own = [slice(place.start - begin, place.stop - begin) for place, begin in zip(places, first, strict=True)]
        to: tuple[Any, ...] = (unit, ..., *places)
        of: tuple[Any, ...] = (unit, ..., *own)
        maps[to] = values[of]
    return maps


def _overlap(start: int, length: int, size: int) -> slice:
    """The part of `start, start + 1, ...` that lies in a map of `size`."""
    first = min(max(start, 0), size)
    return slice(first, max(first, min(start + length, size)))


def placed(values: Tensor, window: Window, shape: Sequence[int], seed: Seed, *, clear: bool = True) -> Signal:
    """A signal whose window may reach beyond the map: nothing lies there.

    Args:
        values: `(U, ..., h, w)`, this signal's own: they may be written to.
        window: Where it lies.
        shape: The map's.
        seed: The units.
        clear: Whether zeros are written there; else nobody reads what is there.
    """
    axes = len(window.jump)
    lengths, sizes = values.shape[-axes:], shape[-axes:]
    signal = Signal(values, window)
    if all(length >= size for length, size in zip(lengths, sizes, strict=True)):
        return Signal(whole(signal, shape, seed), None)
    if not clear:
        return signal
    for axis, (start, length, size) in enumerate(zip(seed.starts(window), lengths, sizes, strict=True)):
        if int(start.min()) >= 0 and int(start.max()) + length <= size:
            continue
        places = start[:, None] + torch.arange(length)
        inside = ((places >= 0) & (places < size)).to(values.dtype).to(values.device)
        along = [length if own == axis else 1 for own in range(axes)]
        values *= inside.view(len(seed), *[1] * (values.ndim - 1 - axes), *along)
    return signal


def add(first: Signal, second: Signal, shape: Sequence[int], seed: Seed) -> Signal:
    """The sum of two signals of one value."""
    if first.window is None or second.window is None or first.window.jump != second.window.jump:
        return Signal(whole(first, shape, seed) + whole(second, shape, seed), None)
    if first.window == second.window and first.values.shape == second.values.shape:
        return Signal(first.values + second.values, first.window)
    axes = len(first.window.jump)
    offsets = (first.window.offset, second.window.offset)
    sizes = (first.values.shape[-axes:], second.values.shape[-axes:])
    begin = tuple(min(offset[axis] for offset in offsets) for axis in range(axes))
    end = [max(offset[axis] + size[axis] for offset, size in zip(offsets, sizes, strict=True)) for axis in range(axes)]
    padded = []
    for signal, offset, size in zip((first, second), offsets, sizes, strict=True):
        pad = [(offset[axis] - begin[axis], end[axis] - offset[axis] - size[axis]) for axis in range(axes)]
        padded.append(F.pad(signal.values, [number for pair in reversed(pad) for number in pair]))
    return placed(padded[0] + padded[1], Window(first.window.jump, begin), shape, seed)


def gathered_at(data: Tensor, signal: Signal, seed: Seed) -> Tensor:
    """What was saved of a pass, `(N, ...)`, at the places of a signal `(U, ...)`; anything outside of the map."""
    slots = seed.slots.to(data.device)
    if signal.window is None:
        return data[slots]
    axes = len(signal.window.jump)
    lengths, sizes = signal.values.shape[-axes:], data.shape[-axes:]
    # One flat index a place, the same for all channels.
    places = torch.zeros(len(seed), *[1] * axes, dtype=torch.int64, device=data.device)
    for axis, (start, length, size) in enumerate(zip(seed.starts(signal.window), lengths, sizes, strict=True)):
        along = (start[:, None] + torch.arange(length)).clamp_(0, size - 1).to(data.device)
        places = places * size + along.view(len(seed), *[length if own == axis else 1 for own in range(axes)])
    places = places.flatten(1)
    if axes == 2 and data.ndim == 4 and data.is_contiguous(memory_format=torch.channels_last):
        by_place = data.permute(0, 2, 3, 1).flatten(1, 2)
        pieces = [by_place[slot].index_select(0, place) for slot, place in zip(slots.tolist(), places, strict=True)]
        return torch.stack(pieces).view(len(seed), *lengths, -1).permute(0, 3, 1, 2)
    lead = data.shape[1:-axes]
    flat = data.flatten(-axes).reshape(len(data), -1, sizes.numel())
    pieces = [flat[slot].index_select(1, place) for slot, place in zip(slots.tolist(), places, strict=True)]
    return torch.stack(pieces).view(len(seed), *lead, *lengths)
