"""What a forward pass computes from the image, operation by operation, and its way back to the pixels.

A pass is recorded as torch dispatches it, so every spelling of a ReLU (module, function, method, in place) is one and
the same operation, a module that runs twice is there twice, and branches, sums and concatenations are what they are.

Where a window no longer makes sense on the way back (squeeze-excite, attention, linear layers) the signal is widened to
the whole map, and an operation without a rule of its own goes back by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.deconvnet.recording import FarEnough, Recorder
from lightning_cnnviz.core.deconvnet.rules import Convolution, Method, Node, ProjectionError
from lightning_cnnviz.core.deconvnet.windowed_signal import Seed, Signal, Window, add

__all__ = ["FarEnough", "Method", "ProjectionError", "Seed", "Tape"]


class Tape:
    """Records a forward pass over a batch of images, and takes units of its layers back to the pixels.

    Example:
        >>> images, conv = torch.rand(2, 1, 8, 8), torch.nn.Conv2d(1, 1, 3)
        >>> tape = Tape("deconvnet")
        >>> with torch.no_grad(), tape.record(images):
        ...     tape.mark("conv", torch.relu(conv(images)))
        >>> zero = torch.tensor([0])
        >>> seed = Seed(slots=zero + 1, channels=zero, rows=zero + 2, columns=zero + 4)
        >>> pixels, (top, left) = tape.project("conv", seed)
        >>> torch.equal(pixels[0], conv.weight[0]), top.tolist(), left.tolist()
        (True, [2], [4])

    Args:
        method: What happens at a nonlinearity, see `core.deconvnet.projection.project`.
    """

    def __init__(self, method: Method) -> None:
        self.method: Method = method
        self.marked: dict[str, int] = {}
        self._nodes: list[Node] = []
        self._shapes: list[tuple[int, ...]] = []
        self._recorder: Recorder | None = None
        self.device = torch.device("cpu")
        self._batch, self._dtype = 0, torch.float32

    @property
    def image_size(self) -> tuple[int, ...]:
        """The shape of one image that was recorded."""
        return self._shapes[0][1:]

    @contextmanager
    def record(self, images: Tensor, *, enough: int | None = None) -> Iterator[None]:
        """Record what is computed from `images` `(N, C, H, W)` inside the block; `FarEnough` ends it without a trace.

        Signals `(N, C, L)` and volumes `(N, C, D, H, W)` likewise.

        Run the network in eval mode and without gradients (see `hooks.analysis_mode`).

        Args:
            images: The batch.
            enough: After so many operations the block ends.
        """
        self._batch, self.device = len(images), images.device
        self._dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        self._recorder = Recorder(self.method, self._batch, self._nodes, self._shapes, enough, axes=images.ndim - 2)
        self._recorder.new(images)
        try:
            with self._recorder:
                yield
        except FarEnough:
            pass
        finally:
            self._recorder = None

    def mark(self, layer: str, value: Tensor) -> None:
        """Remember a value by a name, inside `record`.

        Raises:
            ProjectionError: It does not depend on the image.
        """
        assert self._recorder is not None
        position = self._recorder.value(value)
        if position is None:
            raise ProjectionError(f"layer '{layer}' computes nothing from the image")
        self.marked[layer] = position

    def copy(self, value: Tensor) -> Tensor:
        """A copy of a value, made inside `record`, which is no operation of the pass."""
        assert self._recorder is not None
        self._recorder.paused = True
        try:
            return value.detach().clone()
        finally:
            self._recorder.paused = False

    def needs_data(self, layer: str) -> bool:
        """Whether going back from a layer needs what the pass has computed, not its weights alone."""
        return any(node.rule.needs_data for node in self._behind(layer))

    def operations_with_data(self, layers: Iterable[str]) -> int:
        """The number of operations up to the last whose data are needed to go back from some layers; 0 for none."""
        needed = {id(node) for layer in layers for node in self._behind(layer) if node.rule.needs_data}
        return max((number for number, node in enumerate(self._nodes, start=1) if id(node) in needed), default=0)

    def complete(self, other: Tape) -> bool:
        """Append the operations that another recording of the same pass has beyond this one; return whether they agree.

        What comes from the other must need weights alone to go back: its data are of other images.
        """
        for own, its in zip(self._nodes, other._nodes, strict=False):
            if (own.name, own.inputs, own.outputs) != (its.name, its.inputs, its.outputs):
                return False
        self._nodes += other._nodes[len(self._nodes) :]
        self._shapes += other._shapes[len(self._shapes) :]
        self.marked = {**other.marked, **self.marked}
        return True

    def rectifies(self, layer: str) -> bool:
        """Whether there is a nonlinearity to rectify at between a layer and the pixels."""
        return any(node.rule.rectifies for node in self._behind(layer))

    def convolutions(self, layer: str) -> int:
        """How many convolutions lie between a layer and the pixels, its own included."""
        return sum(isinstance(node.rule, Convolution) for node in self._behind(layer))

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
            Pixels `(U, C, h, w)`, and the first row and column `(U,)` of each in its image (they may lie outside); one
            number an axis.
        """
        value = self.marked[layer]
        signals: dict[int, Signal] = {value: self._start(value, seed)}
        for node in reversed(self._behind(layer)):
            coming = [signals.pop(output, None) for output in node.outputs]
            if not node.rule.many:
                coming = coming[:1]  # the others are indices and statistics
            if all(signal is None for signal in coming):
                continue
            for source, signal in zip(node.inputs, node.rule.back(node, coming, seed), strict=True):
                if signal is None:
                    continue
                if watch is not None:
                    watch(signal.values.numel())
                before = signals.get(source)
                shape = self._shapes[source]
                signals[source] = signal if before is None else add(before, signal, shape, seed)
        pixels = signals.get(0)
        zeros = (torch.zeros(len(seed), dtype=torch.int64),) * (len(self._shapes[0]) - 2)
        if pixels is None:
            return self._zeros(len(seed), *self._shapes[0][1:]), zeros
        return pixels.values, zeros if pixels.window is None else seed.starts(pixels.window)

    def _start(self, value: int, seed: Seed) -> Signal:
        shape, axes = self._shapes[value], len(self._shapes[0]) - 2
        spatial = len(shape) == axes + 2
        values = self._zeros(len(seed), shape[1], *[1] * axes) if spatial else self._zeros(len(seed), *shape[1:])
        values[torch.arange(len(seed)), seed.channels] = 1
        return Signal(values, Window((1,) * axes, (0,) * axes) if spatial else None)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self.device)

    def _behind(self, layer: str) -> list[Node]:
        """The nodes between the pixels and a layer, in order of execution."""
        wanted, nodes = {self.marked[layer]}, []
        for node in reversed(self._nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        return nodes[::-1]
