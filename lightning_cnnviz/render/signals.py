"""Signals as curves with axes: position along it, value up, a line a channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_cnnviz.render._text import length as text_length
from lightning_cnnviz.render._text import write
from lightning_cnnviz.render.figures import COLORS, GRID, PENCIL

__all__ = ["CHART_SIZE", "WHOLE_SIZE", "draw_signal", "place_on_signal", "signal_sentence", "value_range"]

CHART_SIZE = (120, 168)
"""Height and width of a chart in pixels: as small as its numbers can be read in."""

WHOLE_SIZE = (168, 640)
"""The same of a chart of a whole signal, on which a part is marked."""

_FONT, _FINER = 10, 3  # lines are drawn three times as large, and made smaller: so they have no steps
_PAPER = (255, 255, 255)
# Where the axis goes on, and no part of the signal is: the tint of what lies beyond an image's border.
_BEYOND = (203, 213, 232)


def draw_signal(
    values: Tensor,
    *,
    low: float,
    high: float,
    first: int = 0,
    window: tuple[int, int] | None = None,
    channels: Sequence[int] = (),
    size: tuple[int, int] = CHART_SIZE,
) -> Tensor:
    """Draw a part of a signal as a chart with axes.

    Args:
        values: `(C, l)`; what is not finite leaves a gap.
        low: The value at the foot of the axis.
        high: The value at its top.
        first: Where in the whole signal the part begins, in samples.
        window: First position and the one behind the last that the axis has room for, by default those of the part.
        channels: Which channels are drawn; by default all.
        size: Height and width in pixels.

    Returns:
        `(3, *size)` uint8.

    Example:
        >>> draw_signal(torch.rand(2, 30), low=0, high=1).shape
        torch.Size([3, 120, 168])
    """
    begin, end = window or (first, first + values.shape[1])
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    numbers = [_number(high), _number(low)]
    left, top, right, foot = _axes(low, high, size)

    def place(position: float, value: float) -> tuple[float, float]:
        across = (position - begin) / max(end - 1 - begin, 1)
        up = min(max((value - low) / (high - low), 0.0), 1.0)
        return _FINER * (left + across * (right - left)), _FINER * (foot - up * (foot - top))

    image = Image.new("RGB", (_FINER * size[1], _FINER * size[0]), _PAPER)
    draw = ImageDraw.Draw(image)
    for start, stop in ((begin, first), (first + values.shape[1] - 1, end - 1)):
        if stop > start:
            corners = [(place(start, high)[0], _FINER * top), (place(stop, low)[0], _FINER * foot)]
            draw.rectangle(corners, _BEYOND)
    if low < 0 < high:
        draw.line([(_FINER * left, place(begin, 0)[1]), (_FINER * right, place(begin, 0)[1])], GRID, _FINER)
    frame = [(left, top), (left, foot), (right, foot)]
    draw.line([(_FINER * x, _FINER * y) for x, y in frame], PENCIL, _FINER)
    chosen = list(channels) or range(len(values))
    for number, channel in enumerate(chosen):
        color = COLORS[number % len(COLORS)]
        for line in _pieces(values[channel].tolist()):
            points = [place(first + at, value) for at, value in line]
            if len(points) == 1:
                (x, y), reach = points[0], 1.5 * _FINER
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), color)
            draw.line(points, color, round(1.5 * _FINER))
    image = image.resize((size[1], size[0]), Image.Resampling.BOX)
    draw, pencil = ImageDraw.Draw(image), (96, 96, 96)
    for text, y in zip(numbers, (top, foot), strict=True):
        write(draw, (left - 4 - text_length(text, _FONT), y - _FONT // 2 - 1), text, _FONT, pencil)
    write(draw, (left, foot + 3), str(begin), _FONT, pencil)
    last = str(end - 1)
    if end - 1 > begin:
        write(draw, (right - text_length(last, _FONT), foot + 3), last, _FONT, pencil)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def place_on_signal(start: int, end: int, count: int, low: float, high: float) -> tuple[int, int, int, int]:
    """Return where a part of a signal of `count` lies in the chart of all of it: top, left, bottom, right in pixels."""
    left, top, right, foot = _axes(low, high, WHOLE_SIZE)
    first, last = (left + place / max(count - 1, 1) * (right - left) for place in (start, end - 1))
    return top, max(0, round(first) - 1), foot, min(WHOLE_SIZE[1], round(last) + 2)


def value_range(values: Sequence[Tensor]) -> tuple[float, float]:
    """Return the lowest and the highest finite value of signals; some range around it where they are one."""
    finite = [part[part.isfinite()] for part in (each.float().flatten() for each in values)]
    low = min((float(part.min()) for part in finite if len(part)), default=0.0)
    high = max((float(part.max()) for part in finite if len(part)), default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def signal_sentence(channels: Sequence[int], of: int) -> str:
    """Say to the reader of charts what they show, and of so many channels which."""
    lines = f"channel{'s' * (len(channels) > 1)} {', '.join(map(str, channels))} of {of}" if channels else ""
    lines = lines or (f"a line for each of {of} channels" if of > 1 else "one channel")
    return f"Signals are curves, {lines}: position in samples across, up the value that the network is given."


def _pieces(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """A line's points, cut where values are not finite."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if math.isfinite(value):
            pieces[-1].append((at, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _axes(low: float, high: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where the axes are: left, top, right, foot."""
    left = max(text_length(_number(value), _FONT) for value in (low, high)) + 5
    return left, 6, size[1] - 5, size[0] - _FONT - 8


def _number(value: float) -> str:
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.2g}"
