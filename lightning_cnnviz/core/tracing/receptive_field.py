"""A unit and the box of input pixels that it can depend on: exact through branches, and clipped at every layer.

The network is run once on one image while every operation, as torch dispatches it, is followed by the same operation on
four numbers an element: the box of input pixels that the element can depend on. A convolution takes the union over its
window, a sum or a concatenation the union or the pieces, a view moves boxes as it moves values. So there is no table of
module types to outgrow: functional pooling, slices, residual sums and reused modules count as what they do. Boxes are
clipped where the values are, at every layer: where a last stride does not reach the last row, neither does the box
(Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks", Distill 2019, clip at the image).
An operation that is not known here is taken to depend on all of its inputs, so a box may be too large, never too small.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["BoundsMode", "ReceptiveField"]

log = logging.getLogger(__name__)

# How far an element's box reaches: (-top, bottom, -left, right), so that a union is a maximum. All four have the shape
# of the tensor they belong to (mostly as expanded views without memory of their own); -inf where nothing is reached.
_Bounds = tuple[Tensor, Tensor, Tensor, Tensor]
_NOTHING = -math.inf


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The receptive fields of all units of one layer, for one size of input.

    Attributes:
        layer: The layer's name.
        image_size: Height and width of the input in pixels.
        boxes: `(G, H, W, 4)` int16: top, left, bottom, right in pixels, half-open, clipped to the image; G is the
            number of channels, or 1 where all have the same boxes. A unit that depends on no pixel has an empty box.
    """

    layer: str
    image_size: tuple[int, int]
    boxes: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 4 or self.boxes.shape[-1] != 4:
            raise ValueError(f"boxes must be (G, H, W, 4), not {tuple(self.boxes.shape)}")

    def box(self, channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the boxes `(..., 4)` int16 (top, left, bottom, right) of units, given by equally shaped indices."""
        if self.boxes.shape[0] == 1:
            channels = torch.zeros_like(channels)
        return self.boxes[channels, rows, columns]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the largest box."""
        heights, widths = self.boxes[..., 2] - self.boxes[..., 0], self.boxes[..., 3] - self.boxes[..., 1]
        return int(heights.max()), int(widths.max())


@dataclass
class BoundsMode:
    """Follow, through everything that is computed while it is active, the box of input pixels behind each element.

    Example:
        >>> image, conv = torch.zeros(1, 1, 8, 8), torch.nn.Conv2d(1, 1, 3, stride=2)
        >>> bounds = BoundsMode()
        >>> with torch.no_grad(), bounds.follow(image):
        ...     field = bounds.receptive_field("conv", conv(image))
        >>> field.box(torch.tensor(0), torch.tensor(1), torch.tensor(2)).tolist()
        [2, 4, 5, 7]
    """

    _known: _Known = field(default_factory=lambda: _Known(), init=False, repr=False)
    _image_size: tuple[int, int] = field(default=(0, 0), init=False)

    @contextmanager
    def follow(self, image: Tensor) -> Iterator[None]:
        """Follow everything that is computed from `image` `(1, C, H, W)` inside the block.

        Run the network in eval mode and without gradients (see `hooks.analysis_mode`).
        """
        if image.ndim != 4 or image.shape[0] != 1:
            raise ValueError(f"receptive fields are followed for one image (1, C, H, W), not {tuple(image.shape)}")
        height, width = image.shape[-2:]
        self._image_size = (height, width)
        rows = torch.arange(height, dtype=torch.float32).view(1, 1, height, 1).expand(image.shape)
        columns = torch.arange(width, dtype=torch.float32).view(1, 1, 1, width).expand(image.shape)
        self._known.set(image, (-rows, rows, -columns, columns))
        try:
            with _Follower(self._known):
                yield
        finally:
            self._known = _Known()

    def reach(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return -top, bottom, -left and right (both inclusive) of each element's box; None where there is none.

        Each is of the tensor's shape, mostly as an expanded view, and -inf for an element that depends on no pixel.
        """
        return self._known.get(tensor)

    def receptive_field(self, layer: str, output: Tensor) -> ReceptiveField | None:
        """Return the receptive fields of `output`, `(1, C, H, W)` or `(1, C)`; None where it depends on no pixel."""
        bounds = self._known.get(output)
        if bounds is None:
            return None
        if output.ndim == 2:
            bounds = _each(lambda b: b[..., None, None], bounds)
        neg_top, bottom, neg_left, right = (b[0] for b in _compact(bounds, dims=(1,)))
        empty = ~torch.isfinite(bottom)
        if bool(empty.all()):
            return None
        edges = torch.stack([-neg_top, -neg_left, bottom + 1, right + 1], dim=-1)
        boxes = torch.where(empty[..., None], torch.zeros(()), edges).to(torch.int16)
        if boxes.shape[0] > 1 and bool((boxes == boxes[:1]).all()):
            boxes = boxes[:1]
        return ReceptiveField(layer, self._image_size, boxes.clone())


class _Known:
    """The bounds of the tensors that are alive; of those that were written to, by their place in memory."""

    def __init__(self) -> None:
        self._own, self._written = WeakTensorKeyDictionary(), dict[int, _Memory]()

    def get(self, tensor: Tensor) -> _Bounds | None:
        """Return the bounds of a tensor; None where it depends on no pixel."""
        memory = self._written.get(_address(tensor)) if self._written else None
        found: _Bounds | None = self._own.get(tensor) if memory is None else memory.read(tensor)
        return found

    def set(self, tensor: Tensor, bounds: _Bounds) -> None:
        """Give a new tensor its bounds."""
        self._own[tensor] = bounds

    def write(self, tensor: Tensor, bounds: _Bounds) -> None:
        """Give a tensor that was written to its new bounds, and with it whatever shares its memory."""
        address = _address(tensor)
        if address not in self._written:
            self._written[address] = memory = _Memory(tensor)
            for other, before in self._own.items():
                if other is not tensor and _address(other) == address:
                    memory.write(other, before)
        self._written[address].write(tensor, bounds)


class _Memory:
    """The bounds of each place of a piece of memory, kept as those of one tensor as long as there is no other view."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = tensor.untyped_storage()  # kept alive, so that no other can take its address
        self._itemsize = tensor.element_size()
        self._one: tuple[_View, _Bounds] | None = None
        self._places: _Bounds | None = None

    def write(self, tensor: Tensor, bounds: _Bounds) -> None:
        view = _view(tensor)
        if self._places is None and (self._one is None or self._one[0] == view):
            self._one = (view, bounds)
            return
        for places, side in zip(self._spread(), bounds, strict=True):
            if tensor.element_size() == self._itemsize:
                _put(places, view, side)
            else:
                places.clamp_(min=float(side.amax()))

    def read(self, tensor: Tensor) -> _Bounds:
        view = _view(tensor)
        if self._places is None and self._one is not None and self._one[0] == view:
            return self._one[1]
        if tensor.element_size() != self._itemsize:
            return _whole([self._spread()], tensor)
        return _each(lambda places: places.as_strided(*view).clone(), self._spread())

    def _spread(self) -> _Bounds:
        if self._places is None:
            length = self._storage.nbytes() // self._itemsize
            first, second, third, fourth = (torch.full((length,), _NOTHING) for _ in range(4))
            self._places = (first, second, third, fourth)
            if self._one is not None:
                for places, side in zip(self._places, self._one[1], strict=True):
                    _put(places, self._one[0], side)
        return self._places


_View = tuple[tuple[int, ...], tuple[int, ...], int]


def _view(tensor: Tensor) -> _View:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _put(places: Tensor, view: _View, side: Tensor) -> None:
    places = places.as_strided(*view)
    for dim, step in enumerate(view[1]):
        if step == 0:  # expanded
            places, side = places.narrow(dim, 0, 1), side.narrow(dim, 0, 1)
    places.copy_(side)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Follower(TorchDispatchMode):
    """Runs each operation, then its rule on the boxes."""

    def __init__(self, known: _Known) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {id(tensor): bounds for tensor in inputs if (bounds := self._known.get(tensor)) is not None}
        if known:
            self._propagate(func, args, kwargs, known, output)
        return output

    def _propagate(self, func: Any, args: Any, kwargs: Any, known: dict[int, _Bounds], output: Any) -> None:
        name = func.name().removeprefix("aten::").split(".")[0]
        in_place = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if in_place else name
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        rule = _RULES.get(name)
        if rule is None and (torch.Tag.pointwise in func.tags or name in _POINTWISE):
            rule = _pointwise
        only_itself = in_place and set(known) == {id(tensor) for tensor in outputs}
        if name in _CONSTANT or (name in _FILLED and only_itself):
            rule = _fresh
        elif only_itself and rule is _pointwise:
            return
        results = rule(_Call(func, args, kwargs, outputs, known)) if rule is not None else None
        if results is None or len(results) != len(outputs):
            log.debug("receptive field: %s is taken to depend on all of its inputs", func)
            results = [_whole(known.values(), tensor) for tensor in outputs]
        written = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
        for tensor, bounds in zip(outputs, results, strict=True):
            (self._known.write if written else self._known.set)(tensor, bounds)


@dataclass
class _Call:
    """One dispatched operation: what went in, what came out, and the bounds of the inputs that have any (by id)."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    known: dict[int, _Bounds]

    def bounds(self, tensor: Tensor) -> _Bounds:
        """The bounds of an input; those of a constant reach nothing."""
        found = self.known.get(id(tensor))
        return _constant(tensor.shape) if found is None else found

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
        return len(self.known) == 1 and isinstance(self.args[0], Tensor) and id(self.args[0]) in self.known


_Rule = Callable[[_Call], "list[_Bounds] | None"]


def _each(transform: Callable[[Tensor], Tensor], bounds: _Bounds) -> _Bounds:
    first, second, third, fourth = bounds
    return transform(first), transform(second), transform(third), transform(fourth)


def _constant(shape: Sequence[int]) -> _Bounds:
    nothing = torch.full((1,) * len(shape), _NOTHING).expand(tuple(shape))
    return nothing, nothing, nothing, nothing


def _compact(bounds: _Bounds, dims: Sequence[int]) -> _Bounds:
    """Cut dimensions along which all values are one (expanded views) to length one."""
    for dim in dims:
        if all(b.shape[dim] > 1 and b.stride(dim) == 0 for b in bounds):
            bounds = _each(lambda b, dim=dim: b.narrow(dim, 0, 1), bounds)  # type: ignore[misc]
    return bounds


def _union(many: Sequence[_Bounds], shape: Sequence[int]) -> _Bounds:
    """The element-wise union of bounds that broadcast to `shape`, without filling expanded dimensions."""
    shape = tuple(shape)
    if len(many) == 1:
        return _each(lambda b: b.expand(shape), many[0])
    sides = []
    for side in range(4):
        parts = [bounds[side].expand(shape) for bounds in many]
        for dim in range(len(shape)):
            if all(part.stride(dim) == 0 for part in parts) and shape[dim] > 1:
                parts = [part.narrow(dim, 0, 1) for part in parts]
        total = parts[0]
        for part in parts[1:]:
            total = torch.maximum(total, part)
        sides.append(total.expand(shape))
    return sides[0], sides[1], sides[2], sides[3]


def _whole(many: Any, tensor: Tensor) -> _Bounds:
    """Every element depends on everything that any input depends on."""
    if tensor.numel() == 0:
        return _constant(tensor.shape)
    reach = [torch.stack([_thin(bounds[side]).amax() for bounds in many if bounds[side].numel()]).amax()
             for side in range(4)]  # fmt: skip
    return _each(lambda b: b.expand(tensor.shape), (reach[0], reach[1], reach[2], reach[3]))


def _pointwise(call: _Call) -> list[_Bounds] | None:
    shape = call.outputs[0].shape
    return [_union(list(call.known.values()), shape) for _ in call.outputs]


def _first_as_it_is(call: _Call) -> list[_Bounds] | None:
    return [call.bounds(call.args[0])] if call.only_first else None


def _moved(call: _Call) -> list[_Bounds] | None:
    """Operations that move values about without mixing them are run on the boxes themselves."""
    if not call.only_first:
        return None
    # Boxes are expanded views, which cannot always be viewed anew.
    move = torch.reshape if "view" in str(call.func) else call.func
    if any(isinstance(argument, torch.dtype) for argument in call.args):
        return None  # a view of the same memory as other numbers
    # Boxes lie on the CPU, and in-place moves (unsqueeze_) must not move those of the input.
    args = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(call.args[1:]))
    sides = [tree_leaves(move(b.expand(b.shape), *args, **call.kwargs)) for b in call.bounds(call.args[0])]
    return [(a, b, c, d) for a, b, c, d in zip(*sides, strict=True)]


def _fresh(call: _Call) -> list[_Bounds] | None:
    return [_constant(tensor.shape) for tensor in call.outputs]


def _copied(call: _Call) -> list[_Bounds] | None:
    return [_union([call.bounds(call.args[1])], call.outputs[0].shape)]


def _joined(call: _Call) -> list[_Bounds] | None:
    """Concatenate or stack: pieces that do not depend on the image reach nothing."""
    pieces = [call.bounds(tensor) for tensor in call.args[0]]
    shape = call.outputs[0].shape
    along = int(call.argument("dim", 0)) % len(shape)

    def run(side: int) -> Tensor:
        parts = [piece[side] for piece in pieces]
        if len({part.shape[:along] + part.shape[along + 1 :] for part in parts}) == 1 and parts[0].ndim == len(shape):
            # Where all pieces are constant along a dimension, so is the whole.
            for dim in range(len(shape)):
                if dim != along and shape[dim] > 1 and all(part.stride(dim) == 0 for part in parts):
                    parts = [part.narrow(dim, 0, 1) for part in parts]
        joined: Tensor = call.func(parts, *call.args[1:], **call.kwargs)
        return joined.expand(shape)

    return [(run(0), run(1), run(2), run(3))]


def _padded(call: _Call) -> list[_Bounds] | None:
    pad = call.args[1]
    return [_each(lambda b: F.pad(b, pad, value=_NOTHING), call.bounds(call.args[0]))]


def _reduced(call: _Call) -> list[_Bounds] | None:
    """Sums, means, norms, extrema over dimensions."""
    if call.argument("other") is not None:
        return _pointwise(call)
    if not call.only_first:
        return None
    bounds = call.bounds(call.args[0])
    dims = call.argument("dim")
    keep = bool(call.argument("keepdim", False))
    ndim = bounds[0].ndim
    chosen = list(range(ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    reach = _each(lambda b: b.amax(dim=chosen, keepdim=keep), bounds)
    if any(tensor.shape != reach[0].shape for tensor in call.outputs):
        return None
    return [reach for _ in call.outputs]


def _mixed_along(call: _Call) -> list[_Bounds] | None:
    """Softmax and running sums: every element of a line depends on the whole line."""
    if not call.only_first:
        return None
    dim = call.args[1]
    return [_each(lambda b: b.amax(dim, keepdim=True).expand(b.shape), call.bounds(call.args[0]))]


def _layer_norm(call: _Call) -> list[_Bounds] | None:
    if not call.only_first:
        return None
    dims = tuple(range(-len(call.args[1]), 0))
    mixed = _each(lambda b: b.amax(dims, keepdim=True).expand(b.shape), call.bounds(call.args[0]))
    return [_union([mixed], tensor.shape) if tensor.shape == mixed[0].shape else _whole([mixed], tensor)
            for tensor in call.outputs]  # fmt: skip


def _group_norm(call: _Call) -> list[_Bounds] | None:
    if not call.only_first:
        return None
    groups = int(call.argument("group"))

    def mix(b: Tensor) -> Tensor:
        batch, channels = b.shape[:2]
        reach = b.reshape(batch, groups, -1).amax(2, keepdim=True)
        return (
            reach.expand(batch, groups, channels // groups).reshape(batch, channels, *[1] * (b.ndim - 2)).expand_as(b)
        )

    mixed = _each(mix, call.bounds(call.args[0]))
    return [mixed, *[_whole([mixed], tensor) for tensor in call.outputs[1:]]]


def _batch_norm(call: _Call) -> list[_Bounds] | None:
    if not call.only_first:
        return None
    same = call.bounds(call.args[0])
    if call.argument("training", False):
        # Instance norm, and BatchNorm by batch statistics, mix everything of a channel.
        dims = [dim for dim in range(same[0].ndim) if dim != 1]
        same = _each(lambda b: b.amax(dims, keepdim=True).expand(b.shape), same)
    return [same if tensor.shape == same[0].shape else _whole([same], tensor) for tensor in call.outputs]


def _matmul(call: _Call) -> list[_Bounds] | None:
    left, right = (argument for argument in call.args if isinstance(argument, Tensor))
    return _product(call, left, right)


def _addmm(call: _Call) -> list[_Bounds] | None:
    product = _product(call, call.args[1], call.args[2])
    return [_union([call.bounds(call.args[0]), *product], call.outputs[0].shape)]


def _product(call: _Call, left: Tensor, right: Tensor) -> list[_Bounds]:
    if right.ndim < 2:
        return [_whole(call.known.values(), call.outputs[0])]
    # Weights are large and reach nothing: only what depends on the image is looked at.
    reach = []
    if id(left) in call.known:
        reach.append(_each(lambda b: b.amax(-1, keepdim=True), call.bounds(left)))
    if id(right) in call.known:
        reach.append(_each(lambda b: b.amax(-2, keepdim=True), call.bounds(right)))
    return [_union(reach, call.outputs[0].shape)] if reach else []


def _linear(call: _Call) -> list[_Bounds] | None:
    if not call.only_first:
        return None
    return [_each(lambda b: b.amax(-1, keepdim=True).expand(call.outputs[0].shape), call.bounds(call.args[0]))]


def _convolution(call: _Call) -> list[_Bounds] | None:
    weight = call.args[1]
    if not call.only_first or call.args[0].ndim != 4:
        return None
    stride, padding, dilation = (_pair(call.argument(name)) for name in ("stride", "padding", "dilation"))
    groups, out = int(call.argument("groups")), call.outputs[0]
    kernel = (weight.shape[-2], weight.shape[-1])

    def run(b: Tensor) -> Tensor:
        size = b.shape[2:]
        if b.stride(1) == 0:
            b = b[:, :1]
        else:
            b = _thin(b)
            b = b.reshape(len(b), groups, -1, *b.shape[2:]).amax(2).expand(-1, -1, *size)
        if call.argument("transposed"):
            b = _transposed_window(b, kernel, stride, padding, dilation, out.shape[-2:])
        else:
            b = _window(b, kernel, stride, padding, dilation, out.shape[-2:])
        if b.shape[1] > 1:
            b = _thin(b).repeat_interleave(out.shape[1] // groups, dim=1)
        return b.expand(out.shape)

    return [_each(run, call.bounds(call.args[0]))]


def _pool(call: _Call) -> list[_Bounds] | None:
    if call.args[0].ndim != 4:
        return None
    kernel, padding = _pair(call.argument("kernel_size")), _pair(call.argument("padding"))
    stride, dilation = _pair(call.argument("stride") or kernel), _pair(call.argument("dilation", 1))
    out = call.outputs[0]

    def run(b: Tensor) -> Tensor:
        b = b[:, :1] if b.stride(1) == 0 else b
        return _window(b, kernel, stride, padding, dilation, out.shape[-2:]).expand(out.shape)

    return [_each(run, call.bounds(call.args[0])) for _ in call.outputs]


def _pool_3d(call: _Call) -> list[_Bounds] | None:
    """Averages over neighboring feature maps, in local response normalization."""
    if call.args[0].ndim != 5:
        return None
    kernel = call.argument("kernel_size")
    stride, padding = call.argument("stride") or kernel, call.argument("padding")
    ceil = bool(call.argument("ceil_mode"))
    return [_each(lambda b: F.max_pool3d(b, kernel, stride, padding, ceil_mode=ceil), call.bounds(call.args[0]))]


def _adaptive_pool(call: _Call) -> list[_Bounds] | None:
    out = call.outputs[0]

    def run(b: Tensor) -> Tensor:
        for dim, bins in ((-2, out.shape[-2]), (-1, out.shape[-1])):
            size = b.shape[dim]
            pieces = [
                b.narrow(dim, (i * size) // bins, -((-(i + 1) * size) // bins) - (i * size) // bins).amax(dim)
                for i in range(bins)
            ]
            b = torch.stack(pieces, dim)
        return b

    return [_each(run, call.bounds(call.args[0])) for _ in call.outputs]


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


_Pair = tuple[int, int]


def _window(b: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair, out: Sequence[int]) -> Tensor:
    """The maximum over each window of a convolution or pooling whose output is `out` high and wide."""
    size = b.shape[2:]
    # Rows mostly reach the same rows in every column: then it is enough to look at one column.
    same = [b.stride(2 + axis) == 0 and size[axis] > 1 for axis in (0, 1)]
    b, channels = _distinct(_thin(b))
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
        b = F.pad(b, (0, 0, *pad) if axis == 0 else (*pad, 0, 0), value=_NOTHING)
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


def _thin(b: Tensor) -> Tensor:
    """Cut channels, rows or columns that are all the same (expanded views) to one."""
    for dim in range(b.ndim):
        if b.shape[dim] > 1 and b.stride(dim) == 0:
            b = b.narrow(dim, 0, 1)
    return b


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
    spread = b.new_full((*b.shape[:2], (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1), _NOTHING)
    spread[..., :: stride[0], :: stride[1]] = b
    margin = (dilation[0] * (kernel[0] - 1) - padding[0], dilation[1] * (kernel[1] - 1) - padding[1])
    return _window(spread, kernel, (1, 1), margin, dilation, out)


def _interpolated(call: _Call) -> list[_Bounds] | None:
    """Bilinear enlargement: run on one-hot rows, an output row depends on the input rows with weight."""
    if not call.only_first:
        return None
    out = call.outputs[0]
    source = call.args[0]

    def taps(axis: int) -> Tensor:
        """Which input rows (or columns) each output row reads, `(out, in)`: seen on one one-hot image a row."""
        size = source.shape[axis]
        probe = torch.eye(size, dtype=torch.float64).view(1, size, *((size, 1) if axis == 2 else (1, size)))
        made: Tensor = call.func(probe, *call.args[1:], **call.kwargs)
        return ((made[0, :, :, 0] if axis == 2 else made[0, :, 0, :]) != 0).T

    used_rows, used_columns = taps(2), taps(3)

    def run(b: Tensor) -> Tensor:
        b = b[:, :1] if b.stride(1) == 0 else b
        pieces = [b[:, :, used].amax(2) for used in used_rows]
        b = torch.stack(pieces, 2)
        pieces = [b[:, :, :, used].amax(3) for used in used_columns]
        return torch.stack(pieces, 3).expand(out.shape)

    return [_each(run, call.bounds(source))]


# Results that do not depend on the values that went in.
_CONSTANT = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_strided"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    ]
)
# Likewise in place, where what a tensor is filled with does not depend on the image.
_FILLED = frozenset(["zero", "fill", "bernoulli", "normal", "uniform"])
# Element-wise in effect, though not tagged so.
_POINTWISE = frozenset(
    ["hardswish", "hardtanh", "leaky_relu", "native_dropout", "rrelu_with_noise", "_prelu_kernel", "prelu", "threshold"]
)
_SAME = ["clone", "_to_copy", "detach", "alias", "contiguous", "lift_fresh", "dropout"]
_MOVED = [
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "movedim", "swapaxes"),
    *("slice", "select", "narrow", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk", "unbind"),
    *("expand", "unsqueeze", "squeeze", "repeat", "flip", "roll", "index", "index_select", "diagonal", "unfold"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "_upsample_nearest_exact2d"),
]
_REDUCED = [
    *("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all"),
    *("var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm"),
]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SAME, _first_as_it_is),
    **dict.fromkeys(_MOVED, _moved),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys(["cat", "stack"], _joined),
    **dict.fromkeys(["_softmax", "_log_softmax", "cumsum"], _mixed_along),
    **dict.fromkeys(["native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update"], _batch_norm),
    **dict.fromkeys(["_native_batch_norm_legit_no_training", "_batch_norm_no_update"], _batch_norm),
    **dict.fromkeys(["mm", "bmm", "matmul"], _matmul),
    **dict.fromkeys(["addmm"], _addmm),
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d"], _pool),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"], _adaptive_pool),
    **dict.fromkeys(["convolution", "cudnn_convolution", "mkldnn_convolution"], _convolution),
    **dict.fromkeys(["upsample_bilinear2d", "upsample_bicubic2d"], _interpolated),
    **dict.fromkeys(["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"], _interpolated),
    "avg_pool3d": _pool_3d,
    "constant_pad_nd": _padded,
    "copy": _copied,
    "linear": _linear,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
}
