"""Recording a forward pass as torch dispatches it: which operations depend on the image, and what rule each follows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_cnnviz.core.deconvnet.rules import (
    INPUT,
    Autograd,
    Concatenation,
    Convolution,
    MaxPool,
    Method,
    Node,
    Nonlinearity,
    Padding,
    Reshape,
    Rule,
    Same,
    Scaled,
    Split,
)

__all__ = ["FarEnough", "ProjectionError", "Recorder"]

log = logging.getLogger(__name__)


class ProjectionError(ValueError):
    """The network computes something that cannot be followed back to the pixels."""


class FarEnough(BaseException):
    """What was to be recorded has run: the rest of the pass need not. No `except Exception` of a network stops it."""


@dataclass(eq=False)
class _Call:
    """An operation that is about to run."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    known: list[tuple[Tensor, int]]  # its inputs that depend on the image, in order, each as often as it is given
    method: Method
    batch: int
    name: str

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for position, parameter in enumerate(self.func._schema.arguments):
            if parameter.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, parameter.default_value if parameter.has_default_value() else default)
        return default

    @property
    def only_first(self) -> bool:
        """Whether the first argument alone depends on the image."""
        return len(self.known) == 1 and self.known[0][0] is self.args[0]

    @property
    def is_map(self) -> bool:
        """Whether the first argument is the one that depends on the image, and made of feature maps."""
        return self.only_first and self.known[0][0].ndim == 4 and len(self.known[0][0]) == self.batch


class Recorder(TorchDispatchMode):
    """Runs each operation, and notes those that depend on the image.

    Args:
        method: What happens at a nonlinearity.
        batch: Number of images.
        nodes: Grows by one for each such operation.
        shapes: Grows by one for each value; the images are the first.
        enough: The number of nodes at which `FarEnough` ends the pass; by default it goes on.

    Attributes:
        paused: Whether operations run without being noted: those of whoever looks on.
    """

    def __init__(
        self,
        method: Method,
        batch: int,
        nodes: list[Node],
        shapes: list[tuple[int, ...]],
        enough: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._enough, self.paused = enough, False
        self._method, self._batch, self._nodes, self._shapes = method, batch, nodes, shapes
        self._own, self._time = WeakTensorKeyDictionary(), 0
        # Of memory that was written to: when, as which view, the value, and a reference that reserves its address.
        self._written: dict[int, tuple[int, Any, int, Any]] = {}

    def new(self, tensor: Tensor) -> int:
        """A new value, which a tensor holds from now on."""
        value = len(self._shapes)
        self._shapes.append(tuple(tensor.shape))
        self._register(tensor, value)
        return value

    def _register(self, tensor: Tensor, value: int) -> None:
        self._time += 1
        self._own[tensor] = (value, self._time)

    def value(self, tensor: Tensor) -> int | None:
        """The value that a tensor holds now; None where it does not depend on the image."""
        own = self._own.get(tensor)
        written = self._written.get(_address(tensor)) if self._written else None
        if written is None or (own is not None and own[1] >= written[0]):
            return None if own is None else int(own[0])
        if written[1] != _view(tensor):
            raise ProjectionError(
                "the network writes in place into memory that it reads through another view (a slice, say), which "
                "cannot be followed back to the pixels"
            )
        return written[2]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [(tensor, value) for tensor in given if (value := self.value(tensor)) is not None]
        if not known:
            output = func(*args, **kwargs)
            self._forget(func, output)
            return output
        name = func.name().removeprefix("aten::").split(".")[0]
        if func._schema.is_mutable and name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        if name in _CONSTANT:
            return func(*args, **kwargs)
        call = _Call(func, args, kwargs, known, self._method, self._batch, name)
        inplace_view = torch.Tag.inplace_view in func.tags
        shapes_in = tuple(tuple(tensor.shape) for tensor, _ in known)
        rule = _RULES[name](call) if name in _RULES else None
        rule = _autograd(call) if rule is None else rule
        output = func(*args, **kwargs) if rule.made is None else rule.made
        rule.made = None
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        values = tuple(self.new(tensor) for tensor in outputs)
        shapes_out = tuple(tuple(tensor.shape) for tensor in outputs)
        inputs = tuple(value for _, value in known)
        self._nodes.append(Node(name, rule, inputs, values, shapes_in, shapes_out))
        for tensor, value in zip(outputs, values, strict=True):
            if func._schema.is_mutable and not inplace_view:
                self._written[_address(tensor)] = (
                    self._time,
                    _view(tensor),
                    value,
                    StorageWeakRef(tensor.untyped_storage()),
                )
        if len(self._nodes) == self._enough:
            raise FarEnough
        return output

    def _forget(self, func: Any, output: Any) -> None:
        """What is overwritten by constants depends on the image no more, but in other views it may."""
        if func._schema.is_mutable and self._written:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and _address(tensor) in self._written:
                    raise ProjectionError("the network overwrites feature maps in place with constants")


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _view(tensor: Tensor) -> Any:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


_Build = Callable[[_Call], "Rule | None"]


def _autograd(call: _Call) -> Autograd:
    func = call.func
    if func._schema.is_mutable and torch.Tag.inplace_view not in func.tags:
        # In-place operations cannot be run again with gradients; their functional twins can.
        packet = getattr(torch.ops.aten, call.name, None)
        func = getattr(packet, func._overloadname, None)
        if func is None or func._schema.is_mutable:
            raise ProjectionError(f"the network runs {call.func}, which cannot be followed back to the pixels")
    log.debug("projection: %s goes back by autograd, over whole maps", func)
    known = {id(tensor) for tensor, _ in call.known}

    def clear(leaf: Any) -> Any:
        return INPUT if isinstance(leaf, Tensor) and id(leaf) in known else leaf

    saved = tuple(tensor.detach().clone() for tensor, _ in call.known)
    return Autograd(func, tree_map(clear, list(call.args)), tree_map(clear, call.kwargs), saved, call.batch)


def _same(call: _Call) -> Rule | None:
    return Same((1.0,)) if len(call.known) == 1 else None


def _copied(call: _Call) -> Rule | None:
    """All of a tensor is overwritten by another: what was there before counts no more."""
    target, source = call.args[:2]
    if target.shape != source.shape:
        return None
    return Same(tuple(0.0 if tensor is target else 1.0 for tensor, _ in call.known))


def _sum_of(call: _Call) -> Rule | None:
    tensors = [argument for argument in call.args[:2] if isinstance(argument, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if any(tensor.shape != shape for tensor, _ in call.known):
        return None
    sign = float(call.argument("alpha", 1)) * (-1 if call.name == "sub" else 1)
    second = call.args[1] if len(call.args) > 1 else None
    if call.args[0] is second:
        return Same((1.0, sign))
    return Same(tuple(sign if tensor is second else 1.0 for tensor, _ in call.known))


def _product(call: _Call) -> Rule | None:
    """With a number, or with weights that are the same all over a feature map."""
    if len(call.known) != 1 or (call.name == "div" and not call.only_first) or call.argument("rounding_mode"):
        return None
    maps = call.known[0][0]
    other = call.args[1] if call.args[0] is maps else call.args[0]
    if not isinstance(other, Tensor):
        return Same((1 / other if call.name == "div" else float(other),))
    shape = (1,) * (maps.ndim - other.ndim) + tuple(other.shape)
    if (
        maps.ndim < 3
        or len(shape) != maps.ndim
        or shape[0] != 1
        or shape[-2:] != (1, 1)
        or not other.is_floating_point()
    ):
        return None
    if any(size not in (1, full) for size, full in zip(shape, maps.shape, strict=True)):
        return None
    scale = other.detach().clone().view(shape)
    return Scaled(1 / scale if call.name == "div" else scale)


def _negative(call: _Call) -> Rule | None:
    return Same((-1.0,))


def _batch_norm(call: _Call) -> Rule | None:
    mean, variance = call.argument("running_mean"), call.argument("running_var")
    if not call.is_map or mean is None or variance is None or call.argument("training", False):
        return None
    weight = call.argument("weight")
    eps = call.argument("eps", call.argument("epsilon", None))
    scale = torch.rsqrt(variance.detach() + eps)
    return Scaled((scale if weight is None else scale * weight.detach())[:, None, None])


def _convolution(call: _Call) -> Rule | None:
    if not call.is_map or call.argument("transposed"):
        return None
    stride, padding, dilation = (_pair(call.argument(name)) for name in ("stride", "padding", "dilation"))
    return Convolution(call.args[1].detach(), stride, padding, dilation, int(call.argument("groups")))


def _max_pool(call: _Call) -> Rule | None:
    if not call.is_map:
        return None
    maps = call.args[0]
    kernel, padding = _pair(call.argument("kernel_size")), _pair(call.argument("padding"))
    stride, dilation = _pair(call.argument("stride") or kernel), _pair(call.argument("dilation", 1))
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
    rule.made = values if call.name == "max_pool2d" else (values, indices.contiguous())
    return rule


def _average_pool(call: _Call) -> Rule | None:
    """A convolution with equal weights, where every window counts as many places."""
    kernel, padding = _pair(call.argument("kernel_size")), _pair(call.argument("padding"))
    stride = _pair(call.argument("stride") or kernel)
    divisor = call.argument("divisor_override")
    if not call.is_map or call.argument("ceil_mode") or (any(padding) and not call.argument("count_include_pad")):
        return None
    maps = call.args[0]
    count = kernel[0] * kernel[1] if divisor is None else int(divisor)
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    weight = torch.full((maps.shape[1], 1, *kernel), 1 / count, dtype=dtype, device=maps.device)
    return Convolution(weight, stride, padding, (1, 1), maps.shape[1])


def _rectifier(call: _Call) -> Rule | None:
    if len(call.known) != 1 or not call.only_first:
        return None
    if call.method == "deconvnet":
        return Nonlinearity(call.method, None)
    maps = call.args[0]
    if call.name == "relu" or (call.name in ("clamp", "clamp_min") and call.argument("max") is None):
        return Nonlinearity(call.method, maps.detach() > 0)
    return Nonlinearity(call.method, _autograd(call))


def _clamp(call: _Call) -> Rule | None:
    """A clamp at zero is a ReLU; another one only cuts off."""
    low = call.argument("min_val") if call.name == "hardtanh" else call.argument("min")
    return _rectifier(call) if isinstance(low, (int, float)) and low == 0 else None


def _threshold(call: _Call) -> Rule | None:
    return _rectifier(call) if call.argument("threshold") == 0 and call.argument("value") == 0 else None


def _maximum(call: _Call) -> Rule | None:
    """`torch.maximum(x, zero)`, either way around."""
    if len(call.known) != 1:
        return None
    other = call.args[1] if call.args[0] is call.known[0][0] else call.args[0]
    if not isinstance(other, Tensor) or bool(other.any()):
        return None
    maps = call.known[0][0]
    if torch.broadcast_shapes(maps.shape, other.shape) != maps.shape:
        return None
    return Nonlinearity(call.method, None if call.method == "deconvnet" else maps.detach() > 0)


def _concatenation(call: _Call) -> Rule | None:
    tensors = call.args[0]
    first = tensors[0]
    dim = int(call.argument("dim", 0)) % first.ndim
    if dim != 1 or any(len(tensor) != call.batch for tensor in tensors):
        return None
    ends, end = [], 0
    for tensor in tensors:
        ends.append((tensor, slice(end, end + tensor.shape[1])))
        end += tensor.shape[1]
    known = {id(tensor) for tensor, _ in call.known}
    return Concatenation(tuple(part for tensor, part in ends if id(tensor) in known))


def _split(call: _Call) -> Rule | None:
    if not call.only_first:
        return None
    maps = call.args[0]
    dim = int(call.argument("dim", 0)) % maps.ndim
    if dim != 1 or len(maps) != call.batch:
        return None
    sizes = call.args[1]
    if isinstance(sizes, int):
        sizes = [min(sizes, maps.shape[1] - at) for at in range(0, maps.shape[1], sizes)]
    slices, end = [], 0
    for size in sizes:
        slices.append(slice(end, end + size))
        end += size
    return Split(tuple(slices))


def _slice(call: _Call) -> Rule | None:
    if not call.only_first:
        return None
    maps = call.args[0]
    dim = int(call.argument("dim", 0)) % maps.ndim
    start, stop, step = call.argument("start"), call.argument("end"), int(call.argument("step", 1))
    if len(maps) != call.batch:
        return None
    chosen = slice(*slice(start, stop, step).indices(maps.shape[dim]))
    if chosen == slice(0, maps.shape[dim], 1):
        return Same((1.0,))
    if dim == 1:
        return Split((chosen,))
    if maps.ndim == 4 and step == 1 and dim > 1:
        cut = (-chosen.start, chosen.stop - maps.shape[dim])
        return Padding((0, 0, *cut) if dim == 2 else (*cut, 0, 0))
    return None


def _padding(call: _Call) -> Rule | None:
    pad = list(call.args[1])
    if not call.is_map or len(pad) > 4:
        return None
    left, right, top, bottom = pad + [0] * (4 - len(pad))
    return Padding((left, right, top, bottom))


def _reshaped(call: _Call) -> Rule | None:
    maps = call.args[0]
    if not call.only_first or len(maps) != call.batch or any(isinstance(a, torch.dtype) for a in call.args):
        return None
    shape = [int(size) for size in call.args[1]]
    # An entry for each image must remain one.
    return Reshape(None) if shape and shape[0] in (call.batch, -1) and _keeps_images(maps, shape) else None


def _keeps_images(maps: Tensor, shape: Sequence[int]) -> bool:
    rest = math.prod(shape[1:])
    return rest == maps[0].numel() if rest > 0 else shape[0] == maps.shape[0]


def _permuted(call: _Call) -> Rule | None:
    maps = call.args[0]
    if not call.only_first or len(maps) != call.batch:
        return None
    order = list(range(maps.ndim))
    if call.name == "permute":
        order = [int(dim) % maps.ndim for dim in call.args[1]]
    else:
        first, second = (int(dim) % maps.ndim for dim in call.args[1:3])
        order[first], order[second] = order[second], order[first]
    return Reshape(tuple(order)) if order[0] == 0 else None


# Results that do not depend on the values that went in.
_CONSTANT = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_strided"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    ]
)
_RECTIFIERS = [
    *("relu", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "softplus"),
    *("prelu", "_prelu_kernel", "rrelu_with_noise"),
]
_RULES: dict[str, _Build] = {
    **dict.fromkeys(["clone", "_to_copy", "detach", "alias", "contiguous", "lift_fresh", "dropout"], _same),
    **dict.fromkeys(["add", "sub"], _sum_of),
    **dict.fromkeys(["mul", "div"], _product),
    **dict.fromkeys(["native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"], _batch_norm),
    **dict.fromkeys(["_native_batch_norm_legit_no_training", "_batch_norm_no_update"], _batch_norm),
    **dict.fromkeys(["convolution", "cudnn_convolution", "mkldnn_convolution"], _convolution),
    **dict.fromkeys(["max_pool2d", "max_pool2d_with_indices"], _max_pool),
    **dict.fromkeys(_RECTIFIERS, _rectifier),
    **dict.fromkeys(["clamp", "clamp_min", "hardtanh"], _clamp),
    **dict.fromkeys(["split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk"], _split),
    **dict.fromkeys(["view", "_unsafe_view", "reshape"], _reshaped),
    **dict.fromkeys(["permute", "transpose"], _permuted),
    "neg": _negative,
    "copy": _copied,
    "avg_pool2d": _average_pool,
    "threshold": _threshold,
    "maximum": _maximum,
    "cat": _concatenation,
    "slice": _slice,
    "constant_pad_nd": _padding,
}
