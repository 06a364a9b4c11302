"""Deconvnet of residual networks of signals and volumes, the slow way: whole maps, written down layer by layer.

Nothing here asks autograd: each layer has its forward line and, beside it, the rule by which a signal goes back. For
networks of other forms there is `rectified`, which lets autograd rectify what it carries back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["explicit_projection", "rectified"]

_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_POOLS = {3: F.max_pool1d, 5: F.max_pool3d}

Step = nn.Module | tuple[list[Any], list[Any]]
"""A layer, or a block: the layers of its main path and those of its shortcut, whose sum is rectified."""


def explicit_projection(
    steps: Sequence[Step], image: Tensor, channel: int, place: tuple[int, ...], method: str
) -> tuple[Tensor, float]:
    """Return one unit of the last of some layers, back to the image `(1, C, ...)` in float64, and its activation."""
    value, way = image, []
    for step in steps:
        way.append((step, value))
        value = _forward(step, value)
    signal = torch.zeros_like(value)
    signal[(0, channel, *place)] = 1
    for step, given in reversed(way):
        signal = _back(step, given, signal, method)
    activation = float(value[(0, channel, *place)])
    return signal[0] * activation, activation


def _forward(step: Step, value: Tensor) -> Tensor:
    if isinstance(step, tuple):
        main, shortcut = value, value
        for layer in step[0]:
            main = _forward(layer, main)
        for layer in step[1]:
            shortcut = _forward(layer, shortcut)
        return (main + shortcut).clamp(min=0)
    if isinstance(step, nn.ReLU):
        return value.clamp(min=0)
    made: Tensor = step(value)
    return made


def _back(step: Step, given: Tensor, signal: Tensor, method: str) -> Tensor:
    if isinstance(step, tuple):
        way: list[list[tuple[Any, Tensor]]] = [[], []]
        total = given.new_zeros(())
        for path, layers in zip(way, step, strict=True):
            value = given
            for layer in layers:
                path.append((layer, value))
                value = _forward(layer, value)
            total = total + value
        signal, made = _rectified(signal, total, method), torch.zeros_like(given)
        for path in way:
            part = signal
            for layer, value in reversed(path):
                part = _back(layer, value, part, method)
            made += part
        return made
    if isinstance(step, nn.ReLU):
        return _rectified(signal, given, method)
    if isinstance(step, nn.modules.conv._ConvNd):
        return _transposed(step, given, signal)
    if isinstance(step, nn.modules.batchnorm._BatchNorm):
        scale = step.weight / (step.running_var + step.eps).sqrt()
        return signal * scale.view(1, -1, *[1] * (signal.ndim - 2))
    if isinstance(step, nn.MaxPool1d | nn.MaxPool3d):
        pool: Any = _POOLS[given.ndim]
        _, places = pool(given, step.kernel_size, step.stride, step.padding, step.dilation, return_indices=True)
        back = torch.zeros_like(given).flatten(2)
        return back.scatter_add(2, places.flatten(2), signal.flatten(2)).view_as(given)
    raise NotImplementedError(type(step).__name__)


def _rectified(signal: Tensor, given: Tensor, method: str) -> Tensor:
    signal = signal if method == "gradient" else signal.clamp(min=0)
    return signal if method == "deconvnet" else signal * (given > 0)


def _transposed(conv: Any, given: Tensor, signal: Tensor) -> Tensor:
    """Back through the filters; what the last stride did not reach gets nothing."""
    numbers = zip(
        given.shape[2:], signal.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
    )
    rest = [
        size - ((out - 1) * stride - 2 * pad + gap * (kernel - 1) + 1)
        for size, out, kernel, stride, pad, gap in numbers
    ]
    back: Any = _TRANSPOSED[given.ndim]
    made: Tensor = back(signal, conv.weight, None, conv.stride, conv.padding, rest, conv.groups, conv.dilation)
    return made


class _Rectify(torch.autograd.Function):
    """A ReLU whose way back is that of a deconvnet."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Tensor:
        return signals[0].clamp(min=0)


class rectified(TorchFunctionMode):  # noqa: N801 - it is used as a function is
    """Inside, each ReLU of whatever spelling goes back as a deconvnet's does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("relu", "relu_"):
            return _Rectify.apply(args[0])
        return func(*args, **(kwargs or {}))
