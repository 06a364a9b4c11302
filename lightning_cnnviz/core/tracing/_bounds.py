"""Bounds: how far the box of input pixels reaches that each element of a tensor can depend on, and how to join them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_cnnviz.core.tracing.calls import Call

__all__ = [
    "NOTHING",
    "Bounds",
    "Step",
    "TensorBounds",
    "compact",
    "each",
    "everything",
    "nothing",
    "over_channels",
    "remember_over_channels",
    "thin",
    "union",
]

Bounds = tuple[Tensor, ...]
"""How far each element's box reaches: -top, bottom, -left, right, signed so that a union is a maximum.

Of volumes, -front and back come first. All have the shape of the tensor that they belong to (mostly as expanded views
without memory of their own); they are `NOTHING` for an element that depends on no pixel.
"""
NOTHING = -math.inf


def each(transform: Callable[[Tensor], Tensor], bounds: Bounds) -> Bounds:
    """Apply the same to all sides."""
    return tuple(transform(side) for side in bounds)


def nothing(shape: Sequence[int], sides: int) -> Bounds:
    """Bounds of a tensor that depends on no pixel."""
    return (torch.full((1,) * len(shape), NOTHING).expand(tuple(shape)),) * sides


def compact(bounds: Bounds, dims: Sequence[int]) -> Bounds:
    """Cut dimensions along which all values are one (expanded views) to length one."""
    for dim in dims:
        if all(b.shape[dim] > 1 and b.stride(dim) == 0 for b in bounds):
            bounds = each(lambda b, dim=dim: b.narrow(dim, 0, 1), bounds)  # type: ignore[misc]
    return bounds


def over_channels(side: Tensor) -> Tensor:
    """The farthest of all channels, `(N, 1, H, W)`; reckoned once a tensor, since layers in a row pass the same on."""
    known = getattr(side, "_over_channels", None)
    if known is None and side.shape[1] == 0:
        return side.new_full((1,) * side.ndim, NOTHING).expand(side.shape[0], 1, *side.shape[2:])
    if known is None:
        known = side[:, :1] if side.shape[1] == 1 or side.stride(1) == 0 else thin(side).amax(1, keepdim=True)
        known = known.expand(side.shape[0], 1, *side.shape[2:])
        remember_over_channels(side, known)
    result: Tensor = known
    return result


def remember_over_channels(side: Tensor, farthest: Tensor) -> None:
    """Tell `over_channels` what it would reckon."""
    side._over_channels = farthest  # type: ignore[attr-defined]


def union(many: Sequence[Bounds], shape: Sequence[int]) -> Bounds:
    """The element-wise union of bounds that broadcast to `shape`, without filling expanded dimensions."""
    shape = tuple(shape)
    if len(many) == 1:
        return each(lambda b: b if b.shape == shape else b.expand(shape), many[0])
    sides = []
    for side in range(len(many[0])):
        parts = [bounds[side].expand(shape) for bounds in many]
        for dim in range(len(shape)):
            if all(part.stride(dim) == 0 for part in parts) and shape[dim] > 1:
                parts = [part.narrow(dim, 0, 1) for part in parts]
        total = parts[0]
        for part in parts[1:]:
            total = torch.maximum(total, part)
        sides.append(total.expand(shape))
    return tuple(sides)


def everything(many: Iterable[Bounds], tensor: Tensor) -> Bounds:
    """Bounds of a tensor each of whose elements depends on all that any of `many` reaches."""
    many = list(many)
    if tensor.numel() == 0:
        return nothing(tensor.shape, len(many[0]))
    reach = [torch.stack([thin(bounds[side]).amax() for bounds in many if bounds[side].numel()]).amax()
             for side in range(len(many[0]))]  # fmt: skip
    return each(lambda b: b.expand(tensor.shape), tuple(reach))


def thin(b: Tensor) -> Tensor:
    """Cut channels, rows or columns that are all the same (expanded views) to one."""
    for dim in range(b.ndim):
        if b.shape[dim] > 1 and b.stride(dim) == 0:
            b = b.narrow(dim, 0, 1)
    return b


@dataclass(eq=False)
class Step(Call):
    """An operation that has run.

    Attributes:
        outputs: What it has returned.
        given: The bounds of the inputs that depend on the image, by the identity of the tensor.
    """

    outputs: list[Tensor]
    given: dict[int, Bounds]

    def bounds(self, tensor: Tensor) -> Bounds:
        """The bounds of an input; those of a constant reach nothing."""
        bounds = self.given.get(id(tensor))
        return nothing(tensor.shape, self.sides) if bounds is None else bounds

    @property
    def sides(self) -> int:
        """How many numbers bounds are: two for each axis of the image."""
        return len(next(iter(self.given.values())))

    @property
    def writes_only_itself(self) -> bool:
        """Whether it writes in place into the one tensor that depends on the image."""
        return self.operator.in_place and set(self.given) == {id(tensor) for tensor in self.outputs}


class TensorBounds:
    """The bounds of the tensors that are alive; of those that were written to, by their place in memory."""

    def __init__(self) -> None:
        self._own, self._written = WeakTensorKeyDictionary(), dict[int, _Memory]()
        # Whether the last operation could not be followed, and was taken to depend on all of its inputs.
        self.estimated = False

    def get(self, tensor: Tensor) -> Bounds | None:
        """Return the bounds of a tensor; None where it depends on no pixel."""
        memory = self._written.get(_address(tensor)) if self._written else None
        bounds: Bounds | None = self._own.get(tensor) if memory is None else memory.read(tensor)
        return bounds

    def set(self, tensor: Tensor, bounds: Bounds) -> None:
        """Give a new tensor its bounds."""
        self._own[tensor] = bounds

    def write(self, tensor: Tensor, bounds: Bounds) -> None:
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
        self._one: tuple[_View, Bounds] | None = None
        self._places: Bounds | None = None

    def write(self, tensor: Tensor, bounds: Bounds) -> None:
        view = _view(tensor)
        if self._places is None and (self._one is None or self._one[0] == view):
            self._one = (view, bounds)
            return
        for places, side in zip(self._spread(len(bounds)), bounds, strict=True):
            if tensor.element_size() == self._itemsize:
                _put(places, view, side)
            else:
                places.clamp_(min=float(side.amax()))

    def read(self, tensor: Tensor) -> Bounds:
        view = _view(tensor)
        if self._places is None and self._one is not None and self._one[0] == view:
            return self._one[1]
        if tensor.element_size() != self._itemsize:
            return everything([self._spread()], tensor)
        return each(lambda places: places.as_strided(*view).clone(), self._spread())

    def _spread(self, sides: int = 0) -> Bounds:
        if self._places is None:
            length = self._storage.nbytes() // self._itemsize
            sides = sides if self._one is None else len(self._one[1])
            self._places = tuple(torch.full((length,), NOTHING) for _ in range(sides))
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
