"""How bounds go through operations with windows: convolutions, pooling, interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.tracing._bounds import NOTHING, Bounds, Step, each, thin

__all__ = ["convolution_bounds", "fixed_size_pool_bounds", "interpolation_bounds", "pool_3d_bounds", "pool_bounds"]

_Pair = tuple[int, int]


def convolution_bounds(step: Step) -> list[Bounds] | None:
    if not step.only_first or step.args[0].ndim != 4:
        return None
    kernel, stride, padding, dilation = step.window_2d
    groups, out = int(step.argument("groups", 1)), step.outputs[0]

    def run(b: Tensor) -> Tensor:
        size = b.shape[2:]
        if b.stride(1) == 0:
            b = b[:, :1]
        else:
            b = thin(b)
            b = b.reshape(len(b), groups, -1, *b.shape[2:]).amax(2).expand(-1, -1, *size)
        if step.is_transposed:
            b = _transposed_window(b, kernel, stride, padding, dilation, out.shape[-2:])
        else:
            b = _window(b, kernel, stride, padding, dilation, out.shape[-2:])
        if b.shape[1] > 1:
            b = thin(b).repeat_interleave(out.shape[1] // groups, dim=1)
        return b.expand(out.shape)

    return [each(run, step.bounds(step.args[0]))]


def pool_bounds(step: Step) -> list[Bounds] | None:
    if step.args[0].ndim != 4:
        return None
    kernel, stride, padding, dilation = step.window_2d
    out = step.outputs[0]

    def run(b: Tensor) -> Tensor:
        b = b[:, :1] if b.stride(1) == 0 else b
        return _window(b, kernel, stride, padding, dilation, out.shape[-2:]).expand(out.shape)

    return [each(run, step.bounds(step.args[0])) for _ in step.outputs]


def pool_3d_bounds(step: Step) -> list[Bounds] | None:
    """Averages over neighboring feature maps, in local response normalization."""
    if step.args[0].ndim != 5:
        return None
    kernel, stride, padding, dilation = step.window(3)
    ceil = bool(step.argument("ceil_mode"))
    return [
        each(lambda b: F.max_pool3d(b, kernel, stride, padding, dilation, ceil), step.bounds(step.args[0]))
        for _ in step.outputs
    ]


def fixed_size_pool_bounds(step: Step) -> list[Bounds] | None:
    out = step.outputs[0]

    def run(b: Tensor) -> Tensor:
        for dim, bins in ((-2, out.shape[-2]), (-1, out.shape[-1])):
            size = b.shape[dim]
            pieces = [
                b.narrow(dim, (i * size) // bins, -((-(i + 1) * size) // bins) - (i * size) // bins).amax(dim)
                for i in range(bins)
            ]
            b = torch.stack(pieces, dim)
        return b

    return [each(run, step.bounds(step.args[0])) for _ in step.outputs]


def _window(b: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair, out: Sequence[int]) -> Tensor:
    """The maximum over each window of a convolution or pooling whose output is `out` high and wide."""
    size = b.shape[2:]
    # Rows mostly reach the same rows in every column: then it is enough to look at one column.
    same = [b.stride(2 + axis) == 0 and size[axis] > 1 for axis in (0, 1)]
    b, channels = _distinct(thin(b))
    for axis in (0, 1):
        if kernel[axis] == 1 and stride[axis] == 1 and padding[axis] == 0 and out[axis] == size[axis]:
            continue
        if same[axis]:
            if _all_read(size[axis], kernel[axis], stride[axis], padding[axis], dilation[axis], out[axis]):
                continue
            b = b.expand(*b.shape[:2], *((size[0], -1) if axis == 0 else (-1, size[1])))
        reach = (out[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        # Rows beyond the last window are cut off (negative), those that ceil_mode needs are added: they reach nothing.
        pad = (padding[axis], reach - b.shape[2 + axis] - padding[axis])
        b = F.pad(b, (0, 0, *pad) if axis == 0 else (*pad, 0, 0), value=NOTHING)
        along = [(kernel[axis], 1), (stride[axis], 1), (dilation[axis], 1)]
        sizes = [pair if axis == 0 else pair[::-1] for pair in along]
        b = F.max_pool2d(b, sizes[0], sizes[1], 0, sizes[2])
    b = b if channels is None else b[:, channels]
    return b.expand(*b.shape[:2], *out)


def _distinct(b: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut neighboring channels that are alike to one, and say which is whose: what was concatenated has many such."""
    if b.shape[1] == 1:
        return b, None
    changes = (b[:, 1:] != b[:, :-1]).any(3).any(2).any(0)
    channels = F.pad(changes, (1, 0)).cumsum(0)
    return b[:, F.pad(changes, (1, 0), value=True)], channels


def _all_read(size: int, kernel: int, stride: int, padding: int, dilation: int, out: int) -> bool:
    """Whether every window reads a value: with padding and dilation one may fall between, or beside them all."""
    if padding == 0 and (out - 1) * stride + dilation * (kernel - 1) < size:
        return True
    taps = torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation
    return bool(((taps >= 0) & (taps < size)).any(1).all())


def _transposed_window(
    b: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair, out: Sequence[int]
) -> Tensor:
    """A transposed convolution is a convolution of stride one over rows with gaps between them."""
    height, width = b.shape[-2:]
    spread = b.new_full((*b.shape[:2], (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1), NOTHING)
    spread[..., :: stride[0], :: stride[1]] = b
    margin = (dilation[0] * (kernel[0] - 1) - padding[0], dilation[1] * (kernel[1] - 1) - padding[1])
    return _window(spread, kernel, (1, 1), margin, dilation, out)


def interpolation_bounds(step: Step) -> list[Bounds] | None:
    """Bilinear enlargement: run on one-hot rows, an output row depends on the input rows with weight."""
    if not step.only_first or step.args[0].ndim != 4:
        return None
    out = step.outputs[0]
    source = step.args[0]

    def taps(axis: int) -> Tensor:
        """Which input rows (or columns) each output row reads, `(out, in)`: seen on one one-hot image a row."""
        size = source.shape[axis]
        probe = torch.eye(size, dtype=torch.float64).view(1, size, *((size, 1) if axis == 2 else (1, size)))
        made: Tensor = step.functional(probe, *step.args[1:], **step.kwargs)
        return ((made[0, :, :, 0] if axis == 2 else made[0, :, 0, :]) != 0).T

    used_rows, used_columns = taps(2), taps(3)

    def run(b: Tensor) -> Tensor:
        b = b[:, :1] if b.stride(1) == 0 else b
        pieces = [b[:, :, used].amax(2) for used in used_rows]
        b = torch.stack(pieces, 2)
        pieces = [b[:, :, :, used].amax(3) for used in used_columns]
        return torch.stack(pieces, 3).expand(out.shape)

    return [each(run, step.bounds(source))]
