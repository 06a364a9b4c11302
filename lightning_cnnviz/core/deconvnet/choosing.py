"""Which rule an operation follows on its way back to the pixels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_cnnviz.core.deconvnet._places import Place
from lightning_cnnviz.core.deconvnet.rules import (
    INPUT,
    Autograd,
    Concatenation,
    Convolution,
    MaxPool,
    MaxPool3d,
    Method,
    Nonlinearity,
    Padding,
    ProjectionError,
    Reshape,
    Rule,
    Same,
    Scaled,
    Slicing,
)
from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import Call

__all__ = ["RULES", "RunningCall", "choose_rule"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RunningCall(Call):
    """An operation that is about to run, on a batch of so many images."""

    method: Method
    batch: int
    axes: int = 2  # of space, that an image has: 1 of signals, 3 of volumes

    @property
    def is_map(self) -> bool:
        """Whether the first argument is the one that depends on the image, and made of feature maps."""
        # Signals are pooled as images of one row.
        ndim = (self.axes + 2, 4) if self.axes == 1 else (self.axes + 2,)
        return self.only_first and self.dependent[0].ndim in ndim and self.by_image

    @property
    def own_window(self) -> tuple[tuple[int, ...], ...]:
        """Kernel, stride, padding and dilation along each axis of the maps."""
        return tuple(tuple(numbers) for numbers in self.window(self.dependent[0].ndim - 2))

    @property
    def by_image(self) -> bool:
        """Whether what depends on the image has an entry for each: windows may be stacked where images are."""
        return all(tensor.shape[:1] == (self.batch,) for tensor in self.dependent)


def choose_rule(call: RunningCall) -> Rule:
    """Return the rule of an operation; where it has none of its own, it goes back by autograd.

    Raises:
        ProjectionError: There is no way back.
    """
    rule = RULES[call.name](call) if call.name in RULES else None
    return _autograd(call) if rule is None else rule


Build = Callable[[RunningCall], "Rule | None"]


def _autograd(call: RunningCall) -> Autograd:
    # In-place operations cannot be run again with gradients; their functional twins can.
    func = call.functional
    if func is None:
        raise ProjectionError(f"the network runs {call.operator.func}, which cannot be followed back to the pixels")
    log.debug("projection: %s goes back by autograd, over whole maps", func)
    dependent = {id(tensor) for tensor in call.dependent}

    def clear(leaf: Any) -> Any:
        return INPUT if isinstance(leaf, Tensor) and id(leaf) in dependent else leaf

    saved = tuple(tensor.detach().clone() for tensor in call.dependent)
    return Autograd(func, tree_map(clear, list(call.args)), tree_map(clear, dict(call.kwargs)), saved, call.batch)


def _rectified_convolution(call: RunningCall) -> Rule | None:
    if call.method == "gradient":
        return None
    raise ProjectionError(
        f"the network runs {call.operator.func}, a convolution and a ReLU in one, which cannot be told "
        "apart: give the network as it was before it was optimized"
    )


def _same(call: RunningCall) -> Rule | None:
    return Same((1.0,)) if len(call.dependent) == 1 else None


def _copied(call: RunningCall) -> Rule | None:
    """All of a tensor is overwritten by another: what was there before counts no more."""
    target, source = call.args[:2]
    if target.shape != source.shape:
        return None
    return Same(tuple(0.0 if tensor is target else 1.0 for tensor in call.dependent))


def _sum_of(call: RunningCall) -> Rule | None:
    tensors = [argument for argument in call.args[:2] if isinstance(argument, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if any(tensor.shape != shape for tensor in call.dependent):
        return None
    sign = float(call.argument("alpha", 1)) * (-1 if call.name == "sub" else 1)
    second = call.args[1] if len(call.args) > 1 else None
    if call.args[0] is second:
        return Same((1.0, sign))
    return Same(tuple(sign if tensor is second else 1.0 for tensor in call.dependent))


def _product(call: RunningCall) -> Rule | None:
    """With a number, or with weights that are the same all over a feature map."""
    if len(call.dependent) != 1 or (call.name == "div" and not call.only_first) or call.argument("rounding_mode"):
        return None
    maps = call.dependent[0]
    other = call.args[1] if call.args[0] is maps else call.args[0]
    if not isinstance(other, Tensor):
        return Same((1 / other if call.name == "div" else float(other),))
    shape = (1,) * (maps.ndim - other.ndim) + tuple(other.shape)
    if (
        maps.ndim < 3
        or len(shape) != maps.ndim
        or shape[0] != 1
        or set(shape[-max(call.axes, min(2, maps.ndim - 2)) :]) != {1}
        or not other.is_floating_point()
    ):
        return None
    if any(size not in (1, full) for size, full in zip(shape, maps.shape, strict=True)):
        return None
    scale = other.detach().clone().view(shape)
    return Scaled(1 / scale if call.name == "div" else scale)


def _negative(call: RunningCall) -> Rule | None:
    return Same((-1.0,))


def _batch_norm(call: RunningCall) -> Rule | None:
    mean, variance = call.argument("running_mean"), call.argument("running_var")
    if not call.is_map or mean is None or variance is None or call.uses_batch_statistics:
        return None
    weight = call.argument("weight")
    eps = call.argument("eps", call.argument("epsilon", None))
    scale = torch.rsqrt(variance.detach() + eps)
    scale = scale if weight is None else scale * weight.detach()
    return Scaled(scale.view(-1, *[1] * (call.dependent[0].ndim - 2)))


def _convolution(call: RunningCall) -> Rule | None:
    if not call.is_map or call.is_transposed:
        return None
    _, stride, padding, dilation = call.own_window
    return Convolution(call.argument("weight").detach(), stride, padding, dilation, int(call.argument("groups", 1)))


def _max_pool(call: RunningCall) -> Rule | None:
    if not call.is_map:
        return None
    maps = call.args[0]
    kernel, stride, padding, dilation = call.window_2d
    ceil = bool(call.argument("ceil_mode", False))
    # With channels last, torch's CPU kernel is ten times as fast, and finds the same.
    turned = maps.contiguous(memory_format=torch.channels_last) if maps.device.type == "cpu" else maps
    values, indices = torch.ops.aten.max_pool2d_with_indices(turned, kernel, stride, padding, dilation, ceil)
    if maps.is_contiguous():
        values = values.contiguous()
    width = max(maps.shape[-1], dilation[1] * (kernel[1] - 1) + 1)
    if width > maps.shape[-1]:
        rows = indices.div(maps.shape[-1], rounding_mode="floor")
        switches = indices + rows * (width - maps.shape[-1])
    else:
        switches = indices
    # Each pooling window's first place may lie in the padding.
    tops, lefts = (
        torch.arange(count, device=maps.device) * step - pad
        for count, step, pad in zip(values.shape[2:], stride, padding, strict=True)
    )
    switches = (switches - (tops[:, None] * width + lefts)).to(torch.int32)
    switches = switches.contiguous(memory_format=torch.channels_last)
    rule = MaxPool(switches, width, kernel, stride, padding, dilation)
    rule.made = (values, indices.contiguous())
    return rule


def _max_pool_3d(call: RunningCall) -> Rule | None:
    if not call.is_map:
        return None
    maps, (kernel, stride, padding, dilation) = call.args[0], call.own_window
    ceil = bool(call.argument("ceil_mode", False))
    values, indices = torch.ops.aten.max_pool3d_with_indices(maps, kernel, stride, padding, dilation, ceil)
    height, width = maps.shape[3:]
    switches = torch.zeros_like(indices)
    found = (indices // (height * width), indices // width % height, indices % width)
    for axis, place in enumerate(found):
        # Each pooling window's first place may lie in the padding.
        first = torch.arange(values.shape[2 + axis], device=maps.device) * stride[axis] - padding[axis]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        switches = switches * reach + place - first.view([-1 if own == axis else 1 for own in range(3)])
    rule = MaxPool3d(switches.to(torch.int32), kernel, stride, padding, dilation)
    rule.made = (values, indices)
    return rule


def _average_pool(call: RunningCall) -> Rule | None:
    """A convolution with equal weights, where every window counts as many places."""
    kernel, stride, padding, _ = call.window_2d
    divisor = call.argument("divisor_override")
    if not call.is_map or call.argument("ceil_mode") or (any(padding) and not call.argument("count_include_pad")):
        return None
    maps = call.args[0]
    count = kernel[0] * kernel[1] if divisor is None else int(divisor)
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    weight = torch.full((maps.shape[1], 1, *kernel), 1 / count, dtype=dtype, device=maps.device)
    return Convolution(weight, stride, padding, (1, 1), maps.shape[1])


def _rectifier(call: RunningCall) -> Rule | None:
    if len(call.dependent) != 1 or not call.only_first:
        return None
    if call.method == "deconvnet":
        return Nonlinearity(call.method, None)
    maps = call.args[0]
    if call.name == "relu" or (call.name in ("clamp", "clamp_min") and call.argument("max") is None):
        return Nonlinearity(call.method, maps.detach() > 0, call.by_image)
    return Nonlinearity(call.method, _autograd(call), call.by_image)


def _clamp(call: RunningCall) -> Rule | None:
    """A clamp at zero is a ReLU; another one only cuts off."""
    low = call.argument("min_val") if call.name == "hardtanh" else call.argument("min")
    return _rectifier(call) if isinstance(low, (int, float)) and low == 0 else None


def _threshold(call: RunningCall) -> Rule | None:
    return _rectifier(call) if call.argument("threshold") == 0 and call.argument("value") == 0 else None


def _maximum(call: RunningCall) -> Rule | None:
    """`torch.maximum(x, zero)`, either way around."""
    if len(call.dependent) != 1:
        return None
    other = call.args[1] if call.args[0] is call.dependent[0] else call.args[0]
    if not isinstance(other, Tensor) or bool(other.any()):
        return None
    maps = call.dependent[0]
    if torch.broadcast_shapes(maps.shape, other.shape) != maps.shape:
        return None
    return Nonlinearity(call.method, None if call.method == "deconvnet" else maps.detach() > 0, call.by_image)


def _random_rectifier(call: RunningCall) -> Rule | None:
    """RReLU, which in eval mode is a LeakyReLU of the mean slope."""
    if not call.only_first or call.argument("training"):
        return None
    if call.method == "deconvnet":
        return Nonlinearity(call.method, None)
    mean = (float(call.argument("lower")) + float(call.argument("upper"))) / 2
    maps = call.dependent[0].detach()
    slope = torch.where(maps > 0, torch.ones((), dtype=maps.dtype, device=maps.device), mean)
    return Nonlinearity(call.method, slope, call.by_image)


def _concatenation(call: RunningCall) -> Rule | None:
    tensors = call.args[0]
    first = tensors[0]
    dim = int(call.argument("dim", 0)) % max(first.ndim, 1)
    if dim != 1 or any(len(tensor) != call.batch for tensor in tensors):
        return None
    ends, end = [], 0
    for tensor in tensors:
        ends.append((tensor, slice(end, end + tensor.shape[1])))
        end += tensor.shape[1]
    dependent = {id(tensor) for tensor in call.dependent}
    return Concatenation(tuple(part for tensor, part in ends if id(tensor) in dependent))


def _split(call: RunningCall) -> Rule | None:
    if not call.only_first:
        return None
    maps = call.args[0]
    dim = int(call.argument("dim", 0)) % maps.ndim
    if dim != 1 or not call.by_image:
        return None
    sizes = call.args[1]
    if isinstance(sizes, int):
        sizes = [min(sizes, maps.shape[1] - at) for at in range(0, maps.shape[1], sizes)]
    slices, end = [], 0
    for size in sizes:
        slices.append(slice(end, end + size))
        end += size
    return Slicing(tuple(slices))


def _slice(call: RunningCall) -> Rule | None:
    if not call.only_first:
        return None
    maps = call.args[0]
    dim = int(call.argument("dim", 0)) % maps.ndim
    start, stop, step = call.argument("start"), call.argument("end"), int(call.argument("step", 1))
    if not call.by_image:
        return None
    chosen = slice(*slice(start, stop, step).indices(maps.shape[dim]))
    if chosen == slice(0, maps.shape[dim], 1):
        return Same((1.0,))
    if dim == 1:
        return Slicing((chosen,))
    if maps.ndim == call.axes + 2 and step == 1 and dim > 1:
        pad = [0, 0] * call.axes
        place = 2 * (maps.ndim - 1 - dim)
        pad[place : place + 2] = -chosen.start, chosen.stop - maps.shape[dim]
        return Padding(tuple(pad))
    return None


def _padding(call: RunningCall) -> Rule | None:
    pad = list(call.args[1])
    most = 2 * (call.dependent[0].ndim - 2)
    if not call.is_map or len(pad) > most:
        return None
    return Padding((*pad, *[0] * (most - len(pad))))


def _reshaped(call: RunningCall) -> Rule | None:
    maps = call.args[0]
    if not call.only_first or not call.by_image or any(isinstance(a, torch.dtype) for a in call.args):
        return None
    shape = [int(size) for size in call.args[1]]
    # An entry for each image must remain one.
    return Reshape(None) if shape and shape[0] in (call.batch, -1) and _keeps_images(maps, shape) else None


def _squeezed(call: RunningCall) -> Rule | None:
    """Dimensions of size one come or go."""
    shape = tuple(call.functional(*call.args, **call.kwargs).shape)
    return Reshape(None) if call.only_first and call.by_image and shape[:1] == (call.batch,) else None


def _strided(call: RunningCall) -> Rule | None:
    """Elements of memory in an order of its own: pooling leaves its results in the order of its maps so."""
    maps = call.args[0]
    if not call.only_first:
        return None
    place, wanted = Place.of(maps), Place.of(call.functional(*call.args, **call.kwargs))
    if place.same_elements(wanted):
        return Same((1.0,))
    source = place.elements_at(wanted.indices())
    if bool((source < 0).any()):
        raise ProjectionError("the network reads memory by as_strided beyond the feature maps that it gives to it")
    return Autograd(partial(_picked, source.to(maps.device)), [INPUT], {}, (maps.detach().clone(),), call.batch)


def _picked(source: Tensor, maps: Tensor) -> Tensor:
    return maps.flatten()[source]


def _keeps_images(maps: Tensor, shape: Sequence[int]) -> bool:
    rest = math.prod(shape[1:])
    return rest == maps[0].numel() if rest > 0 else shape[0] == maps.shape[0]


def _permuted(call: RunningCall) -> Rule | None:
    maps = call.args[0]
    if not call.only_first or not call.by_image:
        return None
    order = list(range(maps.ndim))
    if call.name == "permute":
        order = [int(dim) % maps.ndim for dim in call.args[1]]
    else:
        first, second = (int(dim) % maps.ndim for dim in call.args[1:3])
        order[first], order[second] = order[second], order[first]
    return Reshape(tuple(order)) if order[0] == 0 else None


RULES: dict[str, Build] = {
    **dict.fromkeys(calls.COPIES, _same),
    **dict.fromkeys(calls.SUMS, _sum_of),
    **dict.fromkeys(calls.PRODUCTS, _product),
    **dict.fromkeys(calls.BATCH_NORMS, _batch_norm),
    **dict.fromkeys(calls.CONVOLUTIONS, _convolution),
    **dict.fromkeys(calls.RECTIFIED_CONVOLUTIONS, _rectified_convolution),
    "max_pool2d_with_indices": _max_pool,
    "max_pool3d_with_indices": _max_pool_3d,
    **dict.fromkeys(calls.AVERAGE_POOLS, _average_pool),
    **dict.fromkeys(calls.RECTIFIERS, _rectifier),
    "rrelu_with_noise": _random_rectifier,
    **dict.fromkeys(calls.CLAMPS, _clamp),
    "threshold": _threshold,
    "maximum": _maximum,
    **dict.fromkeys(calls.SPLITS, _split),
    **dict.fromkeys(calls.SLICES, _slice),
    **dict.fromkeys(calls.RESHAPES, _reshaped),
    **dict.fromkeys(("squeeze", "unsqueeze"), _squeezed),
    "as_strided": _strided,
    **dict.fromkeys(calls.PERMUTATIONS, _permuted),
    **dict.fromkeys(calls.CONSTANT_PADS, _padding),
    "cat": _concatenation,
    "copy": _copied,
    "neg": _negative,
}
