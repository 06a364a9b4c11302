"""What is recorded of each kind of operation: its window, its weight, its multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import Call

__all__ = ["RULES", "Kind", "Lines", "Operation", "ShapedCall", "pooled_signal", "read_operation", "scale_of"]

Kind = Literal["conv", "transposed", "pool", "linear", "matmul", "resize", "pad", "join", "norm", "other"]

Lines = tuple[Tensor, Tensor]
"""First and last row (or column) of the image that each row (column) of a map reaches, clipped to the image."""


@dataclass(eq=False, kw_only=True)
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
        lines: What rows and what columns reach, of a volume what depths, rows and columns do; None where the output
            depends on no pixel.
        jump: Product of the strides so far, down and across (of a signal, 1 and along it; of a volume, deep, down and
            across); None where there is no such number.
        boundless: Whether it, or an operation before it, went farther in one step than was asked, see
            `log_operations`.
        scaled: Ratios of sizes at what gives a fixed number of rows, here and before: they stretch with the image.
        after: Position of the operation that made its input; None for the image.
        followed: Whether it, and every operation before it, could be followed: else what it reaches is at most `lines`.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    owner: str = ""
    type: str = ""
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weight: tuple[int, ...] | None = None
    bias: bool = False
    parameters: tuple[str, ...] = ()
    macs: int = 0
    lines: tuple[Lines, ...] | None = None
    jump: tuple[Fraction, ...] | None = None
    boundless: bool = False
    scaled: tuple[Fraction, ...] = ()
    after: int | None = None
    followed: bool = True


@dataclass(eq=False)
class ShapedCall(Call):
    """An operation that has run.

    Attributes:
        shapes: Those of its inputs that depend on the image, as they were before it ran.
        output: Shape of its first output.
        axes: Which dimensions of its first input are rows and columns; of a signal's, None and its samples; of a
            volume's, its depths, rows and columns.
    """

    shapes: list[tuple[int, ...]]
    output: tuple[int, ...]
    axes: tuple[int | None, ...] = (2, 3)

    def record(self, kind: Kind, **attributes: Any) -> Operation:
        """An `Operation`, still without its owner."""
        given = {"input_shape": self.shapes[0], "output_shape": self.output}
        return Operation(kind=kind, **{**given, **attributes})


def read_operation(call: ShapedCall) -> Operation | None:
    """Return the record of an operation that has a row of its own, still without its owner; None for any other."""
    rule = RULES.get(call.name)
    return None if rule is None else rule(call)


def pooled_signal(operation: Operation) -> None:
    """Write the pooling of a signal as what it is: torch runs it on an image of one row."""
    before, after = operation.input_shape, operation.output_shape
    if operation.kind != "pool" or len(before) != 4 or before[2] != 1:
        return
    operation.input_shape, operation.output_shape = (*before[:2], before[3]), (*after[:2], *after[3:])
    operation.type = operation.type.replace("pool2d", "pool1d")
    if operation.window is not None:
        kernel, stride, padding, dilation = operation.window
        operation.window = (kernel[1:], stride[1:], padding[1:], dilation[1:])


def scale_of(call: ShapedCall, operation: Operation | None) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """Return by how much it multiplies the jump, and the ratios of sizes of what gives a fixed number of rows."""
    axes = len(call.axes)
    before, after = call.shapes[0][-axes:], call.output[-axes:]
    signal = len(call.output) == 3
    if signal:
        before, after = (1, before[1]), (1, after[1])
    if operation is not None and operation.window is not None and len(operation.window[1]) == axes - signal:
        stride = (1, *operation.window[1])[-axes:]
        transposed = operation.kind == "transposed"
        return tuple(Fraction(1, step) if transposed else Fraction(step) for step in stride), ()
    if operation is not None and operation.kind in ("pool", "resize") and min(after) > 0:
        ratios = tuple(Fraction(*sides) for sides in zip(before, after, strict=True))
        return ratios, () if set(after) == {1} else ratios
    if call.name in calls.SLICES and (dim := call.argument("dim") % len(call.output)) in call.axes:
        step = int(call.argument("step"))
        return tuple(Fraction(step if axis == dim else 1) for axis in call.axes), ()
    return (Fraction(1),) * axes, ()


def _convolution(call: ShapedCall) -> Operation | None:
    weight = tuple(call.argument("weight").shape)
    dims = len(weight) - 2
    groups, extra = int(call.argument("groups", 1)), call.numbers("output_padding", dims)
    # What each input element of a transposed convolution is multiplied with, each output element of a plain one.
    ends = call.shapes[0] if call.is_transposed else call.output
    return call.record(
        "transposed" if call.is_transposed else "conv",
        window=call.window(dims),
        options={"groups": groups, "output_padding": extra},
        weight=weight,
        bias=call.argument("bias") is not None,
        macs=math.prod(ends) * math.prod(weight[1:]),
    )


def _deformable(call: ShapedCall) -> Operation | None:
    """torchvision's: a convolution whose taps lie where offsets say."""
    weight = tuple(call.args[1].shape)
    stride, padding, dilation = (tuple(call.args[place : place + 2]) for place in (5, 7, 9))
    return call.record(
        "conv",
        window=(weight[2:], stride, padding, dilation),
        options={"groups": int(call.args[11]), "output_padding": (0, 0)},
        weight=weight,
        bias=True,  # zeros, where none is given
        macs=math.prod(call.output) * math.prod(weight[1:]),
    )


def _pool(call: ShapedCall) -> Operation | None:
    return call.record("pool", window=call.window(2), options={"ceil_mode": bool(call.argument("ceil_mode"))})


def _pool_3d(call: ShapedCall) -> Operation | None:
    """Of volumes; of images it takes a mean over neighboring feature maps, in local response normalization."""
    if len(call.axes) != 3:
        return None
    fixed = call.name in calls.ADAPTIVE_POOLS_3D
    options = {} if fixed else {"ceil_mode": bool(call.argument("ceil_mode"))}
    return call.record("pool", window=None if fixed else call.window(3), options=options)


def _fixed_size_pool(call: ShapedCall) -> Operation | None:
    return call.record("pool")


def _global_pool(call: ShapedCall) -> Operation | None:
    """A mean or maximum over the whole map: pooling, as torch runs it where one value is left."""
    dims, count = call.argument("dim"), len(call.shapes[0])
    if dims is None or (count != len(call.axes) + 2 and call.axes[0] is not None):
        return None
    over = {dim % count for dim in ([dims] if isinstance(dims, int) else dims)}
    return call.record("pool") if over == {axis for axis in call.axes if axis is not None} else None


def _product(call: ShapedCall) -> Operation | None:
    left, right = [argument for argument in call.args if isinstance(argument, Tensor)][-2:]
    columns = right.shape[-1] if right.ndim > 1 else 1
    macs = math.prod(left.shape) * columns
    if len(call.shapes) > 1 or left.ndim == 3:
        return call.record("matmul", macs=macs)
    weight = (call.output[-1] if call.output else 1, left.shape[-1])
    return call.record("linear", weight=weight, bias=call.name in calls.MATRIX_PRODUCTS_ADDED, macs=macs)


def _attention(call: ShapedCall) -> Operation | None:
    """Two products: of queries (..., L, E) with keys (..., S, E), and of what comes out with values (..., S, V)."""
    queries, keys, values = call.args[:3]
    macs = math.prod(queries.shape[:-1]) * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])
    return call.record("matmul", macs=macs)


def _resize(call: ShapedCall) -> Operation | None:
    return call.record("resize") if call.shapes[0] != call.output else None


def _pad(call: ShapedCall) -> Operation | None:
    return call.record("pad") if call.shapes[0] != call.output else None


def _join(type_: str) -> Callable[[ShapedCall], Operation | None]:
    def rule(call: ShapedCall) -> Operation | None:
        # Of products, those of a map and a gate; squares and the like are pointwise.
        if len(call.shapes) < 2 or (type_ == "product" and len(set(call.shapes)) == 1):
            return None
        return call.record("join", type=type_, input_shape=max(call.shapes, key=math.prod))

    return rule


RULES: dict[str, Callable[[ShapedCall], Operation | None]] = {
    **dict.fromkeys(calls.CONVOLUTIONS | calls.RECTIFIED_CONVOLUTIONS, _convolution),
    **dict.fromkeys(calls.MAX_POOLS | calls.AVERAGE_POOLS, _pool),
    **dict.fromkeys(calls.ADAPTIVE_POOLS, _fixed_size_pool),
    **dict.fromkeys(calls.POOLS_3D | calls.ADAPTIVE_POOLS_3D, _pool_3d),
    **dict.fromkeys(["mean", "amax"], _global_pool),
    **dict.fromkeys(calls.MATRIX_PRODUCTS | calls.MATRIX_PRODUCTS_ADDED, _product),
    **dict.fromkeys(calls.ATTENTIONS, _attention),
    **dict.fromkeys(calls.NEAREST_UPSAMPLINGS | calls.INTERPOLATIONS, _resize),
    **dict.fromkeys(calls.CONSTANT_PADS | calls.EDGE_PADS, _pad),
    **dict.fromkeys(calls.SUMS, _join("sum")),
    **dict.fromkeys(calls.JOINS, _join("concatenation")),
    "mul": _join("product"),
    "torchvision::deform_conv2d": _deformable,
}
