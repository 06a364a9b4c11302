"""The arithmetic of convolutions: sizes, parameters, multiply-adds, receptive fields; what does not fit, what would.

For one layer there are functions of plain numbers (from `formulas`), and for a whole network `layer_table`, a row an
operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.layer_table.formulas import (
    WindowFit,
    adaptive_windows,
    fit_windows,
    for_axes,
    output_size,
    parameter_count,
    same_padding,
    transposed_formula,
    transposed_output_size,
    window_formula,
)
from lightning_cnnviz.core.layer_table.unclipped_fields import Field, UnclippedFields
from lightning_cnnviz.core.network.layers import image_axes, other_dimensions
from lightning_cnnviz.core.network.memory import is_out_of_memory
from lightning_cnnviz.core.tracing.operations import Kind, Operation, OperationLog, log_operations
from lightning_cnnviz.core.tracing.readable import check_countable, check_readable

__all__ = [
    "LayerRow",
    "LayerTable",
    "WindowFit",
    "fit_windows",
    "layer_table",
    "output_size",
    "parameter_count",
    "same_padding",
    "transposed_output_size",
]

_FLOAT32 = 4  # bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerRow:
    """One operation of a network, for one image. Pairs are height, width: down, across.

    Of a signal, shapes are mostly (C, L), pairs are one number along it, and its samples are what pixels are here. Of a
    clip or volume, shapes are mostly (C, D, H, W), and pairs are three numbers: deep, down, across.

    Attributes:
        layer: Path of the module that runs it; a function's is the module that calls it, empty for the network itself.
        use: Counts the operations of this module and type from 1: above 1 where a module is used again.
        type: The module's class, "functional ..." for a function, or "sum", "concatenation", "product".
        kind: "conv", "transposed", "pool", "linear", "matmul", "resize", "pad", "join", "norm" or "other" (whatever
            else has parameters).
        input_shape: Mostly (C, H, W); of a join, its largest input.
        output_shape: Mostly (C, H, W).
        formula: The sum that gives the output size; empty where there is none.
        kernel: Height and width of the window, empty where there is none. For pooling to a fixed size, the size that
            all of its windows have, empty where they differ.
        stride: Of the window, as `padding` and `dilation` are.
        padding: On each side.
        dilation: Distance between the taps of the window.
        groups: Number of groups of channels that do not mix.
        parameters: Number of parameters that no row above has counted.
        parameter_formula: The sum that gives this number.
        shared: Whether all its parameters are counted in a row above, since a module or a weight is used again.
        macs: Multiply-adds of convolutions, linear layers and matrix products; a bias counts for none.
        activation_bytes: Memory of the output in float32; 0 for kinds "norm" and "other", which can run in place.
        jump: Cumulative stride: pixels from a unit to the next, down and across; None where there is no such number.
        receptive_field: Height and width in pixels of what a unit depends on, not cut off at the image's border, so
            possibly larger than the image. Where the units of a layer differ, as behind transposed convolutions, the
            largest. None along an axis for "the whole image": every unit depends on all of it, of whatever size it is,
            apart from rows that layers drop at its end. None altogether where it depends on no pixel.
        clipped: Whether the field could be measured on this size of image only, since the network refuses others or
            depends on it, so that borders may cut it off; None then stands for a field that covers this size.
        followed: Whether every operation up to here could be followed. Else the field is not known, but to be no larger
            than what stands here: where pixels are read is decided by values (a sampling grid, the offsets of a
            deformable convolution), or by an operation that nobody has told of.
        first_center: Center of the first unit's field in pixels, down and across; 0 is the middle of the first pixel,
            negative is beyond the border. None where the field is the whole image, or clipped.
        fit: How the windows lie on rows and on columns; empty where there are none.
    """

    layer: str
    use: int
    type: str
    kind: Kind
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    formula: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    parameters: int
    parameter_formula: str
    shared: bool
    macs: int
    activation_bytes: int
    jump: tuple[float, ...] | None
    receptive_field: tuple[int | None, ...] | None
    clipped: bool
    first_center: tuple[float, ...] | None
    fit: tuple[WindowFit, ...]
    followed: bool = True

    @property
    def name(self) -> str:
        """The layer's path, with the number of its use where it is not the first."""
        path = self.layer or "(network)"
        return path if self.use == 1 else f"{path} #{self.use}"


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTable:
    """What a network does with one image, operation by operation.

    Attributes:
        model: Name of the network's class.
        input_size: Channels, height and width of the image; of a signal, channels and length; of a volume, channels,
            depth, height and width.
        rows: In order of execution.
        parameters: Number of all parameters of the network.
        unused: Names and sizes of the parameters that no row counts, since they do not run in eval mode.
    """

    model: str
    input_size: tuple[int, ...]
    rows: tuple[LayerRow, ...]
    parameters: int
    unused: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        counted = sum(row.parameters for row in self.rows) + sum(size for _, size in self.unused)
        if counted != self.parameters:
            raise ValueError(f"rows and unused parameters add up to {counted}, not {self.parameters}")

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Memory of all outputs in float32, for one image."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """The rows without norms and other pointwise operations."""
        return tuple(row for row in self.rows if row.kind not in ("norm", "other"))


def layer_table(model: nn.Module, input_size: Sequence[int] | Tensor) -> LayerTable:
    """Return what a network does with one image or signal, a row an operation, in order of execution.

    The network runs in eval mode and is left as it was. It runs on shapes alone, without values, and then once or twice
    more on a much higher and a much wider image, where no border cuts receptive fields off. A network whose course
    depends on values computes: on zeros, or on the image that is given.

    Rows are convolutions, pooling (a mean over the map included), linear layers, matrix products of activations,
    resizing, padding as an operation of its own, sums, concatenations and products where branches meet, norms, and
    whatever else has parameters. A layer that is fed by constants has a row, too. Functions and reused modules count as
    often as they run. In what `torch.jit` has traced or scripted all are functions, and rows are named after the
    parameters that they read.

    Args:
        model: The network; its weights may lie on the meta device.
        input_size: Channels, height and width, of a signal channels and length, of a clip or volume channels, depth,
            height and width; or an image `(C, H, W)` or `(1, C, H, W)`, or a signal `(C, L)`, of a network with
            `Conv1d` and no other convolutions `(1, C, L)`, too; of one with `Conv3d`, a volume `(C, D, H, W)` or
            `(1, C, D, H, W)`.

    Raises:
        ValueError: The size is none of an image, signal or volume, or of another than convolutions are of; the
            network refuses it (with its reason and the layer that stopped), a lazy module does not know the shape of
            its weights yet, or the network is quantized or frozen by `torch.jit`.
        TypeError: `model` is no module.
        torch.OutOfMemoryError: There is not enough memory for one image.

    Example:
        >>> table = layer_table(nn.Sequential(nn.Conv2d(3, 10, 5, padding=2), nn.MaxPool2d(2)), (3, 32, 32))
        >>> [(row.formula, row.parameters, row.receptive_field) for row in table.rows]
        [('(32 + 2·2 - 5)/1 + 1 = 32', 760, (5, 5)), ('(32 - 2)/2 + 1 = 16', 0, (6, 6))]
        >>> table = layer_table(nn.Sequential(nn.Conv3d(3, 8, (3, 7, 7), stride=(1, 2, 2))), (3, 16, 112, 112))
        >>> [(row.output_shape, row.receptive_field, row.jump) for row in table.rows]
        [((8, 14, 53, 53), (3, 7, 7), (1.0, 2.0, 2.0))]
        >>> table = layer_table(nn.Sequential(nn.Conv1d(12, 8, 7, stride=2), nn.Conv1d(8, 8, 3)), (12, 1000))
        >>> [(row.output_shape, row.receptive_field) for row in table.rows]
        [((8, 497), (7,)), ((8, 495), (11,))]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layer_table needs an nn.Module, not {type(model).__name__}")
    check_countable(model)
    check_readable(model)
    image = _image(model, input_size)
    log, values = _run(model, image)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    plain = {name.replace("_orig_mod.", ""): size for name, size in sizes.items()}
    fields = UnclippedFields(model, image, log, values)
    rows, counted, uses = [], set[str](), dict[tuple[str, str], int]()
    for position, operation in enumerate(log.operations):
        key = (operation.owner, operation.type)
        uses[key] = uses.get(key, 0) + 1
        new = [name for name in operation.parameters if name not in counted]
        counted.update(new)
        rows.append(_row(operation, uses[key], sum(plain[name] for name in new), not new, fields.of(position)))
    unused = tuple((name, size) for name, size in plain.items() if name not in counted)
    name = type(getattr(model, "_orig_mod", model)).__name__
    return LayerTable(
        model=name,
        input_size=tuple(image.shape[1:]),
        rows=tuple(rows),
        parameters=sum(plain.values()),
        unused=unused,
    )


def _image(model: nn.Module, input_size: Sequence[int] | Tensor) -> Tensor:
    """Return one image `(1, C, H, W)` or signal `(1, C, L)`, where the network's weights are and of their type."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"'{name}' of {type(model).__name__} has no shape yet: run the network once before")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(input_size, Tensor):
        one_signal = input_size.ndim == 3 and len(input_size) == 1 and image_axes(model) == 1
        one_volume = input_size.ndim == 4 and image_axes(model) == 3
        image = input_size[None] if one_volume or (input_size.ndim in (2, 3) and not one_signal) else input_size
        kinds = (3, 4, 5) if image_axes(model) == 3 else (3, 4)
        if image.ndim not in kinds or image.shape[0] != 1 or image.numel() == 0:
            why = other_dimensions(model)
            raise ValueError(
                f"an image is (C, H, W) or (1, C, H, W), a signal (C, L), not {tuple(input_size.shape)}"
                + (f"; {why}" if why else "")
            )
        _check_signal(model, image.shape[1:])
        image = image.detach().to(like.device)
        return image.to(like.dtype) if image.is_floating_point() else image
    try:
        size = tuple(int(n) for n in input_size)
    except (TypeError, ValueError):
        raise TypeError(
            f"input_size is a {type(input_size).__name__}; give channels, height and width, as in (3, 224, 224), of a "
            "signal channels and length, or an image (C, H, W) or a signal (C, L)"
        ) from None
    if len(size) not in (2, 3, 4) or min(size) < 1:
        raise ValueError(
            f"input_size={size} is no image and no signal: give channels, height and width, as in (3, 224, 224), of a "
            "signal channels and length, as in (12, 1000), of a volume channels, depth, height and width"
        )
    _check_signal(model, size)
    # Zeros pass through everything, norms included, without NaN.
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


def _check_signal(model: nn.Module, size: Sequence[int]) -> None:
    """Refuse signals, and volumes, for networks of images: torch would take one for an image without channels."""
    if len(size) == 4 and image_axes(model) != 3:
        raise ValueError(
            f"input_size={tuple(size)} is channels, depth, height and width of a volume, and {type(model).__name__} "
            "has no Conv3d: give channels, height and width, as in (3, 224, 224)"
        )
    modules = list(model.modules())
    kinds = [kind.__name__ for kind in (nn.Conv2d, nn.Conv3d) if any(isinstance(module, kind) for module in modules)]
    if len(size) == 2 and kinds and not any(isinstance(module, nn.Conv1d) for module in modules):
        raise ValueError(
            f"input_size={tuple(size)} is channels and length of a signal, and {type(model).__name__} has {kinds[0]}: "
            "give channels, height and width, as in (3, 224, 224)"
        )


def _run(model: nn.Module, image: Tensor) -> tuple[OperationLog, bool]:
    """Return what ran, and whether values had to be computed to find it."""
    without = log_operations(model, image, values=False)
    if without.error is None:
        return without, False
    log = without if image.is_meta else log_operations(model, image, values=True)
    if log.error is None:
        return log, True
    size = "x".join(str(n) for n in image.shape[1:])
    where = f"layer '{log.where}'" if log.where else "the network itself"
    came = f", after {_brief(log.operations[-1])}" if log.operations else ""
    reason = " ".join(str(log.error).split()) or type(log.error).__name__
    if is_out_of_memory(log.error):
        raise torch.OutOfMemoryError(f"there is not enough memory for one image of {size}: {reason}") from log.error
    kind = {3: "a signal", 4: "an image", 5: "a volume"}[image.ndim]
    why = "" if image.ndim - 2 == image_axes(model) else other_dimensions(model)
    reason = f"{reason}; {why}" if why else reason
    raise ValueError(
        f"{type(model).__name__} does not take {kind} of {size}: {where} stopped{came}, with: {reason}"
    ) from log.error


def _brief(operation: Operation) -> str:
    size = "x".join(str(n) for n in _one(operation.output_shape))
    return f"'{operation.owner or operation.type}' gave {size}"


def _one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


# Rows


def _row(operation: Operation, use: int, parameters: int, seen: bool, field: Field) -> LayerRow:
    kernel, stride, padding, dilation = operation.window or ((), (), (), ())
    before, after = operation.input_shape[2:], operation.output_shape[2:]
    fits: tuple[WindowFit, ...] = ()
    formula = ""
    if operation.window is not None and operation.kind != "transposed":
        ceil = bool(operation.options.get("ceil_mode", False))
        fits = tuple(fit_windows(n, *window, ceil) for n, window in zip(before, _axes(operation), strict=True))
        formula = for_axes([window_formula(f, *window) for f, window in zip(fits, _axes(operation), strict=True)])
        if operation.kind == "pool":  # torch pads by half a window at most
            allowed = [(f.fitting_padding or 0) <= length // 2 for f, length in zip(fits, kernel, strict=True)]
            fits = tuple(f if ok else replace(f, fitting_padding=None) for f, ok in zip(fits, allowed, strict=True))
    elif operation.kind == "transposed":
        extra = operation.options["output_padding"]
        texts = [transposed_formula(*numbers) for numbers in zip(before, after, _axes(operation), extra, strict=True)]
        formula = for_axes(texts)
    elif operation.kind == "pool":
        kernel, formula = adaptive_windows(before, after)
        stride = kernel
    counts = operation.kind not in ("norm", "other")
    return LayerRow(
        layer=operation.owner,
        use=use,
        type=operation.type,
        kind=operation.kind,
        input_shape=_one(operation.input_shape),
        output_shape=_one(operation.output_shape),
        formula=formula,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(operation.options.get("groups", 1)),
        parameters=parameters,
        parameter_formula=_parameter_formula(operation, parameters),
        shared=seen and bool(operation.parameters),
        macs=operation.macs,
        activation_bytes=_FLOAT32 * math.prod(operation.output_shape) if counts else 0,
        jump=field.jump,
        receptive_field=field.size,
        clipped=field.clipped,
        first_center=field.center,
        fit=fits,
        followed=operation.followed,
    )


def _axes(operation: Operation) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation, axis by axis."""
    return list(zip(*operation.window, strict=True)) if operation.window is not None else []


def _parameter_formula(operation: Operation, parameters: int) -> str:
    if parameters == 0:
        return "shared with a row above" if operation.parameters else ""
    if operation.kind == "linear" and operation.weight is not None:
        factors, units, each = f"{operation.weight[1]}", operation.weight[0], "each unit"
    elif operation.kind in ("conv", "transposed") and operation.weight is not None:
        weight = operation.weight
        # A transposed convolution keeps its weight as (in, out / groups, ...).
        groups = int(operation.options["groups"])
        transposed = operation.kind == "transposed"
        depth, units = (weight[0] // groups, weight[1] * groups) if transposed else (weight[1], weight[0])
        factors, each = "·".join(str(n) for n in (*weight[2:], depth)), "each filter"
    else:
        return f"{parameters:,}"
    weights = math.prod(int(n) for n in factors.split("·"))
    total = weights + int(operation.bias)
    if total * units != parameters:  # a reparametrized weight, or one that is shared in part
        return f"{parameters:,}"
    bias = " + 1" if operation.bias else ""
    sides = f" = {total:,}" if bias or "·" in factors else ""
    return f"{each} {factors}{bias}{sides}, times {units:,} = {parameters:,}"
