"""How bounds go through operations with windows: convolutions, pooling, interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.tracing._bounds import (
    NOTHING,
    Bounds,
    Step,
    each,
    everything,
    over_channels,
    thin,
    union,
)

__all__ = [
    "convolution_bounds",
    "fixed_size_pool_bounds",
    "folded_bounds",
    "interpolation_bounds",
    "pool_3d_bounds",
    "pool_bounds",
    "unfolded_bounds",
]

_Pair = tuple[int, int]


def convolution_bounds(step: Step) -> list[Bounds] | None:
    image, weight = step.args[0], step.argument("weight")
    if not step.only_first and id(image) in step.given:
        return None if len(image) > 1 else _with_own_weights(step)
    if not step.only_first or image.ndim != weight.ndim:
        return None
    if image.ndim != 4:
        return _convolution_of_any_dims(step)
    kernel, stride, padding, dilation = step.window_2d
    groups, out = int(step.argument("groups", 1)), step.outputs[0]

    def run(b: Tensor) -> Tensor:
        size = b.shape[2:]
        if b.stride(1) == 0 or groups == 1:
            b = over_channels(b)
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


def _with_own_weights(step: Step) -> list[Bounds] | None:
    """Weights that are computed from the image: each unit depends on what any of them does."""
    image = step.args[0]
    alone = replace(step, dependent=[image], given={id(image): step.given[id(image)]})
    others = [bounds for tensor, bounds in step.given.items() if tensor != id(image)]
    made = convolution_bounds(alone)
    if made is None:
        return None
    out = step.outputs[0]
    return [union([*made, everything(others, out)], out.shape)]


def _convolution_of_any_dims(step: Step) -> list[Bounds]:
    """Over sequences `(N, C, L)` or volumes `(N, C, D, H, W)`, one dimension after the other."""
    out, groups = step.outputs[0], int(step.argument("groups", 1))
    window = step.window(out.ndim - 2)

    def run(b: Tensor) -> Tensor:
        same = _alike(b)
        if b.stride(1) == 0 or groups == 1:
            b = over_channels(b)
        else:
            b = thin(b)
            b = b.reshape(len(b), groups, -1, *b.shape[2:]).amax(2)
        b = _over_windows(thin(b), same, window, out.shape, transposed=step.is_transposed)
        b = b.repeat_interleave(out.shape[1] // groups, dim=1) if b.shape[1] > 1 else b
        return b.expand(out.shape)

    return [each(run, step.bounds(step.args[0]))]


def _alike(b: Tensor) -> list[int]:
    """The length of each dimension along which all values are one (an expanded view); 0 of others."""
    return [size if b.stride(dim) == 0 and size > 1 else 0 for dim, size in enumerate(b.shape)]


def _over_windows(
    b: Tensor, alike: Sequence[int], window: Sequence[Sequence[int]], out: Sequence[int], *, transposed: bool = False
) -> Tensor:
    """The maximum over windows along the last dimensions, of bounds that were cut thin: see `_alike` and `thin`."""
    first = b.ndim - len(window[0])
    for dim, numbers in enumerate(zip(*window, strict=True), start=first):
        if alike[dim]:  # a window that reads anything reads the same
            kernel, stride, padding, dilation = numbers
            if not transposed and _all_read(alike[dim], kernel, stride, padding, dilation, out[dim]):
                continue
            b = b.expand(*b.shape[:dim], alike[dim], *b.shape[dim + 1 :])
        b = _along(b, dim, numbers, out[dim], transposed=transposed)
    return b


def _along(b: Tensor, dim: int, window: tuple[int, ...], out: int, *, transposed: bool = False) -> Tensor:
    """The maximum over each window along one dimension."""
    kernel, stride, padding, dilation = window
    if transposed:  # which inputs are spread to an output
        taps = torch.arange(out)[:, None] + padding - torch.arange(kernel) * dilation
        taps = torch.where(taps % stride == 0, taps // stride, -1)
    else:
        taps = torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation
    # Beyond its ends there is one more, which reaches nothing.
    size = b.shape[dim]
    taps = torch.where((taps >= 0) & (taps < size), taps, size)
    beyond = b.new_full((*b.shape[:dim], 1, *b.shape[dim + 1 :]), NOTHING)
    read: Tensor = torch.cat([b, beyond], dim).index_select(dim, taps.flatten()).unflatten(dim, taps.shape)
    return read.amax(dim + 1)


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
    """Averages over neighboring feature maps, in local response normalization; and pooling of volumes."""
    out, window = step.outputs[0], step.window(3)

    def run(b: Tensor) -> Tensor:
        return _over_windows(thin(b), _alike(b), window, out.shape).expand(out.shape)

    return [each(run, step.bounds(step.args[0])) for _ in step.outputs]


def fixed_size_pool_bounds(step: Step) -> list[Bounds] | None:
    out, dims = step.outputs[0], 3 if "3d" in step.name else 2

    def run(b: Tensor) -> Tensor:
        for dim in range(-dims, 0):
            bins = out.shape[dim]
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
    """Enlarging or reducing between rows: an output row depends on the input rows that it reads with weight."""
    if not step.only_first:
        return None
    out = step.outputs[0]
    taps = [_taps(step, axis) for axis in range(out.ndim - 2)]

    def run(b: Tensor) -> Tensor:
        b = b[:, :1] if b.stride(1) == 0 else b
        for axis, read in enumerate(taps):
            dim = 2 + axis
            if b.shape[dim] > 1 and b.stride(dim) == 0:  # the same in every row
                b = b.narrow(dim, 0, 1).expand(*b.shape[:dim], out.shape[dim], *b.shape[dim + 1 :])
            else:
                b = b.index_select(dim, read.flatten()).unflatten(dim, read.shape).amax(dim + 1)
        return b.expand(out.shape)

    return [each(run, step.bounds(step.args[0]))]


def unfolded_bounds(step: Step) -> list[Bounds] | None:
    """Windows as columns: each value is one that went in, or one of the padding."""
    if not step.only_first:
        return None
    kernel, stride, padding, dilation = step.window_2d
    pad = (padding[1], padding[1], padding[0], padding[0])
    return [each(lambda b: F.unfold(F.pad(b, pad, value=NOTHING), kernel, dilation, 0, stride),
                 step.bounds(step.args[0]))]  # fmt: skip


def folded_bounds(step: Step) -> list[Bounds] | None:
    """Columns back to windows, whose values are added where they overlap."""
    out = step.outputs[0]
    if not step.only_first or out.ndim != 4:
        return None
    kernel, stride, padding, dilation = step.window_2d
    rows, columns = out.shape[2:]
    # Of each value the place to which it is added; those beyond the border to one more place.
    places = torch.arange(rows * columns, dtype=torch.float64).view(1, 1, rows, columns)
    pad = (padding[1], padding[1], padding[0], padding[0])
    own = F.unfold(F.pad(places, pad, value=rows * columns), kernel, dilation, 0, stride).long().flatten()

    def run(b: Tensor) -> Tensor:
        values = b.reshape(len(b), out.shape[1], -1)
        made = b.new_full((*out.shape[:2], rows * columns + 1), NOTHING)
        return made.scatter_reduce(2, own.expand_as(values), values, "amax")[..., :-1].view(out.shape)

    return [each(run, step.bounds(step.args[0]))]


def _taps(step: Step, axis: int) -> Tensor:
    """Which input rows (or columns) each output row reads, `(out, k)` int64; of fewer than k, one is named again.

    They are seen where the operation itself is run on zeros and ones, with so many zeros in between that nothing reads
    two ones. The ones lie along the columns of two equal rows: of a single column, torch's antialiased resizing errs.
    """
    source, size = step.args[0].shape[2 + axis], step.outputs[0].shape[2 + axis]
    scale, corners = _given_scale(step, axis), bool(step.argument("align_corners"))
    ratio = source / size if scale is None else 1 / scale
    period = min(source, 2 * math.ceil(6 * max(ratio, 1)) + 8)
    rows = torch.arange(source)
    probe = torch.zeros(1, period, 2, source, dtype=torch.float64)
    probe[0, rows % period, :, rows] = 1
    packet = getattr(torch.ops.aten, step.name if step.outputs[0].ndim == 4 else "upsample_bilinear2d")
    weights = packet.default(probe, [2, size], corners, None, scale)[0, :, 0]
    places = torch.arange(size, dtype=torch.float64)
    center = places * ((source - 1) / max(1, size - 1)) if corners else (places + 0.5) * ratio - 0.5
    first = torch.arange(period)[:, None]
    nearest = first + period * ((center.clamp(0, source - 1) - first) / period).round().long()
    nearest = first.expand_as(nearest) if period == source else nearest
    read = (weights != 0) & (nearest >= 0) & (nearest < source)
    order = read.long().argsort(dim=0, descending=True, stable=True)[: max(1, int(read.sum(0).max()))]
    chosen, used = nearest.gather(0, order), read.gather(0, order)
    return torch.where(used, chosen, chosen[:1]).T.contiguous()


_SCALES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}


def _given_scale(step: Step, axis: int) -> float | None:
    """The factor along an axis that the network gave, and that torch goes by rather than by the two sizes."""
    both = step.argument("scale_factors")
    given = step.argument(_SCALES[step.outputs[0].ndim - 2][axis]) if both is None else both[axis]
    return float(given) if given else None
