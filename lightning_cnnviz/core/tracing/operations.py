"""The operations of one pass, in the order in which they run: inputs, outputs, and the module that runs each.

They are seen where torch dispatches them, so functional pooling, reused modules and sums count as often as they run.
The pass computes shapes alone: it runs on the meta device, with stand-ins for the weights. A network that
decides by values what to run needs its own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, takes_hooks
from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing._bounds import Bounds, over_channels, thin
from lightning_cnnviz.core.tracing._operation_rules import (
    Kind,
    Lines,
    Operation,
    ShapedCall,
    pooled_signal,
    read_operation,
    scale_of,
)
from lightning_cnnviz.core.tracing._symmetry import treats_axes_alike
from lightning_cnnviz.core.tracing.calls import OperationReader, Operator, input_tensors, tensors_in
from lightning_cnnviz.core.tracing.layouts import Layouts
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode

__all__ = ["Along", "Kind", "Lines", "Operation", "OperationLog", "log_operations"]

# These go as far as their windows, or nowhere: boxes are moved, and not enlarged.
_STEPWISE = (
    *(calls.CONVOLUTIONS, calls.MAX_POOLS, calls.AVERAGE_POOLS, calls.POOLS_3D, calls.INTERPOLATIONS),
    *(calls.NEAREST_UPSAMPLINGS, calls.CONSTANT_PADS, calls.EDGE_PADS, calls.COPIES, calls.RESHAPES),
    *(calls.PERMUTATIONS, calls.SPLITS, calls.SLICES, calls.OTHER_MOVES),
)


@dataclass(eq=False, kw_only=True)
class OperationLog:
    """What ran; and where it ended, if it did not come through.

    Attributes:
        operations: In the order in which they ran.
        error: What stopped the pass.
        where: Path of the module in which it stopped.
        axes_alike: Whether every operation does to columns what it does to rows.
    """

    operations: list[Operation]
    axes_alike: bool
    error: Exception | None = None
    where: str = ""


@dataclass(frozen=True)
class Along:
    """Which axis of the image to follow alone, and which step along it, in pixels, is called boundless if exceeded."""

    axis: int
    farthest: int


def log_operations(model: nn.Module, image: Tensor, *, values: bool, along: Along | None = None) -> OperationLog:
    """Run one image through the network, in eval mode and without trace, and log its operations.

    A pass that fails is logged as far as it came. Inside of what `torch.jit` has traced or scripted, operations belong
    to the module whose parameters they read, as far as they read any.

    Args:
        model: The network.
        image: `(1, C, H, W)`, a signal `(1, C, L)`, or a volume `(1, C, D, H, W)`.
        values: Whether to compute values; else shapes alone.
        along: Follow receptive fields along one axis alone, and watch for steps that go farther than a number of
            pixels: by anything but a window of known length, an output reaches that much more than the inputs do.
    """
    bounds, stack = BoundsMode(), [""]
    modules = {_plain(name): module for name, module in model.named_modules() if name}
    seen = {name: module for name, module in modules.items() if takes_hooks(module)}
    sites = {f"in:{name}": Site(module, "input") for name, module in seen.items()}
    sites |= {f"out:{name}": Site(module) for name, module in seen.items()}
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
        logger = _OperationLogger(bounds, stack, modules, sources, along, image)
        try:
            with hooked(sites, logger.on_module), bounds.follow(image, axis=along.axis if along else None), logger:
                logger.start(image)
                if values:
                    model(image)
                else:
                    functional_call(model, standins, (image,))
        except Exception as error:  # whatever a network may raise: the caller decides what it means
            failed = error
    return OperationLog(operations=logger.operations, error=failed, where=stack[-1], axes_alike=logger.axes_alike)


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

    jump: tuple[Fraction, ...] | None
    scaled: tuple[Fraction, ...] = ()
    made_by: int | None = None
    boundless: bool = False
    followed: bool = True


class _OperationLogger(OperationReader):
    """Logs operations on what depends on the image, and which parameters each of them reads."""

    def __init__(
        self,
        bounds: BoundsMode,
        stack: list[str],
        modules: dict[str, nn.Module],
        parameters: dict[str, Tensor],
        along: Along | None,
        image: Tensor,
    ) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.axes_alike, self._along = True, along
        self._bounds, self._stack, self._modules = bounds, stack, modules
        self._layouts, self._dims = Layouts(image), image.ndim
        self._axes = tuple(range(2, max(image.ndim, 4)))  # a signal is an image of one row
        self._map_dims = {4, image.ndim} if image.ndim < 5 else {5}  # torch pools a signal as such an image
        self._sources, self._trails = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for name, tensor in parameters.items():
            self._sources[tensor] = frozenset([name])
        self._entered: list[tuple[int, tuple[int, ...] | None]] = []
        self._last: tuple[Any, tuple[int | None, ...] | None, tuple[Lines, ...] | None] | None = None

    def start(self, image: Tensor) -> None:
        """Begin at the image."""
        self._trails[image] = _Trail((Fraction(1),) * len(self._axes))

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
        if len(inside) == 2 and isinstance(self._modules[name], nn.Linear) and inside[1].type == "functional add":
            # Of some layouts torch adds the bias by itself.
            bias = self.operations.pop()
            inside[0].parameters, inside[0].bias = tuple(sorted({*inside[0].parameters, *bias.parameters})), True
            self._trails[value] = replace(self._trails[value], made_by=len(self.operations) - 1)
            inside = inside[:1]
        if len(inside) == 1 and inside[0].kind in ("linear", "norm") and input_shape is not None and shape is not None:
            last = isinstance(self._modules[name], nn.Linear) or type(self._modules[name]) is nn.LayerNorm
            operation = inside[0]
            operation.input_shape, operation.output_shape = input_shape, shape
            operation.lines = self._lines_of(value, channels_last=last)

    @override
    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        args, kwargs = _all_on_meta(operator.func, args, kwargs)
        given = input_tensors(operator, args, kwargs)
        reaches = [(tensor, reach) for tensor in given if (reach := self._bounds.reach(tensor)) is not None]
        dependent = [tensor for tensor, _ in reaches]
        shapes = [tuple(tensor.shape) for tensor in dependent]  # before it runs: unsqueeze_ changes them
        sources = frozenset().union(*(self._sources.get(tensor, frozenset()) for tensor in given))
        layouts = self._layouts.before(operator, args, kwargs)
        axes = (self._layouts.axes(dependent[0]) if dependent else None) or self._axes
        result = operator.func(*args, **kwargs)
        layouts(result)
        made = tensors_in(result)
        if not dependent:
            if sources and made and self._log_constant(operator, args, kwargs, made[0], sources):
                return result
            if sources:
                for tensor in made:
                    self._sources[tensor] = sources
            return result
        if made and self._bounds.reach(made[0]) is not None:
            call = ShapedCall(operator, args, kwargs, dependent, shapes, tuple(made[0].shape), axes)
            self.axes_alike = self.axes_alike and len(axes) == 2 and treats_axes_alike(call)
            self._log(call, made, sources, self._goes_far(call, [reach for _, reach in reaches], made[0]))
        return result

    def _log_constant(
        self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any], made: Tensor, sources: frozenset[str]
    ) -> bool:
        """Log what a layer makes of constants: positions, say. Weights that are reckoned have no row of their own."""
        given = input_tensors(operator, args, kwargs)
        shapes = [tuple(tensor.shape) for tensor in given if tensor not in self._sources]
        call = ShapedCall(operator, args, kwargs, [], shapes[:1] or [tuple(made.shape)], tuple(made.shape))
        operation = read_operation(call)
        if operation is None or not operation.macs or operator.name == "mv":
            return False
        owner = self._owner(sources)
        module = self._modules.get(owner)
        if isinstance(module, _MADE_FOR.get(operation.kind, ())):
            operation.type = type(module).__name__
        elif not isinstance(module, nn.RNNBase | nn.RNNCellBase):  # which begin with a state of zeros
            return False
        operation.owner = owner
        operation.parameters = tuple(sorted(sources))
        self.operations.append(operation)
        return True

    def _goes_far(self, call: ShapedCall, before: list[Bounds], made: Tensor) -> bool:
        """Whether, along the axis that is followed, the output reaches much more than the inputs did."""
        after = self._bounds.reach(made)
        if self._along is None or after is None or call.name in calls.JOINS:
            return False
        if call.only_first and any(call.name in kind for kind in _STEPWISE):
            return False
        place = 2 * self._along.axis
        if any(after[place] is reach[place] for reach in before):  # pointwise operations and norms pass on the same
            return False
        with _disable_current_modes():
            longest = max(_lengths(reach[place], reach[place + 1])[1] for reach in before)
            # The shortest that is made: what a roll brings around reaches far, and the middle does not.
            return _lengths(after[place], after[place + 1])[0] - longest > self._along.farthest

    def _log(self, call: ShapedCall, made: list[Tensor], sources: frozenset[str], far: bool) -> None:
        operation = read_operation(call)
        if operation is None and sources:
            operation = call.record("norm" if "_norm" in call.name else "other")
        trail = self._trail(call, operation, far)
        if operation is not None:
            operation.after, trail = trail.made_by, replace(trail, made_by=len(self.operations))
        for tensor in made:
            self._trails[tensor] = trail
        if operation is None:
            return
        operation.owner, operation.parameters = self._owner(sources), tuple(sorted(sources))
        operation.type = operation.type or f"functional {_function(call.name)}"
        owner = self._modules.get(operation.owner)
        is_norm = operation.kind == "norm" and "Norm" in type(owner).__name__
        if is_norm or isinstance(owner, _MADE_FOR.get(operation.kind, ())):
            operation.type = type(owner).__name__
        operation.lines = self._lines_of(made[0])
        operation.jump, operation.scaled, operation.boundless = trail.jump, trail.scaled, trail.boundless
        operation.followed = trail.followed
        if self._dims == 3:
            pooled_signal(operation)
        self.operations.append(operation)

    def _lines_of(self, tensor: Tensor, *, channels_last: bool = False) -> tuple[Lines, ...] | None:
        reach, axes = self._bounds.reach(tensor), self._layouts.axes(tensor, channels_last=channels_last)
        if self._last is None or self._last[0] is not reach or self._last[1] != axes:
            # A norm passes on what it is given, and modules what their operations have made.
            self._last = (reach, axes, _lines(reach, axes))
        return self._last[2]

    def _owner(self, sources: frozenset[str]) -> str:
        """The module that runs; of one that hooks cannot see, the module whose parameters are read."""
        paths = {name.rpartition(".")[0] for name in sources}
        path = paths.pop() if len(paths) == 1 else ""
        return path if path and not takes_hooks(self._modules[path]) else self._stack[-1]

    def _trail(self, call: ShapedCall, operation: Operation | None, far: bool) -> _Trail:
        trails = [self._trails.get(tensor, _Trail(None)) for tensor in call.dependent]
        # Where a gate joins a map, the map's stride counts; of equals, the first.
        like = [
            trail
            for trail, shape in zip(trails, call.shapes, strict=True)
            if shape[-len(self._axes) :] == call.output[-len(self._axes) :]
        ] or trails
        jump = next((trail.jump for trail in like if trail.jump is not None), None)
        scaled = tuple(dict.fromkeys(ratio for trail in trails for ratio in trail.scaled))
        if len(call.output) == len(call.shapes[0]) and len(call.output) in self._map_dims:
            factor, ratios = scale_of(call, operation)
            scaled += tuple(ratio for ratio in ratios if ratio not in scaled)
            jump = None if jump is None else tuple(step * by for step, by in zip(jump, factor, strict=True))
        followed = not self._bounds.estimated and all(trail.followed for trail in trails)
        return _Trail(jump, scaled, like[0].made_by, far or any(trail.boundless for trail in trails), followed)


def _all_on_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """In a pass without values, take constants that a network makes or keeps to the meta device too."""
    tensors = tensors_in((args, kwargs))
    if not any(tensor.is_meta for tensor in tensors) or all(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if func._schema.is_mutable:
        raise RuntimeError(f"{func} writes to a tensor outside of the pass")

    def move(leaf: Any) -> Any:
        return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) and not leaf.is_meta else leaf

    return tree_map(move, args), tree_map(move, kwargs)


def _lengths(neg_first: Tensor, last: Tensor) -> tuple[float, float]:
    """The shortest and the longest reach of what depends on any pixel."""
    lengths = thin(neg_first) + thin(last)
    if not lengths.numel():
        return 0.0, 0.0
    finite = lengths.isfinite()  # (to pick them out would take ten times as long)
    longest = float(lengths.masked_fill(~finite, -torch.inf).amax())
    return (float(lengths.masked_fill(~finite, torch.inf).amin()), longest) if longest > -torch.inf else (0.0, 0.0)


def _lines(reach: tuple[Tensor, ...] | None, axes: tuple[int | None, ...] | None) -> tuple[Lines, ...] | None:
    """What the rows, and what the columns of a map reach; of anything else, its farthest element."""
    if reach is None or reach[0].numel() == 0:
        return None
    with _disable_current_modes():  # what is computed here is none of the network's
        return _lines_of(reach, axes)


def _lines_of(reach: tuple[Tensor, ...], axes: tuple[int | None, ...] | None) -> tuple[Lines, ...] | None:
    lines = []
    sides = list(zip(reach[::2], reach[1::2], strict=True))
    for kept, (first, last) in zip(axes or (None,) * len(sides), sides, strict=True):
        if kept is not None:
            lines.append((-_largest(first, kept), _largest(last, kept)))
        else:
            for dim in range(first.ndim):
                if first.stride(dim) == last.stride(dim) == 0:  # expanded: all the same
                    first, last = first.narrow(dim, 0, 1), last.narrow(dim, 0, 1)
            farthest = (first + last).flatten().argmax()
            lines.append((-first.reshape(-1)[farthest][None], last.reshape(-1)[farthest][None]))
    if not bool(torch.isfinite(lines[0][0]).any()):
        return None
    return tuple(lines)


def _largest(side: Tensor, kept: int) -> Tensor:
    side = over_channels(side) if kept != 1 else side
    for dim in range(side.ndim):
        if dim != kept and side.stride(dim) == 0:
            side = side.narrow(dim, 0, 1)
    # One dimension after the other, the last one first: many times faster than all at once.
    for dim in reversed(range(side.ndim)):
        if dim != kept and side.shape[dim] > 1:
            side = side.amax(dim, keepdim=True)
    return side.flatten()


def _function(name: str) -> str:
    """The name of the function that a user calls for an operation."""
    if name in calls.CONVOLUTIONS:
        return "conv"
    if name in calls.ATTENTIONS:
        return "scaled_dot_product_attention"
    return _FUNCTIONS.get(name, name.strip("_"))


_FUNCTIONS = {
    "torchvision::deform_conv2d": "deform_conv2d",
    "max_pool2d_with_indices": "max_pool2d",
    "addmm": "linear",
    "mm": "linear",
}
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
