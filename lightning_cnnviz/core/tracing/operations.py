"""The operations of one pass, in the order in which they run: what each was given, what it made, whose it is.

They are seen where torch dispatches them, so functional pooling, reused modules and sums count as often as they run.
The pass computes shapes alone: it runs on the meta device, with stand-ins for the weights. A network whose course
depends on values cannot run so; it runs on its own weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode

__all__ = ["Kind", "Operation", "Recording", "record_operations"]

Kind = Literal["conv", "transposed", "pool", "linear", "matmul", "resize", "pad", "join", "norm", "other"]

Lines = tuple[Tensor, Tensor]
"""First and last row (or column) of the image that each row (column) of a map reaches, clipped to the image."""


@dataclass(eq=False)
class Operation:
    """One operation of a pass.

    Attributes:
        owner: The module that runs it, by its path; empty for the network itself.
        type: The owner's class, where the owner is made for this; else "functional " and the function's name.
        kind: What sort of operation it is.
        input_shape: Shape of the first input that depends on the image, batch included.
        output_shape: Shape of the output, batch included.
        window: Kernel, stride, padding and dilation, each a number a spatial dimension; None without a window.
        options: The rest: groups, ceil_mode, output_padding.
        weight: Shape of a convolution's or linear layer's weight, as torch keeps it: (out, in / groups, ...).
        bias: Whether a convolution or linear layer adds a bias.
        parameters: Names of all parameters that it reads.
        macs: Multiply-adds for one image.
        lines: What rows and what columns reach; None where the output depends on no pixel.
        jump: Product of the strides so far, down and across; None where it is not known.
        scaled: Ratios of sizes at what gives a fixed number of rows, here and before: they stretch with the image.
        after: Position of the operation that made its input; None for the image.
    """

    owner: str
    type: str
    kind: Kind
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weight: tuple[int, ...] | None = None
    bias: bool = False
    parameters: tuple[str, ...] = ()
    macs: int = 0
    lines: tuple[Lines, Lines] | None = None
    jump: tuple[Fraction, Fraction] | None = None
    scaled: tuple[Fraction, ...] = ()
    after: int | None = None


@dataclass(eq=False)
class Recording:
    """What ran; and where it ended, if it did not come through.

    Attributes:
        operations: In the order in which they ran.
        error: What stopped the pass.
        where: Path of the module in which it stopped.
    """

    operations: list[Operation]
    error: Exception | None = None
    where: str = ""


def record_operations(model: nn.Module, image: Tensor, *, values: bool) -> Recording:
    """Run one image through the network, in eval mode and without trace, and record its operations.

    A pass that fails is recorded as far as it came.

    Args:
        model: The network.
        image: `(1, C, H, W)`.
        values: Whether to compute values; else shapes alone.
    """
    bounds, stack = BoundsMode(), [""]
    modules = {_plain(name): module for name, module in model.named_modules() if name}
    sites = {f"in:{name}": Site(module, "input") for name, module in modules.items()}
    sites |= {f"out:{name}": Site(module) for name, module in modules.items()}
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    failed: Exception | None = None
    with analysis_mode(model), _attributes_kept(model):
        # Ours, and made in here: they may be written to in place, also when inference mode is on outside.
        image = image.detach().clone() if values else torch.empty_like(image, device="meta")
        standins = {
            name: torch.empty_like(tensor.detach(), device="meta")
            for name, tensor in ({} if values else {**parameters, **buffers}).items()
        }
        sources = {_plain(name): standins.get(name, parameters[name]) for name in parameters}
        recorder = _Recorder(bounds, stack, modules, sources)
        try:
            with hooked(sites, recorder.on_module), bounds.follow(image), recorder:
                recorder.start(image)
                if values:
                    model(image)
                else:
                    functional_call(model, standins, (image,))
        except Exception as error:  # whatever a network may raise: the caller decides what it means
            failed = error
    return Recording(recorder.operations, failed, stack[-1])


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a pass leaves on modules: a cache of positions, kept from a pass without values, would spoil the next.

    Attributes come back as they were, and so do the entries of those that are lists or dictionaries.
    """
    kept = []
    for module in model.modules():
        attributes = dict(vars(module))
        inside = {name: type(value)(value) for name, value in attributes.items() if type(value) in (dict, list)}
        kept.append((module, attributes, inside))
    try:
        yield
    finally:
        for module, attributes, inside in kept:
            now = vars(module)
            for name in [name for name in now if name not in attributes]:
                del now[name]
            now.update(attributes)
            for name, entries in inside.items():
                value = attributes[name]
                if isinstance(value, list):
                    value[:] = entries
                elif list(value) != list(entries) or any(value[key] is not entries[key] for key in entries):
                    value.clear()
                    value.update(entries)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


@dataclass(frozen=True)
class _Trail:
    """What a tensor carries along from the image."""

    jump: tuple[Fraction, Fraction] | None
    scaled: tuple[Fraction, ...] = ()
    made_by: int | None = None


class _Recorder(TorchDispatchMode):
    """Records operations on what depends on the image, and which parameters each of them reads."""

    def __init__(
        self, bounds: BoundsMode, stack: list[str], modules: dict[str, nn.Module], parameters: dict[str, Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._bounds, self._stack, self._modules = bounds, stack, modules
        self._sources, self._trails = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for name, tensor in parameters.items():
            self._sources[tensor] = frozenset([name])
        self._entered: list[tuple[int, tuple[int, ...] | None]] = []
        self._last: tuple[Any, tuple[Lines, Lines] | None] | None = None

    def start(self, image: Tensor) -> None:
        """Begin at the image."""
        self._trails[image] = _Trail((Fraction(1), Fraction(1)))

    def on_module(self, marker: str, value: Any) -> None:
        """Keep track of which module runs."""
        side, _, name = marker.partition(":")
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if side == "in":
            self._stack.append(name)
            self._entered.append((len(self.operations), shape))
            return
        self._stack.pop()
        begun, input_shape = self._entered.pop()
        inside = self.operations[begun:]
        # A linear layer is run on lines of what it is given, a norm on a permutation: they say what was meant.
        if len(inside) == 1 and inside[0].kind in ("linear", "norm") and input_shape is not None and shape is not None:
            last = isinstance(self._modules[name], nn.Linear) or type(self._modules[name]) is nn.LayerNorm
            operation = inside[0]
            operation.input_shape, operation.output_shape = input_shape, shape
            operation.lines = _lines(self._bounds.reach(value), channels_last=last)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        args, kwargs = _all_on_meta(func, args, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moving = [tensor for tensor in given if self._bounds.reach(tensor) is not None]
        shapes = [tuple(tensor.shape) for tensor in moving]  # before it runs: unsqueeze_ changes them
        sources = frozenset().union(*(self._sources.get(tensor, frozenset()) for tensor in given))
        output = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not moving:
            if sources:
                for tensor in made:
                    self._sources[tensor] = sources
            return output
        if not made or self._bounds.reach(made[0]) is None:
            return output
        call = _Call(_name(func), func, args, kwargs, shapes, tuple(made[0].shape))
        self._record(call, made, moving, sources)
        return output

    def _record(self, call: _Call, made: list[Tensor], moving: list[Tensor], sources: frozenset[str]) -> None:
        operation = _operation(call)
        if operation is None and sources:
            operation = Operation("", "", "norm" if "_norm" in call.name else "other", call.shapes[0], call.output)
        trail = self._trail(call, operation, moving)
        if operation is not None:
            operation.after, trail = trail.made_by, replace(trail, made_by=len(self.operations))
        for tensor in made:
            self._trails[tensor] = trail
        if operation is None:
            return
        operation.owner, operation.parameters = self._stack[-1], tuple(sorted(sources))
        operation.type = operation.type or f"functional {_FUNCTIONS.get(call.name, call.name.strip('_'))}"
        owner = self._modules.get(operation.owner)
        is_norm = operation.kind == "norm" and "Norm" in type(owner).__name__
        if is_norm or isinstance(owner, _MADE_FOR.get(operation.kind, ())):
            operation.type = type(owner).__name__
        reach = self._bounds.reach(made[0])
        if self._last is None or reach is not self._last[0]:  # a norm passes on what it is given
            self._last = (reach, _lines(reach, channels_last=False))
        operation.lines = self._last[1]
        operation.jump, operation.scaled = trail.jump, trail.scaled
        self.operations.append(operation)

    def _trail(self, call: _Call, operation: Operation | None, moving: list[Tensor]) -> _Trail:
        trails = [self._trails.get(tensor, _Trail(None)) for tensor in moving]
        # Where a gate joins a map, the map's stride counts; of equals, the first.
        like = [
            trail for trail, shape in zip(trails, call.shapes, strict=True) if shape[-2:] == call.output[-2:]
        ] or trails
        jump = next((trail.jump for trail in like if trail.jump is not None), None)
        scaled = tuple(dict.fromkeys(ratio for trail in trails for ratio in trail.scaled))
        if len(call.output) == 4 and len(call.shapes[0]) == 4:
            factor, ratios = _steps(call, operation)
            scaled += tuple(ratio for ratio in ratios if ratio not in scaled)
            jump = (jump[0] * factor[0], jump[1] * factor[1]) if jump is not None else None
        return _Trail(jump, scaled, like[0].made_by)


@dataclass
class _Call:
    """One dispatched operation; `shapes` are those of its inputs that depend on the image."""

    name: str
    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    shapes: list[tuple[int, ...]]
    output: tuple[int, ...]

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for position, parameter in enumerate(self.func._schema.arguments):
            if parameter.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, parameter.default_value if parameter.has_default_value() else default)
        return default

    def numbers(self, name: str, dims: int, default: int = 0) -> tuple[int, ...]:
        """An argument that has a number for each spatial dimension, or one for all."""
        value = self.argument(name, default)
        values = [value] if isinstance(value, int) else list(value)
        return tuple(int(v) for v in (values * dims if len(values) == 1 else values))


def _name(func: Any) -> str:
    name: str = func.name().removeprefix("aten::").split(".")[0]
    return name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name


def _all_on_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """In a pass without values, take constants that a network makes or keeps to the meta device too."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors) or all(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if func._schema.is_mutable:
        raise RuntimeError(f"{func} writes to a tensor outside of the pass")

    def move(leaf: Any) -> Any:
        return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) and not leaf.is_meta else leaf

    return tree_map(move, args), tree_map(move, kwargs)


def _lines(reach: tuple[Tensor, ...] | None, *, channels_last: bool) -> tuple[Lines, Lines] | None:
    """What the rows, and what the columns of a map `(1, C, H, W)` reach; of anything else, its farthest element."""
    if reach is None:
        return None
    with _disable_current_modes():  # what is computed here is none of the network's
        return _lines_of(reach, channels_last)


def _lines_of(reach: tuple[Tensor, ...], channels_last: bool) -> tuple[Lines, Lines] | None:
    lines = []
    for axis, (first, last) in enumerate((reach[:2], reach[2:])):
        if first.ndim == 4:
            kept = axis + (1 if channels_last else 2)
            lines.append((-_largest(first, kept), _largest(last, kept)))
        else:
            for dim in range(first.ndim):
                if first.stride(dim) == last.stride(dim) == 0:  # expanded: all the same
                    first, last = first.narrow(dim, 0, 1), last.narrow(dim, 0, 1)
            farthest = (first + last).flatten().argmax()
            lines.append((-first.reshape(-1)[farthest][None], last.reshape(-1)[farthest][None]))
    if not bool(torch.isfinite(lines[0][0]).any()):
        return None
    return lines[0], lines[1]


def _largest(side: Tensor, kept: int) -> Tensor:
    for dim in range(4):
        if dim != kept and side.stride(dim) == 0:
            side = side.narrow(dim, 0, 1)
    # One dimension after the other, the last one first: many times faster than all at once.
    for dim in (3, 2, 1, 0):
        if dim != kept:
            side = side.amax(dim, keepdim=True)
    return side.flatten()


def _operation(call: _Call) -> Operation | None:
    """The record of an operation that has a row of its own, still without its owner; None for any other."""
    name, shapes, output = call.name, call.shapes, call.output
    if name in ("convolution", "cudnn_convolution", "mkldnn_convolution"):
        return _convolution(call)
    if name in _POOLS:
        dims = 3 if name.endswith("3d") else 2
        kernel = call.numbers("kernel_size", dims)
        stride = call.numbers("stride", dims) if call.argument("stride") else kernel
        window = (kernel, stride, call.numbers("padding", dims), call.numbers("dilation", dims, 1))
        ceil = bool(call.argument("ceil_mode", False))
        # Averages over neighboring channels, as local response normalization takes them, are no pooling of a map.
        kind: Kind = "pool" if dims == 2 else "other"
        return None if dims == 3 else Operation("", "", kind, shapes[0], output, window, {"ceil_mode": ceil})
    if name in _ADAPTIVE or _is_global(call):
        return Operation("", "", "pool", shapes[0], output)
    if name in ("addmm", "mm", "linear", "bmm", "baddbmm"):
        return _product(call)
    if name.startswith(("upsample", "_upsample")) and shapes[0][-2:] != output[-2:]:
        return Operation("", "", "resize", shapes[0], output)
    if name in ("constant_pad_nd", "reflection_pad2d", "replication_pad2d") and shapes[0] != output:
        return Operation("", "", "pad", shapes[0], output)
    if name in _JOINS and len(shapes) > 1 and (name != "mul" or len(set(shapes)) > 1):
        return Operation("", _JOINS[name], "join", max(shapes, key=math.prod), output)
    return None


def _convolution(call: _Call) -> Operation | None:
    weight = call.args[1]
    dims = weight.ndim - 2
    transposed, groups = bool(call.argument("transposed", False)), int(call.argument("groups", 1))
    window = tuple(call.numbers(name, dims) for name in ("stride", "padding", "dilation"))
    shape = tuple(weight.shape)
    # What each input element of a transposed convolution is multiplied with, each output element of a plain one.
    ends = call.shapes[0] if transposed else call.output
    operation = Operation("", "", "transposed" if transposed else "conv", call.shapes[0], call.output)
    operation.window = (shape[2:], window[0], window[1], window[2])
    operation.options = {"groups": groups, "output_padding": call.numbers("output_padding", dims)}
    operation.weight, operation.bias = shape, call.argument("bias") is not None
    operation.macs = math.prod(ends) * math.prod(shape[1:])
    return operation


def _product(call: _Call) -> Operation | None:
    tensors = [argument for argument in call.args if isinstance(argument, Tensor)]
    inner = tensors[1 if call.name in ("addmm", "baddbmm") else 0].shape[-1]
    macs = math.prod(call.output) * inner
    if len(call.shapes) > 1 or call.name in ("bmm", "baddbmm"):
        return Operation("", "", "matmul", call.shapes[0], call.output, macs=macs)
    bias = call.name == "addmm" or (call.name == "linear" and call.argument("bias") is not None)
    operation = Operation("", "", "linear", call.shapes[0], call.output, weight=(call.output[-1], inner), bias=bias)
    operation.macs = macs
    return operation


def _is_global(call: _Call) -> bool:
    """Whether it is a mean or maximum over the whole map: pooling, as torch runs it where one value is left."""
    if call.name not in ("mean", "amax") or len(call.shapes[0]) != 4:
        return False
    dims = call.argument("dim")
    return dims is not None and {dim % 4 for dim in ([dims] if isinstance(dims, int) else dims)} == {2, 3}


def _steps(call: _Call, operation: Operation | None) -> tuple[tuple[Fraction, Fraction], tuple[Fraction, ...]]:
    """By how much it multiplies the jump, and the ratios of sizes of what gives a fixed number of rows and columns."""
    one, before, after = (Fraction(1), Fraction(1)), call.shapes[0][-2:], call.output[-2:]
    if operation is not None and operation.window is not None and len(operation.window[1]) == 2:
        stride = operation.window[1]
        if operation.kind == "transposed":
            return (Fraction(1, stride[0]), Fraction(1, stride[1])), ()
        return (Fraction(stride[0]), Fraction(stride[1])), ()
    if operation is not None and operation.kind in ("pool", "resize") and min(after) > 0:
        ratios = (Fraction(before[0], after[0]), Fraction(before[1], after[1]))
        return ratios, () if after == (1, 1) else ratios
    if call.name == "slice" and call.argument("dim", 0) % 4 >= 2:
        step = Fraction(int(call.argument("step", 1)))
        return ((step, Fraction(1)) if call.argument("dim", 0) % 4 == 2 else (Fraction(1), step)), ()
    return one, ()


_POOLS = frozenset(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool3d"])
_ADAPTIVE = frozenset(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"])
_JOINS = {"add": "sum", "sub": "sum", "cat": "concatenation", "stack": "concatenation", "mul": "product"}
_FUNCTIONS = {"max_pool2d_with_indices": "max_pool2d", "convolution": "conv", "addmm": "linear", "mm": "linear"}
_MADE_FOR: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "transposed": (nn.modules.conv._ConvNd,),
    "linear": (nn.Linear,),
    "pool": (
        *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
        *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    ),
    "resize": (nn.Upsample,),
    "other": (nn.PReLU,),
}
