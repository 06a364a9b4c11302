"""Where in a tensor the image's rows and columns lie: in (N, C, H, W), (N, H, W, C), windows or tokens.

Each dimension of a tensor is a product of factors that come from the image's rows, its columns, or its channels. A
permutation moves dimensions, a view takes factors together or apart, attention keeps the places of its queries. So a
map's layout is known by where it comes from, and not guessed from its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import Call, OperationReader, Operator, input_tensors, tensors_in

__all__ = ["LayoutReader", "Layouts", "is_channels_last"]

_Dim = tuple[tuple[str, int], ...]
"""Factors of a dimension's length, the outermost first: what they count and how many; none of a dimension of one."""
_Layout = tuple[_Dim, ...]
_DEPTHS, _ROWS, _COLUMNS, _CHANNELS, _UNKNOWN = "depths", "rows", "columns", "channels", "?"
# What counts along the axes of space, by how many there are.
_AXES = {1: (_COLUMNS,), 2: (_ROWS, _COLUMNS), 3: (_DEPTHS, _ROWS, _COLUMNS)}


class Layouts:
    """The layouts of the tensors of a pass that are alive, as far as they are known."""

    def __init__(self, image: Tensor) -> None:
        """Begin at an image `(N, C, H, W)`, a signal `(N, C, L)`, whose samples count as columns, or a volume."""
        self._known, self._signal = WeakTensorKeyDictionary(), image.ndim == 3
        self._axes = _AXES[image.ndim - 2]
        names = (_UNKNOWN, _CHANNELS, *self._axes)
        self._known[image] = tuple(_of(name, size) for name, size in zip(names, image.shape, strict=True))

    def before(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[Any], None]:
        """Look at what an operation is given, before it changes it; returns what is to be called with its results."""
        given = {id(tensor): layout for tensor in input_tensors(operator, args, kwargs)
                 if (layout := self._known.get(tensor)) is not None}  # fmt: skip
        if not given:
            return _ignore
        dependent = [tensor for tensor in input_tensors(operator, args, kwargs) if id(tensor) in given]
        call = Call(operator, args, kwargs, dependent)
        rule = _RULES.get(operator.name, _same_dimensions)

        def after(result: Any) -> None:
            for tensor in tensors_in(result):
                layout = rule(call, given, tuple(tensor.shape))
                if layout is not None and len(layout) == tensor.ndim:
                    self._known[tensor] = layout

        return after

    def axes(self, maps: Tensor, *, channels_last: bool = False) -> tuple[int | None, ...] | None:
        """Return which dimensions are rows and columns, where they are two; if not known, as it is said of four.

        Maps `(N, C, L)` or `(N, L, C)` of a signal have columns alone; of a volume, its depths come first.
        """
        if len(self._axes) == 3:
            return self._axes_of_volume(maps, channels_last)
        layout: _Layout | None = self._known.get(maps)
        if layout is not None:
            rows, columns = _place(layout, _ROWS), _place(layout, _COLUMNS)
            if rows is not None and columns is not None and min(rows, columns) >= 0 and rows != columns:
                return rows, columns
            if self._signal and maps.ndim == 3 and columns is not None:
                return (None, columns) if columns >= 0 else None
        if self._signal and maps.ndim == 3:
            return None, 1 if channels_last else 2
        if maps.ndim != 4:
            return None
        known = self.is_channels_last(maps)
        return (1, 2) if (channels_last if known is None else known) else (2, 3)

    def _axes_of_volume(self, maps: Tensor, channels_last: bool) -> tuple[int | None, ...] | None:
        layout: _Layout | None = self._known.get(maps)
        if layout is not None:
            places = [_place(layout, wanted) for wanted in self._axes]
            if None not in places and min(place or 0 for place in places) >= 0 and len(set(places)) == 3:
                return tuple(places)
        if maps.ndim != 5:
            return None
        known = self.is_channels_last(maps)
        return (1, 2, 3) if (channels_last if known is None else known) else (2, 3, 4)

    def is_channels_last(self, maps: Tensor) -> bool | None:
        """Return whether maps of four dimensions are `(N, H, W, C)` or `(N, C, H, W)`; None where that is not known.

        Those of signals have three dimensions, of volumes five. It is not known where they are neither, and of maps of
        one position.
        """
        layout: _Layout | None = self._known.get(maps)
        if layout is None or len(layout) != len(self._axes) + 2:
            return None
        found = [_place(layout, wanted) for wanted in self._axes]
        for last, first in ((False, 2), (True, 1)):
            places = range(first, first + len(found))
            alike = all(place in (None, wanted) for place, wanted in zip(found, places, strict=True))
            if alike and found != [None] * len(found):
                return last
        return None


class LayoutReader(OperationReader):
    """Follows layouts through everything that is computed while it is active."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.layouts = Layouts(image)

    @override
    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        after = self.layouts.before(operator, args, kwargs)
        result = operator.func(*args, **kwargs)
        after(result)
        return result


def is_channels_last(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Guess whether maps of a shape are `(N, H, W, C)`, as transformers have them, and not `(N, C, H, W)`.

    For maps that could not be followed from the image, see `Layouts`: rows and columns are told from channels by their
    proportion, which is the image's.

    Example:
        >>> is_channels_last((1, 7, 7, 768), (224, 224)), is_channels_last((1, 768, 7, 7), (224, 224))
        (True, False)
    """
    _, first, second, third = (max(size, 1) for size in shape)
    wanted = math.log(image[0] / image[1])
    return abs(math.log(first / second) - wanted) < abs(math.log(second / third) - wanted)


def _ignore(_result: Any) -> None:
    return None


def _of(name: str, size: int) -> _Dim:
    return ((name, size),) if size > 1 else ()


def _names(dim: _Dim) -> set[str]:
    return {name for name, _ in dim}


def _place(layout: _Layout, wanted: str) -> int | None:
    """The one dimension that counts this and nothing else; None where it has length one, -1 where there is none."""
    own = [place for place, dim in enumerate(layout) if wanted in _names(dim)]
    if not own:
        return None
    return own[0] if len(own) == 1 and len(_names(layout[own[0]])) == 1 else -1


def _resized(dim: _Dim, size: int) -> _Dim:
    """A dimension that has grown or shrunk still counts the same."""
    if math.prod(count for _, count in dim) == size:
        return dim
    names = _names(dim)
    return _of(names.pop() if len(names) == 1 else _UNKNOWN, size)


_Given = dict[int, _Layout]
_Rule = Callable[[Call, _Given, tuple[int, ...]], "_Layout | None"]


def _same_dimensions(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    """Most operations keep the dimensions: convolutions, pooling, slices, norms, sums, also where maps broadcast."""
    made: list[_Dim] = [()] * len(shape)
    for tensor in call.dependent:
        layout = given[id(tensor)]
        if len(layout) > len(shape):
            return None
        for place, dim in zip(range(len(shape) - len(layout), len(shape)), layout, strict=True):
            if not made[place] and dim:
                made[place] = _resized(dim, shape[place])
    return tuple(dim or _of(_UNKNOWN, size) for dim, size in zip(made, shape, strict=True))


def _first(call: Call, given: _Given) -> _Layout:
    return given[id(call.dependent[0])]


def _view(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    factors = [factor for dim in _first(call, given) for factor in _merged(dim)]
    made = []
    for size in shape:
        dim: list[tuple[str, int]] = []
        while size > 1:
            if not factors:
                return None
            name, count = factors.pop(0)
            taken = math.gcd(count, size)
            if taken != min(count, size):
                return None
            if taken < count:
                factors.insert(0, (name, count // taken))
            dim.append((name, taken))
            size //= taken
        made.append(tuple(dim))
    return tuple(made)


def _merged(dim: _Dim) -> _Dim:
    """Neighbors that count the same as one: windows that were put together again can be cut otherwise."""
    made: list[tuple[str, int]] = []
    for name, count in dim:
        if made and made[-1][0] == name:
            made[-1] = (name, made[-1][1] * count)
        else:
            made.append((name, count))
    return tuple(made)


def _permute(call: Call, given: _Given, _shape: tuple[int, ...]) -> _Layout | None:
    layout = _first(call, given)
    return tuple(layout[dim] for dim in call.args[1])


def _transpose(call: Call, given: _Given, _shape: tuple[int, ...]) -> _Layout | None:
    layout = list(_first(call, given))
    one, other = call.args[1:3] if call.name == "transpose" else (0, -1)
    layout[one], layout[other] = layout[other], layout[one]
    return tuple(layout)


def _turned(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    if call.argument("k") % 2 == 0:
        return _same_dimensions(call, given, shape)
    layout = list(_first(call, given))
    one, other = call.argument("dims")
    layout[one], layout[other] = layout[other], layout[one]
    return tuple(layout)


def _without(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    """What takes dimensions away: one that is named, or all of length one."""
    layout = list(_first(call, given))
    if len(layout) == len(shape):
        return _same_dimensions(call, given, shape)
    named = call.argument("dim", 0)
    if named is None or (call.name == "squeeze" and "dim" not in call.operator.places):
        named = [place for place, dim in enumerate(layout) if not dim]
    gone = {dim % len(layout) for dim in ([named] if isinstance(named, int) else named)}
    return tuple(dim for place, dim in enumerate(layout) if place not in gone)


def _unsqueeze(call: Call, given: _Given, _shape: tuple[int, ...]) -> _Layout | None:
    layout = list(_first(call, given))
    layout.insert(call.args[1] % (len(layout) + 1), ())
    return tuple(layout)


def _stack(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    layout = list(_first(call, given))
    place = int(call.argument("dim", 0)) % len(shape)
    layout.insert(place, _of(_UNKNOWN, shape[place]))
    return tuple(layout)


def _product(call: Call, given: _Given, shape: tuple[int, ...]) -> _Layout | None:
    """Rows of the left matrix and columns of the right one; of weights they are channels."""
    left, right = [argument for argument in call.args if isinstance(argument, Tensor)][-2:]
    if right.ndim < 2:
        return None
    lines = given.get(id(left)) or tuple(_of(_CHANNELS, size) for size in left.shape)
    crossing = given.get(id(right)) or tuple(_of(_CHANNELS, size) for size in right.shape)
    made = (*lines[:-1], crossing[-1])
    # In a batch of matrices either may say what the batch is.
    batch = tuple(one or other for one, other in zip(lines[:-2], crossing[:-2], strict=True))
    return (*batch, *made[len(batch) :]) if len(made) == len(shape) else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(calls.RESHAPES, _view),
    "permute": _permute,
    **dict.fromkeys(["transpose", "t"], _transpose),
    "rot90": _turned,
    **dict.fromkeys(["squeeze", "select", "unbind", *sorted(calls.REDUCTIONS)], _without),
    "unsqueeze": _unsqueeze,
    "stack": _stack,
    **dict.fromkeys(calls.MATRIX_PRODUCTS | calls.MATRIX_PRODUCTS_ADDED, _product),
}
