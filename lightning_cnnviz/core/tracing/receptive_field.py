"""A unit and the box of input pixels that it can depend on: exact through branches, and clipped at every layer.

The network is run once on one image while every operation, as torch dispatches it, is followed by the same operation on
numbers for each element: the box of input pixels that it can depend on. A convolution takes the union over its window,
a sum or a concatenation the union or the pieces, a view moves boxes as it moves values. So there is no table of module
types to outgrow: functional pooling, slices, residual sums and reused modules count as what they do. Boxes are clipped
where the values are, at every layer: where a last stride does not reach the last row, neither does the box (Araujo,
Norris & Sim, "Computing receptive fields of convolutional neural networks", Distill 2019, clip at the image). An
operation without a rule is taken to depend on all of its inputs, so a box may be too large, never too small.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnviz.core.tracing._bounds import Step, TensorBounds, compact, each, everything, nothing
from lightning_cnnviz.core.tracing._bounds_rules import output_bounds
from lightning_cnnviz.core.tracing.calls import (
    OperationReader,
    Operator,
    input_tensors,
    tensors_in,
    without_results,
)

__all__ = ["BoundsMode", "ReceptiveField"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReceptiveField:
    """The receptive fields of all units of one layer, for one size of input.

    Attributes:
        layer: The layer's name.
        image_size: Height and width of the input in pixels; of a signal, 1 and its length in samples; of a volume,
            depth, height and width.
        boxes: `(G, H, W, 4)` int16: top, left, bottom, right in pixels, half-open, clipped to the image; G is the
            number of channels, or 1 where all have the same boxes. A unit that depends on no pixel has an empty box.
            A signal is an image of one row: H is 1, and boxes are from 0 to 1 down. Of a volume they are
            `(G, D, H, W, 6)`: front, top, left, back, bottom, right.
    """

    layer: str
    image_size: tuple[int, ...]
    boxes: Tensor

    def __post_init__(self) -> None:
        axes = len(self.image_size)
        if self.boxes.ndim != axes + 2 or self.boxes.shape[-1] != 2 * axes:
            wanted = "(G, H, W, 4)" if axes == 2 else "(G, D, H, W, 6)"
            raise ValueError(f"boxes must be {wanted}, not {tuple(self.boxes.shape)}")

    def box(self, channels: Tensor, *places: Tensor) -> Tensor:
        """Return the boxes `(..., 4)` or `(..., 6)` int16 of units, given by equally shaped indices.

        Args:
            channels: The units' feature maps.
            places: Their rows and columns; of a volume, depths, rows and columns.
        """
        if self.boxes.shape[0] == 1:
            channels = torch.zeros_like(channels)
        index = (channels, *places)
        return self.boxes[index]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width in pixels of the largest box; of a volume, depth, height and width."""
        first, last = self.boxes.flatten(0, -2).chunk(2, dim=-1)
        return tuple(int(length) for length in (last - first).amax(0))


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

    _bounds: TensorBounds = field(default_factory=TensorBounds, init=False, repr=False)
    _image_size: tuple[int, ...] = field(default=(0, 0), init=False)
    _signal: bool = field(default=False, init=False)

    @contextmanager
    def follow(self, image: Tensor, *, axis: int | None = None) -> Iterator[None]:
        """Follow all that is computed from an image `(1, C, H, W)`, signal `(1, C, L)` or volume `(1, C, D, H, W)`.

        Run the network in eval mode and without gradients (see `hooks.analysis_mode`).

        Args:
            image: The image; a signal is followed as an image of one row.
            axis: Follow rows (0) or columns (1) alone, of a volume one of its three; along the others every box is then
                0 to 0.
        """
        if image.ndim not in (3, 4, 5) or image.shape[0] != 1:
            raise ValueError(
                "receptive fields are followed for one image (1, C, H, W), signal (1, C, L) or volume "
                f"(1, C, D, H, W), not {tuple(image.shape)}"
            )
        self._signal = image.ndim == 3
        own = (1, *image.shape[2:]) if self._signal else tuple(image.shape[2:])
        self._image_size = own
        bounds: list[Tensor] = []
        for place, length in enumerate(own):
            line = torch.arange(length, dtype=torch.float32)
            line = line if axis in (None, place) else line.new_zeros(())
            behind = len(own) - 1 - place
            # The row of a signal has no dimension.
            line = line.view(-1, *[1] * behind) if line.ndim and length > 1 else line.new_zeros(())
            bounds += (-line.expand(image.shape), line.expand(image.shape))
        self._bounds.set(image, tuple(bounds))
        try:
            with _BoundsReader(self._bounds, 2 * len(own)):
                yield
        finally:
            self._bounds = TensorBounds()

    def reach(self, tensor: Tensor) -> tuple[Tensor, ...] | None:
        """Return -top, bottom, -left and right (both inclusive) of each element's box; None where there is none.

        Of a volume, -front and back come first. Each is of the tensor's shape, mostly as an expanded view, and -inf for
        an element that depends on no pixel.
        """
        return self._bounds.get(tensor)

    @property
    def estimated(self) -> bool:
        """Whether the last operation on what depends on the image could not be followed; see the module."""
        return self._bounds.estimated

    def receptive_field(self, layer: str, output: Tensor) -> ReceptiveField | None:
        """Return the receptive fields of `output`, `(1, C, H, W)` or `(1, C)`; None where it depends on no pixel.

        Of a signal, `output` is `(1, C, L)` or `(1, C)`, of a volume `(1, C, D, H, W)` or `(1, C)`.
        """
        bounds = self._bounds.get(output)
        if bounds is None:
            return None
        if output.ndim == 2:
            bounds = each(lambda b: b.view(*b.shape, *[1] * len(self._image_size)), bounds)
        elif output.ndim == 3 and self._signal:
            bounds = each(lambda b: b[..., None, :], bounds)
        sides = [b[0] for b in compact(bounds, dims=(1,))]
        empty = ~torch.isfinite(sides[-1])
        if bool(empty.all()):
            return None
        edges = torch.stack([*(-side for side in sides[::2]), *(side + 1 for side in sides[1::2])], dim=-1)
        boxes = torch.where(empty[..., None], torch.zeros(()), edges).to(torch.int16)
        if boxes.shape[0] > 1 and bool((boxes == boxes[:1]).all()):
            boxes = boxes[:1]
        return ReceptiveField(layer=layer, image_size=self._image_size, boxes=boxes.clone())


class _BoundsReader(OperationReader):
    """Runs each operation, then its rule on the bounds."""

    def __init__(self, bounds: TensorBounds, sides: int) -> None:
        super().__init__()
        self._bounds, self._sides = bounds, sides

    @override
    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = _norm_of_shapes(operator, args)
        result = operator.func(*args, **kwargs) if result is None else result
        inputs = input_tensors(operator, args, kwargs)
        given = {id(tensor): bounds for tensor in inputs if (bounds := self._bounds.get(tensor)) is not None}
        if given:
            dependent = [tensor for tensor in inputs if id(tensor) in given]
            self._follow(Step(operator, args, without_results(operator, kwargs), dependent, tensors_in(result), given))
        elif operator.writes:  # constants, into what may have depended on the image
            for tensor in tensors_in(result):
                if self._bounds.get(tensor) is not None:
                    self._bounds.write(tensor, nothing(tensor.shape, self._sides))
        return result

    def _follow(self, step: Step) -> None:
        results = output_bounds(step)
        self._bounds.estimated = results is None or len(results) != len(step.outputs)
        if results is None or self._bounds.estimated:
            log.debug("receptive field: %s is taken to depend on all of its inputs", step.operator.func)
            results = [everything(step.given.values(), tensor) for tensor in step.outputs]
        for tensor, bounds in zip(step.outputs, results, strict=True):
            if not step.operator.writes:
                self._bounds.set(tensor, bounds)
            elif bounds is not step.given.get(id(tensor)):  # where they are the same nothing has changed
                self._bounds.write(tensor, bounds)


def _norm_of_shapes(operator: Operator, args: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """What a batch norm of fixed statistics gives on shapes alone, which torch reckons in fifty steps; else None."""
    if operator.name != "native_batch_norm" or not args[0].is_meta or len(args) < 6 or args[5]:
        return None
    return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
