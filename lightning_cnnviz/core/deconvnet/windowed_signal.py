"""Signals on their way back to the pixels, and how they are moved about.

A signal lives in a window: the part of a feature map that a unit can depend on. All units of a layer have windows of
one size, at places of their own, and go back together. Where a window no longer makes sense, it is the whole map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Seed", "Signal", "Window", "add", "channels_last", "gathered_at", "placed", "whole"]


class Window(NamedTuple):
    """Where the signals of a layer's units lie: that of a unit in row r begins at row `jump * r + offset`."""

    jump: tuple[int, int]
    offset: tuple[int, int]


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
        columns: `(U,)` int64.
    """

    slots: Tensor
    channels: Tensor
    rows: Tensor
    columns: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, chosen: slice) -> Seed:
        """Some of the units."""
        return Seed(
            slots=self.slots[chosen],
            channels=self.channels[chosen],
            rows=self.rows[chosen],
            columns=self.columns[chosen],
        )

    def starts(self, window: Window) -> tuple[Tensor, Tensor]:
        """First row and column of each unit's window, `(U,)` each."""
        (down, right), (top, left) = window
        return self.rows * down + top, self.columns * right + left


def channels_last(values: Tensor) -> Tensor:
    """The same `(N, C, H, W)`, the channels of a place side by side in memory: on a CPU, convolutions like it best."""
    return values.contiguous(memory_format=torch.channels_last) if values.device.type == "cpu" else values


def whole(signal: Signal, shape: Sequence[int], seed: Seed) -> Tensor:
    """A signal in the value's own shape `(U, ...)`."""
    if signal.window is None:
        return signal.values
    values = signal.values
    if values.ndim == 4:
        maps = values.new_zeros(len(values), *shape[-2:], values.shape[1]).permute(0, 3, 1, 2)
    else:
        maps = values.new_zeros(*values.shape[:-2], *shape[-2:])
    tops, lefts = (start.tolist() for start in seed.starts(signal.window))
    for unit, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        rows, columns = _overlap(top, values.shape[-2], shape[-2]), _overlap(left, values.shape[-1], shape[-1])
        part = values[unit, ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        maps[unit, ..., rows, columns] = part
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
    height, width = values.shape[-2:]
    signal = Signal(values, window)
    if height >= shape[-2] and width >= shape[-1]:
        return Signal(whole(signal, shape, seed), None)
    if not clear:
        return signal
    for start, length, size, dim in zip(seed.starts(window), (height, width), shape[-2:], (-2, -1), strict=True):
        if int(start.min()) >= 0 and int(start.max()) + length <= size:
            continue
        places = start[:, None] + torch.arange(length)
        inside = ((places >= 0) & (places < size)).to(values.dtype).to(values.device)
        values *= inside.view(len(seed), *[1] * (values.ndim - 3), *((length, 1) if dim == -2 else (1, length)))
    return signal


def add(first: Signal, second: Signal, shape: Sequence[int], seed: Seed) -> Signal:
    """The sum of two signals of one value."""
    if first.window is None or second.window is None or first.window.jump != second.window.jump:
        return Signal(whole(first, shape, seed) + whole(second, shape, seed), None)
    if first.window == second.window and first.values.shape == second.values.shape:
        return Signal(first.values + second.values, first.window)
    offsets = (first.window.offset, second.window.offset)
    sizes = (first.values.shape[-2:], second.values.shape[-2:])
    begin = [min(offset[axis] for offset in offsets) for axis in (0, 1)]
    end = [max(offset[axis] + size[axis] for offset, size in zip(offsets, sizes, strict=True)) for axis in (0, 1)]
    padded = []
    for signal, offset, size in zip((first, second), offsets, sizes, strict=True):
        before = [offset[axis] - begin[axis] for axis in (0, 1)]
        after = [end[axis] - offset[axis] - size[axis] for axis in (0, 1)]
        padded.append(F.pad(signal.values, (before[1], after[1], before[0], after[0])))
    return placed(padded[0] + padded[1], Window(first.window.jump, (begin[0], begin[1])), shape, seed)


def gathered_at(data: Tensor, signal: Signal, seed: Seed) -> Tensor:
    """What was saved of a pass, `(N, ...)`, at the places of a signal `(U, ...)`; anything outside of the map."""
    slots = seed.slots.to(data.device)
    if signal.window is None:
        return data[slots]
    height, width = signal.values.shape[-2:]
    tops, lefts = seed.starts(signal.window)
    rows = (tops[:, None] + torch.arange(height)).clamp_(0, data.shape[-2] - 1).to(data.device)
    columns = (lefts[:, None] + torch.arange(width)).clamp_(0, data.shape[-1] - 1).to(data.device)
    # One flat index a place, the same for all channels.
    places = (rows[:, :, None] * data.shape[-1] + columns[:, None, :]).flatten(1)
    if data.ndim == 4 and data.is_contiguous(memory_format=torch.channels_last):
        by_place = data.permute(0, 2, 3, 1).flatten(1, 2)
        pieces = [by_place[slot].index_select(0, place) for slot, place in zip(slots.tolist(), places, strict=True)]
        return torch.stack(pieces).view(len(seed), height, width, -1).permute(0, 3, 1, 2)
    lead = data.shape[1:-2]
    flat = data.flatten(-2).reshape(len(data), -1, data.shape[-2] * data.shape[-1])
    pieces = [flat[slot].index_select(1, place) for slot, place in zip(slots.tolist(), places, strict=True)]
    return torch.stack(pieces).view(len(seed), *lead, height, width)
