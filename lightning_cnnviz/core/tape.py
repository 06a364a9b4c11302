"""What a forward pass computes from the image, operation by operation, and each operation's way back to the pixels.

A pass is recorded as torch dispatches it, so every spelling of a ReLU (module, function, method, in place) is one and
the same operation, a module that runs twice is there twice, and branches, sums and concatenations are what they are.

Going back, a signal lives in a window: the part of a feature map that a unit can depend on. All units of a layer have
windows of one size, at places of their own, and go back together. Where a window no longer makes sense (squeeze-excite,
attention, linear layers) the signal is widened to the whole map, and an operation without a rule of its own goes back
by autograd.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Method", "ProjectionError", "Seed", "Tape"]

log = logging.getLogger(__name__)

Method = Literal["deconvnet", "guided", "gradient"]


class ProjectionError(ValueError):
    """The network computes something that cannot be followed back to the pixels."""


class Window(NamedTuple):
    """Where the signals of a layer's units lie: that of a unit in row r begins at row `jump * r + offset`."""

    jump: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Signal:
    """What has come back to one value of the network, for U units.

    Attributes:
        values: `(U, ..., h, w)` inside a window, else `(U, ...)` in the value's own shape without its batch.
        window: Where it lies; None for the whole value.
    """

    values: Tensor
    window: Window | None


@dataclass(frozen=True, eq=False)
class Seed:
    """Units of one layer, all strength one.

    Attributes:
        slots: `(U,)` int64, whose image of the recorded batch each belongs to.
        channels: `(U,)` int64.
        rows: `(U,)` int64.
        columns: `(U,)` int64.
    """

    slots: Tensor
    channels: Tensor
    rows: Tensor
    columns: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, chosen: slice) -> Seed:
        """Some of the units."""
        return Seed(self.slots[chosen], self.channels[chosen], self.rows[chosen], self.columns[chosen])

    def starts(self, window: Window) -> tuple[Tensor, Tensor]:
        """First row and column of each unit's window, `(U,)` each."""
        (down, right), (top, left) = window
        return self.rows * down + top, self.columns * right + left


class _Rule:
    """How one operation goes back.

    Attributes:
        needs_data: Whether it needs what the forward pass has computed, and not weights alone.
        rectifies: Whether it is a nonlinearity that a deconvnet rectifies at.
        windowed: Whether it can be followed inside a window.
        many: Whether all its outputs count, and not the first alone.
        made: What the operation returns, where the rule has run it.
    """

    needs_data = False
    rectifies = False
    windowed = True
    many = False
    made: Any = None

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        """The signals of the node's inputs, from those of its outputs (None where none has come)."""
        raise NotImplementedError


@dataclass(eq=False)
class _Node:
    name: str
    rule: _Rule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes_in: tuple[tuple[int, ...], ...]
    shapes_out: tuple[tuple[int, ...], ...]


class Tape:
    """Records a forward pass over a batch of images, and takes units of its layers back to the pixels.

    Example:
        >>> images, conv = torch.rand(2, 1, 8, 8), torch.nn.Conv2d(1, 1, 3)
        >>> tape = Tape("deconvnet")
        >>> with torch.no_grad(), tape.record(images):
        ...     tape.mark("conv", torch.relu(conv(images)))
        >>> zero = torch.tensor([0])
        >>> pixels, (top, left) = tape.project("conv", Seed(torch.tensor([1]), zero, zero + 2, zero + 4))
        >>> torch.equal(pixels[0], conv.weight[0]), top.tolist(), left.tolist()
        (True, [2], [4])

    Args:
        method: What happens at a nonlinearity, see `core.deconvnet.project`.
    """

    def __init__(self, method: Method) -> None:
        self.method: Method = method
        self.marked: dict[str, int] = {}
        self._nodes: list[_Node] = []
        self._shapes: list[tuple[int, ...]] = []
        self._recorder: _Recorder | None = None
        self._batch, self._device, self._dtype = 0, torch.device("cpu"), torch.float32

    @contextmanager
    def record(self, images: Tensor) -> Iterator[None]:
        """Record everything that is computed from `images` `(N, C, H, W)` inside the block.

        Run the network in eval mode and without gradients (see `capture.analysis_mode`).
        """
        self._batch, self._device = len(images), images.device
        self._dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        self._recorder = _Recorder(self)
        self._recorder.register(images, self._new(images))
        try:
            with self._recorder:
                yield
        finally:
            self._recorder = None

    def mark(self, layer: str, value: Tensor) -> None:
        """Remember a value by a name, inside `record`.

        Raises:
            ProjectionError: It does not depend on the image.
        """
        assert self._recorder is not None
        found = self._recorder.value(value)
        if found is None:
            raise ProjectionError(f"layer '{layer}' computes nothing from the image")
        self.marked[layer] = found

    def needs_data(self, layer: str) -> bool:
        """Whether going back from a layer needs what the pass has computed, not its weights alone."""
        return any(node.rule.needs_data for node in self._behind(layer))

    def rectifies(self, layer: str) -> bool:
        """Whether there is a nonlinearity to rectify at between a layer and the pixels."""
        return any(node.rule.rectifies for node in self._behind(layer))

    def convolutions(self, layer: str) -> int:
        """How many convolutions lie between a layer and the pixels, its own included."""
        return sum(isinstance(node.rule, _Convolution) for node in self._behind(layer))

    def follows_windows(self, layer: str) -> bool:
        """Whether the way back from a layer stays inside windows."""
        return all(node.rule.windowed for node in self._behind(layer))

    def batched(self, layer: str) -> bool:
        """Whether everything on the way has one entry an image; else record one image at a time."""
        values = {self.marked[layer]}
        for node in self._behind(layer):
            values.update(node.inputs, node.outputs if node.rule.many else node.outputs[:1])
        return all(self._shapes[value][:1] == (self._batch,) for value in values)

    def project(self, layer: str, seed: Seed, *, watch: Callable[[int], None] | None = None) -> tuple[Tensor, Any]:
        """Take units of a layer back to the pixels.

        Args:
            layer: The name of a marked value.
            seed: The units.
            watch: Told of the number of elements of each signal, to know how many units fit into memory.

        Returns:
            Pixels `(U, C, h, w)`, and the first row and column `(U,)` of each in its image (they may lie outside).
        """
        value = self.marked[layer]
        signals: dict[int, Signal] = {value: self._start(value, seed)}
        for node in reversed(self._behind(layer)):
            coming = [signals.pop(output, None) for output in node.outputs]
            if not node.rule.many:
                coming = coming[:1]  # the others are indices and statistics
            if all(signal is None for signal in coming):
                continue
            for known, signal in zip(node.inputs, node.rule.back(node, coming, seed), strict=True):
                if signal is None:
                    continue
                if watch is not None:
                    watch(signal.values.numel())
                before = signals.get(known)
                shape = self._shapes[known]
                signals[known] = signal if before is None else _sum(before, signal, shape, seed)
        found = signals.get(0)
        zero = torch.zeros(len(seed), dtype=torch.int64)
        if found is None:
            return self._zeros(len(seed), *self._shapes[0][1:]), (zero, zero)
        return found.values, (zero, zero) if found.window is None else seed.starts(found.window)

    def _start(self, value: int, seed: Seed) -> Signal:
        shape = self._shapes[value]
        values = self._zeros(len(seed), shape[1], 1, 1) if len(shape) == 4 else self._zeros(len(seed), *shape[1:])
        values[torch.arange(len(seed)), seed.channels] = 1
        return Signal(values, Window((1, 1), (0, 0)) if len(shape) == 4 else None)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _behind(self, layer: str) -> list[_Node]:
        """The nodes between the pixels and a layer, in order of execution."""
        wanted, found = {self.marked[layer]}, []
        for node in reversed(self._nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                found.append(node)
        return found[::-1]

    def _new(self, tensor: Tensor) -> int:
        self._shapes.append(tuple(tensor.shape))
        return len(self._shapes) - 1


# How signals are moved about.


def _whole(signal: Signal, shape: Sequence[int], seed: Seed) -> Tensor:
    """A signal in the value's own shape `(U, ...)`."""
    if signal.window is None:
        return signal.values
    values = signal.values
    found = values.new_zeros(*values.shape[:-2], *shape[-2:])
    tops, lefts = (start.tolist() for start in seed.starts(signal.window))
    for unit, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        rows, columns = _overlap(top, values.shape[-2], shape[-2]), _overlap(left, values.shape[-1], shape[-1])
        part = values[unit, ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        found[unit, ..., rows, columns] = part
    return found


def _overlap(start: int, length: int, size: int) -> slice:
    """The part of `start, start + 1, ...` that lies in a map of `size`."""
    first = min(max(start, 0), size)
    return slice(first, max(first, min(start + length, size)))


def _placed(values: Tensor, window: Window, shape: Sequence[int], seed: Seed) -> Signal:
    """A signal whose window may reach beyond the map: nothing lies there."""
    height, width = values.shape[-2:]
    signal = Signal(values, window)
    if height >= shape[-2] and width >= shape[-1]:
        return Signal(_whole(signal, shape, seed), None)
    inside = None
    for start, length, size, dim in zip(seed.starts(window), (height, width), shape[-2:], (-2, -1), strict=True):
        if int(start.min()) >= 0 and int(start.max()) + length <= size:
            continue
        places = start[:, None] + torch.arange(length)
        valid = ((places >= 0) & (places < size)).to(values.device)
        valid = valid.view(len(seed), *[1] * (values.ndim - 3), *((length, 1) if dim == -2 else (1, length)))
        inside = valid if inside is None else inside & valid
    return signal if inside is None else Signal(values * inside, window)


def _sum(first: Signal, second: Signal, shape: Sequence[int], seed: Seed) -> Signal:
    """The sum of two signals of one value."""
    if first.window is None or second.window is None or first.window.jump != second.window.jump:
        return Signal(_whole(first, shape, seed) + _whole(second, shape, seed), None)
    if first.window == second.window and first.values.shape == second.values.shape:
        return Signal(first.values + second.values, first.window)
    offsets = (first.window.offset, second.window.offset)
    sizes = (first.values.shape[-2:], second.values.shape[-2:])
    begin = [min(offset[axis] for offset in offsets) for axis in (0, 1)]
    end = [max(offset[axis] + size[axis] for offset, size in zip(offsets, sizes, strict=True)) for axis in (0, 1)]
    padded = []
    for signal, offset, size in zip((first, second), offsets, sizes, strict=True):
        before = [offset[axis] - begin[axis] for axis in (0, 1)]
        after = [end[axis] - offset[axis] - size[axis] for axis in (0, 1)]
        padded.append(F.pad(signal.values, (before[1], after[1], before[0], after[0])))
    return _placed(padded[0] + padded[1], Window(first.window.jump, (begin[0], begin[1])), shape, seed)


def _gathered(data: Tensor, signal: Signal, seed: Seed) -> Tensor:
    """What was saved of a pass, `(N, ...)`, at the places of a signal `(U, ...)`; anything outside of the map."""
    slots = seed.slots.to(data.device)
    if signal.window is None:
        return data[slots]
    height, width = signal.values.shape[-2:]
    tops, lefts = seed.starts(signal.window)
    rows = (tops[:, None] + torch.arange(height)).clamp_(0, data.shape[-2] - 1).to(data.device)
    columns = (lefts[:, None] + torch.arange(width)).clamp_(0, data.shape[-1] - 1).to(data.device)
    # One flat index a place, the same for all channels.
    places = (rows[:, :, None] * data.shape[-1] + columns[:, None, :]).flatten(1)
    lead = data.shape[1:-2]
    flat = data.flatten(-2).reshape(len(data), -1, data.shape[-2] * data.shape[-1])
    found = [flat[slot].index_select(1, place) for slot, place in zip(slots.tolist(), places, strict=True)]
    return torch.stack(found).view(len(seed), *lead, height, width)


# The rules.


@dataclass(eq=False)
class _Same(_Rule):
    """Sums, casts and copies: the signal goes on to each input, times a factor."""

    factors: tuple[float, ...]

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [signal if factor == 1 else Signal(signal.values * factor, signal.window) for factor in self.factors]


@dataclass(eq=False)
class _Scaled(_Rule):
    """A product with weights that are the same everywhere in a feature map, as of BatchNorm in eval mode."""

    scale: Tensor  # broadcasts to (U, C, h, w)

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [Signal(signal.values * self.scale, signal.window)]


@dataclass(eq=False)
class _Convolution(_Rule):
    """Back through the transposed filters."""

    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        shape, options = node.shapes_in[0], {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        weight = self.weight.to(signal.values.dtype)
        if signal.window is None:
            reached = [
                (signal.values.shape[2 + axis] - 1) * self.stride[axis]
                - 2 * self.padding[axis]
                + self.dilation[axis] * (self.weight.shape[2 + axis] - 1)
                + 1
                for axis in (0, 1)
            ]
            rest = [shape[2 + axis] - reached[axis] for axis in (0, 1)]
            values = F.conv_transpose2d(
                signal.values,
                weight,
                padding=self.padding,
                output_padding=rest,
                **options,  # type: ignore[arg-type]
            )
            return [Signal(values, None)]
        values = F.conv_transpose2d(signal.values, weight, **options)  # type: ignore[arg-type]
        return [_placed(values, _before(signal.window, self.stride, self.padding), shape, seed)]


def _before(window: Window, stride: tuple[int, int], padding: tuple[int, int]) -> Window:
    """Where the window of an output begins in the input."""
    (down, right), (top, left) = window
    return Window((down * stride[0], right * stride[1]), (top * stride[0] - padding[0], left * stride[1] - padding[1]))


@dataclass(eq=False)
class _MaxPool(_Rule):
    """Unpooling: each value goes back to the place that the maximum came from; where windows overlap, values add up."""

    switches: Tensor  # (N, C, H, W) int32: which place of its map each maximum came from, row by row
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    needs_data = True

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        shape, values = node.shapes_in[0], signal.values
        before = _before(signal.window or Window((0, 0), (0, 0)), self.stride, self.padding)
        size = [
            (count - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            for axis, count in enumerate(values.shape[-2:])
        ]
        switches = _gathered(self.switches, signal, seed).flatten(2).to(torch.int64)
        tops, lefts = (start.view(-1, 1, 1).to(values.device) for start in seed.starts(before))
        rows = switches.div(shape[-1], rounding_mode="floor")
        places = (rows - tops) * size[1] + (switches - rows * shape[-1] - lefts)
        # Places of another window are of signals outside of the map: they are zero, and add nothing.
        places = places.clamp_(0, size[0] * size[1] - 1).flatten(0, 1)
        back = values.new_zeros(len(places), size[0] * size[1])
        back.scatter_add_(1, places, values.reshape(len(places), -1))
        return [_placed(back.view(*values.shape[:2], *size), before, shape, seed)]


@dataclass(eq=False)
class _Nonlinearity(_Rule):
    """ReLU and its kin: a deconvnet rectifies the signal, a gradient passes it through the slope."""

    method: Method
    slope: Tensor | _Autograd | None  # (N, ...), bool where it is 0 or 1; or how to find it
    rectifies = True

    def __post_init__(self) -> None:
        self.needs_data = self.slope is not None

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        values = signal.values if self.method == "gradient" else signal.values.relu()
        if isinstance(self.slope, _Autograd):
            # Not while recording: there, torch is below the point where it follows gradients.
            inputs, outputs = self.slope.run()
            (self.slope,) = torch.autograd.grad(outputs[0], inputs, torch.ones_like(outputs[0]))
        if self.slope is not None:
            values = values * _gathered(self.slope, signal, seed)
        return [Signal(values, signal.window)]


@dataclass(eq=False)
class _Concatenation(_Rule):
    """Each input takes its own channels of the signal."""

    slices: tuple[slice, ...]

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [Signal(signal.values[:, part], signal.window) for part in self.slices]


@dataclass(eq=False)
class _Split(_Rule):
    """Several pieces, or one, of the channels of the input; what is left out gets nothing."""

    slices: tuple[slice, ...]
    many = True

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        total: Signal | None = None
        for signal, part in zip(signals, self.slices, strict=True):
            if signal is None:
                continue
            shape = [*signal.values.shape]
            shape[1] = node.shapes_in[0][1]
            values = signal.values.new_zeros(shape)
            values[:, part] = signal.values
            piece = Signal(values, signal.window)
            total = piece if total is None else _sum(total, piece, node.shapes_in[0], seed)
        return [total]


@dataclass(eq=False)
class _Padding(_Rule):
    """Zeros around the map, or, where they are fewer than none, a map that is cut."""

    pad: tuple[int, int, int, int]  # left, right, top, bottom

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        left, right, top, bottom = self.pad
        if signal.window is None:
            return [Signal(F.pad(signal.values, (-left, -right, -top, -bottom)), None)]
        jump, offset = signal.window
        moved = Window(jump, (offset[0] - top, offset[1] - left))
        return [_placed(signal.values, moved, node.shapes_in[0], seed)]


@dataclass(eq=False)
class _Reshape(_Rule):
    """Views, permutations: inside a window, where rows and columns stay what they are."""

    order: tuple[int, ...] | None  # of a permutation

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        before, after = node.shapes_in[0], node.shapes_out[0]
        ndim = len(before)
        if self.order is not None:
            inverse = [self.order.index(dim) for dim in range(ndim)]
            if signal.window is None or self.order[-2:] == (ndim - 2, ndim - 1):
                return [Signal(signal.values.permute(inverse), signal.window)]
            return [Signal(_whole(signal, after, seed).permute(inverse), None)]
        if signal.window is not None and before[-2:] == after[-2:] and len(before) >= 3:
            size = signal.values.shape[-2:]
            return [Signal(signal.values.reshape(len(seed), *before[1:-2], *size), signal.window)]
        return [Signal(_whole(signal, after, seed).reshape(len(seed), *before[1:]), None)]


@dataclass(eq=False)
class _Autograd(_Rule):
    """Any other operation: its own gradient, over whole maps."""

    call: Callable[..., Any]
    args: Any  # with _INPUT for each of `saved`
    kwargs: Any
    saved: tuple[Tensor, ...]
    batch: int
    needs_data = True
    windowed = False
    many = True

    def back(self, node: _Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        inputs, outputs = self.run()
        chosen = [
            (output, _whole(signal, output.shape, seed))
            for output, signal in zip(outputs, signals, strict=True)
            if signal is not None and output.requires_grad
        ]
        found = [tensor.new_zeros(len(seed), *_own(tensor.shape, self.batch)) for tensor in inputs]
        # Units of one image take turns: in each round an image has one.
        for members in _rounds(seed.slots) if chosen else []:
            slots = seed.slots[members]
            coming = []
            for output, signal in chosen:
                cotangent = torch.zeros_like(output)
                cotangent[slots if len(output) == self.batch else ...] = signal[members].to(output.dtype)
                coming.append(cotangent)
            made = [output for output, _ in chosen]
            gradients = torch.autograd.grad(made, inputs, coming, retain_graph=True, allow_unused=True)
            for whole, gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    whole[members] = (gradient[slots] if len(gradient) == self.batch else gradient).to(whole.dtype)
        return [Signal(values, None) for values in found]

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Run the operation once more, on what it was given, with gradients."""
        inputs = [saved.detach().requires_grad_() for saved in self.saved]
        place = iter(inputs)

        def fill(leaf: Any) -> Any:
            return next(place) if leaf is _INPUT else leaf

        with torch.enable_grad():
            made = self.call(*tree_map(fill, self.args), **tree_map(fill, self.kwargs))
        return inputs, [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


_INPUT = object()


def _own(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """The shape of one image's part of a value; where it has no entry for each, there is one image: all of it."""
    return tuple(shape[1:] if shape[:1] == (batch,) else shape)


def _rounds(slots: Tensor) -> list[Tensor]:
    """Positions of units, so that no two of a round are of one image."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, slot in enumerate(slots.tolist()):
        turn = seen.get(slot, 0)
        seen[slot] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(position)
    return [torch.tensor(members) for members in rounds]


# Recording.


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


class _Recorder(TorchDispatchMode):
    """Runs each operation, and notes those that depend on the image."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape
        self._own, self._time = WeakTensorKeyDictionary(), 0
        # Of memory that was written to: when, as which view, the value, and a reference that reserves its address.
        self._written: dict[int, tuple[int, Any, int, Any]] = {}

    def register(self, tensor: Tensor, value: int) -> None:
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
        call = _Call(func, args, kwargs, known, self._tape.method, self._tape._batch, name)
        inplace_view = torch.Tag.inplace_view in func.tags
        shapes_in = tuple(tuple(tensor.shape) for tensor, _ in known)
        rule = _RULES[name](call) if name in _RULES else None
        rule = _autograd(call) if rule is None else rule
        output = func(*args, **kwargs) if rule.made is None else rule.made
        rule.made = None
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        values = tuple(self._tape._new(tensor) for tensor in outputs)
        shapes_out = tuple(tuple(tensor.shape) for tensor in outputs)
        inputs = tuple(value for _, value in known)
        self._tape._nodes.append(_Node(name, rule, inputs, values, shapes_in, shapes_out))
        for tensor, value in zip(outputs, values, strict=True):
            self.register(tensor, value)
            if func._schema.is_mutable and not inplace_view:
                self._written[_address(tensor)] = (
                    self._time,
                    _view(tensor),
                    value,
                    StorageWeakRef(tensor.untyped_storage()),
                )
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


_Build = Callable[[_Call], "_Rule | None"]


def _autograd(call: _Call) -> _Autograd:
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
        return _INPUT if isinstance(leaf, Tensor) and id(leaf) in known else leaf

    saved = tuple(tensor.detach().clone() for tensor, _ in call.known)
    return _Autograd(func, tree_map(clear, list(call.args)), tree_map(clear, call.kwargs), saved, call.batch)


def _same(call: _Call) -> _Rule | None:
    return _Same((1.0,)) if len(call.known) == 1 else None


def _copied(call: _Call) -> _Rule | None:
    """All of a tensor is overwritten by another: what was there before counts no more."""
    target, source = call.args[:2]
    if target.shape != source.shape:
        return None
    return _Same(tuple(0.0 if tensor is target else 1.0 for tensor, _ in call.known))


def _sum_of(call: _Call) -> _Rule | None:
    tensors = [argument for argument in call.args[:2] if isinstance(argument, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if any(tensor.shape != shape for tensor, _ in call.known):
        return None
    sign = float(call.argument("alpha", 1)) * (-1 if call.name == "sub" else 1)
    second = call.args[1] if len(call.args) > 1 else None
    if call.args[0] is second:
        return _Same((1.0, sign))
    return _Same(tuple(sign if tensor is second else 1.0 for tensor, _ in call.known))


def _product(call: _Call) -> _Rule | None:
    """With a number, or with weights that are the same all over a feature map."""
    if len(call.known) != 1 or (call.name == "div" and not call.only_first) or call.argument("rounding_mode"):
        return None
    maps = call.known[0][0]
    other = call.args[1] if call.args[0] is maps else call.args[0]
    if not isinstance(other, Tensor):
        return _Same((1 / other if call.name == "div" else float(other),))
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
    return _Scaled(1 / scale if call.name == "div" else scale)


def _negative(call: _Call) -> _Rule | None:
    return _Same((-1.0,))


def _batch_norm(call: _Call) -> _Rule | None:
    mean, variance = call.argument("running_mean"), call.argument("running_var")
    if not call.is_map or mean is None or variance is None or call.argument("training", False):
        return None
    weight = call.argument("weight")
    eps = call.argument("eps", call.argument("epsilon", None))
    scale = torch.rsqrt(variance.detach() + eps)
    return _Scaled((scale if weight is None else scale * weight.detach())[:, None, None])


def _convolution(call: _Call) -> _Rule | None:
    if not call.is_map or call.argument("transposed"):
        return None
    stride, padding, dilation = (_pair(call.argument(name)) for name in ("stride", "padding", "dilation"))
    return _Convolution(call.args[1].detach(), stride, padding, dilation, int(call.argument("groups")))


def _max_pool(call: _Call) -> _Rule | None:
    if not call.is_map:
        return None
    maps = call.args[0]
    kernel, padding = _pair(call.argument("kernel_size")), _pair(call.argument("padding"))
    stride, dilation = _pair(call.argument("stride") or kernel), _pair(call.argument("dilation", 1))
    ceil = bool(call.argument("ceil_mode", False))
    values, indices = torch.ops.aten.max_pool2d_with_indices(maps, kernel, stride, padding, dilation, ceil)
    rule = _MaxPool(indices.to(torch.int32), kernel, stride, padding, dilation)
    rule.made = values if call.name == "max_pool2d" else (values, indices)
    return rule


def _average_pool(call: _Call) -> _Rule | None:
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
    return _Convolution(weight, stride, padding, (1, 1), maps.shape[1])


def _rectifier(call: _Call) -> _Rule | None:
    if len(call.known) != 1 or not call.only_first:
        return None
    if call.method == "deconvnet":
        return _Nonlinearity(call.method, None)
    maps = call.args[0]
    if call.name == "relu" or (call.name in ("clamp", "clamp_min") and call.argument("max") is None):
        return _Nonlinearity(call.method, maps.detach() > 0)
    return _Nonlinearity(call.method, _autograd(call))


def _clamp(call: _Call) -> _Rule | None:
    """A clamp at zero is a ReLU; another one only cuts off."""
    low = call.argument("min_val") if call.name == "hardtanh" else call.argument("min")
    return _rectifier(call) if isinstance(low, (int, float)) and low == 0 else None


def _threshold(call: _Call) -> _Rule | None:
    return _rectifier(call) if call.argument("threshold") == 0 and call.argument("value") == 0 else None


def _maximum(call: _Call) -> _Rule | None:
    """`torch.maximum(x, zero)`, either way around."""
    if len(call.known) != 1:
        return None
    other = call.args[1] if call.args[0] is call.known[0][0] else call.args[0]
    if not isinstance(other, Tensor) or bool(other.any()):
        return None
    maps = call.known[0][0]
    if torch.broadcast_shapes(maps.shape, other.shape) != maps.shape:
        return None
    return _Nonlinearity(call.method, None if call.method == "deconvnet" else maps.detach() > 0)


def _concatenation(call: _Call) -> _Rule | None:
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
    return _Concatenation(tuple(part for tensor, part in ends if id(tensor) in known))


def _split(call: _Call) -> _Rule | None:
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
    return _Split(tuple(slices))


def _slice(call: _Call) -> _Rule | None:
    if not call.only_first:
        return None
    maps = call.args[0]
    dim = int(call.argument("dim", 0)) % maps.ndim
    start, stop, step = call.argument("start"), call.argument("end"), int(call.argument("step", 1))
    if len(maps) != call.batch:
        return None
    chosen = slice(*slice(start, stop, step).indices(maps.shape[dim]))
    if chosen == slice(0, maps.shape[dim], 1):
        return _Same((1.0,))
    if dim == 1:
        return _Split((chosen,))
    if maps.ndim == 4 and step == 1 and dim > 1:
        cut = (-chosen.start, chosen.stop - maps.shape[dim])
        return _Padding((0, 0, *cut) if dim == 2 else (*cut, 0, 0))
    return None


def _padding(call: _Call) -> _Rule | None:
    pad = list(call.args[1])
    if not call.is_map or len(pad) > 4:
        return None
    left, right, top, bottom = pad + [0] * (4 - len(pad))
    return _Padding((left, right, top, bottom))


def _reshaped(call: _Call) -> _Rule | None:
    maps = call.args[0]
    if not call.only_first or len(maps) != call.batch or any(isinstance(a, torch.dtype) for a in call.args):
        return None
    shape = [int(size) for size in call.args[1]]
    # An entry for each image must remain one.
    return _Reshape(None) if shape and shape[0] in (call.batch, -1) and _keeps_images(maps, shape) else None


def _keeps_images(maps: Tensor, shape: Sequence[int]) -> bool:
    rest = math.prod(shape[1:])
    return rest == maps[0].numel() if rest > 0 else shape[0] == maps.shape[0]


def _permuted(call: _Call) -> _Rule | None:
    maps = call.args[0]
    if not call.only_first or len(maps) != call.batch:
        return None
    order = list(range(maps.ndim))
    if call.name == "permute":
        order = [int(dim) % maps.ndim for dim in call.args[1]]
    else:
        first, second = (int(dim) % maps.ndim for dim in call.args[1:3])
        order[first], order[second] = order[second], order[first]
    return _Reshape(tuple(order)) if order[0] == 0 else None


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
