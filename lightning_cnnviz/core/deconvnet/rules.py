"""How each kind of operation goes back to the pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from lightning_cnnviz.core.deconvnet.windowed_signal import (
    Seed,
    Signal,
    Window,
    add,
    channels_last,
    gathered_at,
    placed,
    whole,
)

__all__ = [
    "INPUT",
    "Autograd",
    "Concatenation",
    "Convolution",
    "MaxPool",
    "MaxPool3d",
    "Method",
    "Node",
    "Nonlinearity",
    "Padding",
    "ProjectionError",
    "Reshape",
    "Rule",
    "Same",
    "Scaled",
    "Slicing",
]

Method = Literal["deconvnet", "guided", "gradient"]
"""What happens at a nonlinearity, see `core.deconvnet.projection.project`."""


class ProjectionError(ValueError):
    """The network computes something that cannot be followed back to the pixels."""


class Rule:
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

    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        """The signals of the node's inputs, from those of its outputs (None where none has come)."""
        raise NotImplementedError


@dataclass(eq=False)
class Node:
    """One operation of the pass: what it was, and which values went in and came out."""

    name: str
    rule: Rule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes_in: tuple[tuple[int, ...], ...]
    shapes_out: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Same(Rule):
    """Sums, casts and copies: the signal goes on to each input, times a factor."""

    factors: tuple[float, ...]

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [signal if factor == 1 else Signal(signal.values * factor, signal.window) for factor in self.factors]


@dataclass(eq=False)
class Scaled(Rule):
    """A product with weights that are the same everywhere in a feature map, as of BatchNorm in eval mode."""

    scale: Tensor  # broadcasts to (U, C, h, w)

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [Signal(signal.values * self.scale, signal.window)]


@dataclass(eq=False)
class Convolution(Rule):
    """Back through the transposed filters."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __post_init__(self) -> None:
        self._filters: Tensor | None = None

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        shape = node.shapes_in[0]
        values = self._transposed(signal.values, self._own_filters(signal.values))
        if signal.window is not None:
            before = _before(signal.window, self.stride, self.padding)
            # Beyond the image itself nothing is read any more.
            return [placed(values, before, shape, seed, clear=node.inputs != (0,))]
        # What came from the padding is cut off; what the last stride did not reach gets nothing.
        pad: list[int] = []
        for axis in reversed(range(len(self.stride))):
            pad += [-self.padding[axis], shape[2 + axis] + self.padding[axis] - values.shape[2 + axis]]
        return [Signal(F.pad(values, pad), None)]

    def _own_filters(self, values: Tensor) -> Tensor:
        """The weights, in the dtype of the signals and the order in memory that convolutions are fastest in."""
        if self._filters is None:
            self._filters = channels_last(self.weight.to(values.dtype))
        return self._filters

    def _transposed(self, values: Tensor, weight: Tensor) -> Tensor:
        """The transposed convolution, whole: `(U, C, stride * (h - 1) + dilation * (kernel - 1) + 1, ...)`."""
        axes = len(self.stride)
        plain = set(self.dilation) == {1} and self.groups == 1
        if plain and values.shape[2:].numel() == 1:
            # As every way begins: a product of matrices, many times as fast as what the library makes of it.
            return (values.flatten(1) @ self.weight.to(values.dtype).flatten(1)).view(len(values), *weight.shape[1:])
        values = channels_last(values)
        if plain and axes == 2 and _in_phases_is_faster(weight, self.stride):
            return _in_phases(values, weight, self.stride)
        transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        made: Tensor = transposed(values, weight, stride=self.stride, dilation=self.dilation, groups=self.groups)
        return made


def _in_phases_is_faster(weight: Tensor, stride: tuple[int, ...]) -> bool:
    """Whether the filters are large and the channels few, as in first layers: there, the library is slow."""
    channels, *kernel = weight.shape[1:]
    taps = [-(-size // step) * step for size, step in zip(kernel, stride, strict=True)]
    return max(stride) > 1 and channels <= 16 and taps[0] * taps[1] <= 1.5 * kernel[0] * kernel[1]


def _in_phases(values: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A transposed convolution with a stride, as one without, whose outputs are its phases, woven together."""
    (height, width), (down, right) = weight.shape[2:], stride
    rows, columns = -(-height // down), -(-width // right)
    filters = F.pad(weight, (0, columns * right - width, 0, rows * down - height))
    filters = filters.view(*weight.shape[:2], rows, down, columns, right).permute(1, 3, 5, 0, 2, 4)
    filters = filters.reshape(-1, len(weight), rows, columns).flip(2, 3)
    phases = F.conv2d(values, filters, padding=(rows - 1, columns - 1))
    woven = phases.view(len(values), weight.shape[1], down, right, *phases.shape[2:]).permute(0, 1, 4, 2, 5, 3)
    whole_map = woven.reshape(len(values), weight.shape[1], down * phases.shape[2], right * phases.shape[3])
    return whole_map[..., : down * (values.shape[2] - 1) + height, : right * (values.shape[3] - 1) + width]


def _before(window: Window, stride: tuple[int, ...], padding: tuple[int, ...]) -> Window:
    """Where the window of an output begins in the input."""
    jump = tuple(jump * step for jump, step in zip(window.jump, stride, strict=True))
    moved = zip(window.offset, stride, padding, strict=True)
    return Window(jump, tuple(offset * step - pad for offset, step, pad in moved))


@dataclass(eq=False)
class MaxPool(Rule):
    """Unpooling: each value goes back to the place that the maximum came from; where windows overlap, values add up."""

    # (N, C, H, W) int32, channels last: which place each maximum came from, row by row, counted from the first place of
    # its pooling window.
    switches: Tensor
    width: int  # of these rows: the map's, or, where it is narrower, the window's
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    needs_data = True

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        shape, values = node.shapes_in[0], signal.values
        before = _before(signal.window or Window((0, 0), (0, 0)), self.stride, self.padding)
        size = [
            (count - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            for axis, count in enumerate(values.shape[-2:])
        ]
        # Channels last, as are the signals that come from convolutions: each place is one piece of memory.
        switches = gathered_at(self.switches, signal, seed).permute(0, 2, 3, 1)
        # Counted in rows of the signal's window, and not of the map. Places that lie outside of the map repeat those at
        # its edge, but of signals that are zero: they add nothing.
        inside = self._inside(size[1]).to(values.device).index_select(0, switches.reshape(-1)).view(switches.shape)
        firsts = [torch.arange(count) * step for count, step in zip(values.shape[-2:], self.stride, strict=True)]
        starts = (firsts[0][:, None] * size[1] + firsts[1]).to(values.device)
        places = inside.add_(starts[:, :, None]).permute(0, 3, 1, 2)
        like = values.new_empty((len(values), *size, values.shape[1])).permute(0, 3, 1, 2)
        back = torch.ops.aten.max_pool2d_with_indices_backward(
            channels_last(values), like, self.kernel, self.stride, (0, 0), self.dilation, False, places
        )
        return [placed(back, before, shape, seed)]

    def _inside(self, own: int) -> Tensor:
        """By a switch, the same place in rows of a length of its own."""
        down, right = (torch.arange(length) * step for length, step in zip(self.kernel, self.dilation, strict=True))
        places = torch.zeros(int(down[-1]) * self.width + int(right[-1]) + 1, dtype=torch.int64)
        places[down[:, None] * self.width + right] = down[:, None] * own + right
        return places


@dataclass(eq=False)
class MaxPool3d(Rule):
    """The same over volumes."""

    # (N, C, D, H, W) int32: which place each maximum came from, counted slice by slice and row by row in its pooling
    # window, with the gaps that dilation leaves.
    switches: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    needs_data = True

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        values = signal.values
        before = _before(signal.window or Window((0, 0, 0), (0, 0, 0)), self.stride, self.padding)
        reach = [gap * (count - 1) + 1 for count, gap in zip(self.kernel, self.dilation, strict=True)]
        size = [(count - 1) * step + own for count, step, own in zip(values.shape[2:], self.stride, reach, strict=True)]
        switches = gathered_at(self.switches, signal, seed).long()
        places = torch.zeros_like(switches)
        taps = (switches // (reach[1] * reach[2]), switches // reach[2] % reach[1], switches % reach[2])
        for axis, tap in enumerate(taps):
            first = torch.arange(values.shape[2 + axis], device=values.device) * self.stride[axis]
            places = places * size[axis] + tap + first.view([-1 if own == axis else 1 for own in range(3)])
        back = values.new_zeros(*values.shape[:2], size[0] * size[1] * size[2])
        back.scatter_add_(2, places.flatten(2), values.flatten(2))
        return [placed(back.view(*values.shape[:2], *size), before, node.shapes_in[0], seed)]


@dataclass(eq=False)
class Nonlinearity(Rule):
    """ReLU and its kin: a deconvnet rectifies the signal, a gradient passes it through the slope."""

    method: Method
    slope: Tensor | Autograd | None  # (N, ...), bool where it is 0 or 1; or how to find it
    # Whether there is an entry for each image. Else there is one image, and its windows, say, are stacked in the first
    # dimension: a signal has them all.
    by_image: bool = True
    rectifies = True

    def __post_init__(self) -> None:
        self.needs_data = self.slope is not None

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        values = signal.values if self.method == "gradient" else signal.values.relu()
        if isinstance(self.slope, Autograd):
            # Not while recording: there, torch is below the point where it follows gradients.
            inputs, outputs = self.slope.run()
            (self.slope,) = torch.autograd.grad(outputs[0], inputs, torch.ones_like(outputs[0]))
        if self.slope is not None:
            values = values * (gathered_at(self.slope, signal, seed) if self.by_image else self.slope)
        return [Signal(values, signal.window)]


@dataclass(eq=False)
class Concatenation(Rule):
    """Each input takes its own channels of the signal."""

    slices: tuple[slice, ...]

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        return [Signal(signal.values[:, part], signal.window) for part in self.slices]


@dataclass(eq=False)
class Slicing(Rule):
    """Several pieces, or one, of the channels of the input; what is left out gets nothing."""

    slices: tuple[slice, ...]
    many = True

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        total: Signal | None = None
        for signal, part in zip(signals, self.slices, strict=True):
            if signal is None:
                continue
            shape = [*signal.values.shape]
            shape[1] = node.shapes_in[0][1]
            values = signal.values.new_zeros(shape)
            values[:, part] = signal.values
            piece = Signal(values, signal.window)
            total = piece if total is None else add(total, piece, node.shapes_in[0], seed)
        return [total]


@dataclass(eq=False)
class Padding(Rule):
    """Zeros around the map, or, where they are fewer than none, a map that is cut."""

    pad: tuple[int, ...]  # left, right, top, bottom; of as many axes as there are, the last one first

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        if signal.window is None:
            return [Signal(F.pad(signal.values, [-number for number in self.pad]), None)]
        jump, offset = signal.window
        moved = Window(jump, tuple(own - first for own, first in zip(offset, self.pad[::2][::-1], strict=True)))
        return [placed(signal.values.clone(), moved, node.shapes_in[0], seed)]


@dataclass(eq=False)
class Reshape(Rule):
    """Views, permutations: inside a window, where rows and columns stay what they are."""

    order: tuple[int, ...] | None  # of a permutation

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        (signal,) = signals
        assert signal is not None
        before, after = node.shapes_in[0], node.shapes_out[0]
        ndim, axes = len(before), 0 if signal.window is None else len(signal.window.jump)
        if self.order is not None:
            inverse = [self.order.index(dim) for dim in range(ndim)]
            if signal.window is None or self.order[-axes:] == tuple(range(ndim - axes, ndim)):
                return [Signal(signal.values.permute(inverse), signal.window)]
            return [Signal(whole(signal, after, seed).permute(inverse), None)]
        rowed = _with_or_without_row(signal, before, after)
        if rowed is not None:
            return [rowed]
        if signal.window is not None and before[-axes:] == after[-axes:] and len(before) > axes:
            size = signal.values.shape[-axes:]
            return [Signal(signal.values.reshape(len(seed), *before[1:-axes], *size), signal.window)]
        return [Signal(whole(signal, after, seed).reshape(len(seed), *before[1:]), None)]


def _with_or_without_row(signal: Signal, before: tuple[int, ...], after: tuple[int, ...]) -> Signal | None:
    """A signal `(N, C, L)` whose network pools it as an image of one row, `(N, C, 1, L)`, and back; else None."""
    if signal.window is None:
        return None
    (jump, offset), values = signal.window, signal.values
    if len(jump) == 1 and before == (*after[:-1], 1, after[-1]):
        return Signal(values.unsqueeze(-2), Window((0, *jump), (0, *offset)))
    row = len(jump) == 2 and (jump[0], offset[0], values.shape[-2]) == (0, 0, 1)
    if row and after == (*before[:-1], 1, before[-1]):
        return Signal(values.squeeze(-2), Window(jump[1:], offset[1:]))
    return None


@dataclass(eq=False)
class Autograd(Rule):
    """Any other operation: its own gradient, over whole maps."""

    call: Callable[..., Any]
    args: Any  # with INPUT for each of `saved`
    kwargs: Any
    saved: tuple[Tensor, ...]
    batch: int
    needs_data = True
    windowed = False
    many = True

    @override
    def back(self, node: Node, signals: list[Signal | None], seed: Seed) -> list[Signal | None]:
        inputs, outputs = self.run()
        chosen = [
            (output, whole(signal, output.shape, seed))
            for output, signal in zip(outputs, signals, strict=True)
            if signal is not None and output.requires_grad
        ]
        gathered = [tensor.new_zeros(len(seed), *_own(tensor.shape, self.batch)) for tensor in inputs]
        # Units of one image take turns: in each round an image has one.
        for members in self._rounds(seed, inputs, chosen) if chosen else []:
            slots = seed.slots[members]
            coming = []
            for output, signal in chosen:
                cotangent = torch.zeros_like(output)
                cotangent[slots if self._by_image(output) else ...] = signal[members].to(output.dtype)
                coming.append(cotangent)
            made = [output for output, _ in chosen]
            leaves = [tensor for tensor in inputs if tensor.requires_grad]
            with _no_derivative(self.call):
                found = iter(torch.autograd.grad(made, leaves, coming, retain_graph=True, allow_unused=True))
            for values, tensor in zip(gathered, inputs, strict=True):
                gradient = next(found) if tensor.requires_grad else None
                if gradient is not None:
                    values[members] = (gradient[slots] if self._by_image(tensor) else gradient).to(values.dtype)
        return [Signal(values, None) for values in gathered]

    def _by_image(self, tensor: Tensor) -> bool:
        """Whether a tensor has an entry for each image."""
        return tensor.shape[:1] == (self.batch,)

    def _rounds(self, seed: Seed, inputs: list[Tensor], chosen: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Units that can go back together: those of different images, where all values have an entry for each."""
        if all(map(self._by_image, [*inputs, *(output for output, _ in chosen)])):
            return _rounds(seed.slots)
        return [torch.tensor([unit]) for unit in range(len(seed))]

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Run the operation once more, on what it was given, with gradients."""
        # What is counted or compared, as a mask is, has no slope.
        inputs = [
            saved.detach().requires_grad_(saved.is_floating_point() or saved.is_complex()) for saved in self.saved
        ]
        place = iter(inputs)

        def fill(leaf: Any) -> Any:
            return next(place) if leaf is INPUT else leaf

        with torch.enable_grad(), _no_derivative(self.call):
            made = self.call(*tree_map(fill, self.args), **tree_map(fill, self.kwargs))
        return inputs, [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


INPUT = object()


@contextmanager
def _no_derivative(call: Any) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"derivative for .* is not implemented", str(error)):
            raise
        raise ProjectionError(
            f"the network runs {call}, of which torch has no derivative: it cannot be followed back to the pixels"
        ) from error


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
