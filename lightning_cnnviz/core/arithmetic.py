"""The arithmetic of convolutions: sizes, parameters, multiply-adds, receptive fields; what does not fit, what would.

For one layer there are functions of plain numbers, and for a whole network `layer_table`, a row an operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.operations import Kind, Operation, record_operations
from lightning_cnnviz.core.unclipped import Field, UnclippedFields

__all__ = [
    "Fit",
    "LayerRow",
    "LayerTable",
    "fit",
    "layer_table",
    "output_size",
    "parameter_count",
    "same_padding",
    "transposed_output_size",
]

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Fit:
    """How the windows of one layer lie on the rows (or columns) that it is given.

    Attributes:
        size: Number of rows that come in, N.
        exact: (N + 2P - D(F - 1) - 1) / S + 1, whole only where the windows fit.
        output: Number of rows that come out.
        unread: Rows of the padded input, at the bottom (right), that no window reads.
        lost: How many of these are rows of the input itself and not of its padding.
        overhang: Rows by which the last window reaches beyond the padded input, which only `ceil_mode` does.
        fitting_sizes: The nearest numbers of rows, below and above, with which the windows fit; empty where they do.
        fitting_padding: The padding on both sides nearest to P with which they fit; None where no such padding does.
        preserving_padding: The padding on both sides that keeps N rows, (F - 1) / 2 for a window of F; None where
            none does: for a stride other than one, and for windows of even length.
    """

    size: int
    exact: Fraction
    output: int
    unread: int
    lost: int
    overhang: int
    fitting_sizes: tuple[int, ...]
    fitting_padding: int | None
    preserving_padding: int | None

    @property
    def fits(self) -> bool:
        """Whether the windows fit without rest."""
        return self.exact.denominator == 1


@dataclass(frozen=True, eq=False)
class LayerRow:
    """One operation of a network. Sizes are for one image, and come as height, width.

    Attributes:
        layer: Path of the module that runs it; a function's is the module that calls it, empty for the network itself.
        use: The how manyth operation with this name, type and kind it is, from 1: above 1 where a module is used again.
        type: The module's class, "functional ..." for a function, or "sum", "concatenation", "product".
        kind: "conv", "transposed", "pool", "linear", "matmul", "resize", "pad", "join", "norm" or "other" (whatever
            else has parameters).
        input_shape: What comes in, mostly (C, H, W); of a join, its largest input.
        output_shape: What comes out.
        formula: Where the output size comes from, with its numbers; empty where there is nothing to reckon.
        kernel: Height and width of the window, empty where there is none. Of a pooling to a fixed size, where all of
            its windows are equal, these.
        stride: Of the window, as `padding` and `dilation` are.
        padding: On each side.
        dilation: Distance of the window's taps.
        groups: Number of groups of channels that do not see each other.
        parameters: Number of parameters that no row above has counted.
        parameter_formula: Where that number comes from.
        shared: Whether its parameters are counted in a row above, since a module or a weight is used again.
        macs: Multiply-adds of convolutions, linear layers and matrix products; a bias costs none.
        activation_bytes: Memory of the output in float32; 0 for norms and others, which one may run in place.
        jump: Cumulative stride: pixels from a unit to the next, down and across; None where there is no such number.
        receptive_field: Pixels, down and across, that a unit depends on, if no border cuts it off: so it may be larger
            than the image. Where units of a layer differ, as behind transposed convolutions, the largest. None, along
            an axis, for "the whole image": every unit depends on all of it, however large it is.
        clipped: Whether the field could be measured on this very size only, the network refuses others or depends on
            it, so that borders may cut it off; None stands then for a field that covers this size.
        first_center: Where the field of the first unit has its center, in pixels, down and across; 0 is the middle of
            the first pixel, less is beyond the border. None where the field is the whole image, or clipped.
        fit: How the windows lie on rows and on columns; empty where there is no such window.
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
    jump: tuple[float, float] | None
    receptive_field: tuple[int | None, int | None] | None
    clipped: bool
    first_center: tuple[float, float] | None
    fit: tuple[Fit, ...]

    @property
    def name(self) -> str:
        """The layer's path, with the number of its use where it is not the first."""
        path = self.layer or "(network)"
        return path if self.use == 1 else f"{path} #{self.use}"


@dataclass(frozen=True, eq=False)
class LayerTable:
    """What a network does with one image, operation by operation.

    Attributes:
        model: The network's class.
        input_size: Channels, height and width.
        rows: In order of execution.
        parameters: Number of all parameters of the network.
        unused: Names and sizes of the parameters that no row has: those of what does not run in eval mode.
    """

    model: str
    input_size: tuple[int, int, int]
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
        """The rows without norms and others, which change no shape."""
        return tuple(row for row in self.rows if row.kind not in ("norm", "other"))


def output_size(
    n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Return how many positions a window has on `n` rows: (N + 2P - D(F - 1) - 1) / S + 1, rounded down.

    With `ceil_mode`, as pooling has it, rounded up, unless the last window would begin beyond the input.

    Raises:
        ValueError: A number is out of range, or the window is larger than the padded input.

    Example:
        >>> output_size(32, kernel=5, stride=1, padding=2)
        32
    """
    _check(n=n, kernel=kernel, stride=stride, dilation=dilation)
    _check(least=0, padding=padding)
    return fit(n, kernel, stride, padding, dilation, ceil_mode).output


def transposed_output_size(
    n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, output_padding: int = 0
) -> int:
    """Return how many rows a transposed convolution makes of `n`: (N - 1)S - 2P + D(F - 1) + 1 + output padding.

    Raises:
        ValueError: A number is out of range, or nothing is left.

    Example:
        >>> transposed_output_size(16, kernel=4, stride=2, padding=1)
        32
    """
    _check(n=n, kernel=kernel, stride=stride, dilation=dilation)
    _check(least=0, padding=padding, output_padding=output_padding)
    if output_padding >= max(stride, dilation):
        raise ValueError(f"output_padding={output_padding} must be smaller than stride={stride} or dilation={dilation}")
    size = (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding
    if size < 1:
        raise ValueError(f"padding={padding} cuts off all rows: {size} would be left; take less")
    return size


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Return the padding on both sides that keeps the size at stride one: D(F - 1) / 2.

    Raises:
        ValueError: No padding does, since the window is of even length; or a number is out of range.

    Example:
        >>> same_padding(5)
        2
    """
    _check(kernel=kernel, dilation=dilation)
    reach = dilation * (kernel - 1)
    if reach % 2:
        raise ValueError(
            f"no padding that is equal on both sides keeps the size under a window of {reach + 1} rows: "
            f"pad {reach // 2} and {reach // 2 + 1}, or take an odd kernel"
        )
    return reach // 2


def parameter_count(
    in_channels: int, filters: int, kernel: int | Sequence[int], groups: int = 1, bias: bool = True
) -> int:
    """Return the number of parameters of a convolution: each filter has F·F·C weights and a bias.

    Args:
        in_channels: Channels that come in.
        filters: Channels that come out.
        kernel: Length of a square window, or one length a dimension.
        groups: In how many groups the channels are divided: a filter sees `in_channels / groups`.
        bias: Whether each filter has a bias.

    Raises:
        ValueError: A number is out of range, or the groups do not divide the channels.

    Example:
        >>> parameter_count(3, filters=10, kernel=5)
        760
    """
    lengths = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    _check(in_channels=in_channels, filters=filters, groups=groups, kernel=min(lengths, default=0))
    if in_channels % groups or filters % groups:
        raise ValueError(f"groups={groups} must divide in_channels={in_channels} and filters={filters}")
    return filters * (math.prod(lengths) * in_channels // groups + int(bias))


def fit(n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False) -> Fit:
    """Lay windows on `n` rows, and say what does not fit and what would.

    Raises:
        ValueError: The window is larger than the padded input.

    Example:
        >>> found = fit(224, kernel=11, stride=4, padding=0)
        >>> found.output, found.lost, found.fitting_sizes, found.fitting_padding
        (54, 1, (223, 227), None)
    """
    reach = dilation * (kernel - 1)
    room = n + 2 * padding - reach - 1
    if room < 0 and not (ceil_mode and room > -stride):
        raise ValueError(
            f"a window of {reach + 1} rows is larger than the input: {n} rows, padded to {n + 2 * padding}; "
            "take a larger input, a smaller kernel or more padding"
        )
    rest = room % stride
    output = room // stride + 1
    # torch drops a last window that would begin beyond the input and its padding at the top.
    hangs_over = bool(ceil_mode and rest and output * stride < n + padding)
    unread = 0 if hangs_over else rest
    sizes = tuple(size for size in (n - rest, n - rest + stride) if size + 2 * padding > reach and size > 0)
    fitting = [p for p in range(max(reach, padding) + 1) if n + 2 * p > reach and (n + 2 * p - reach - 1) % stride == 0]
    return Fit(
        size=n,
        exact=Fraction(room, stride) + 1,
        output=output + int(hangs_over),
        unread=unread,
        lost=max(0, unread - padding),
        overhang=stride - rest if hangs_over else 0,
        fitting_sizes=sizes if rest else (),
        fitting_padding=min(fitting, key=lambda p: (abs(p - padding), -p), default=None),
        preserving_padding=reach // 2 if stride == 1 and reach % 2 == 0 else None,
    )


def layer_table(model: nn.Module, input_size: Sequence[int] | Tensor) -> LayerTable:
    """Return what a network does with one image, a row an operation, in order of execution.

    The network runs in eval mode and is left as it was. It mostly runs without values, on shapes alone, and then once
    or twice more on a much higher and a much wider image, where no border cuts receptive fields off. Only where it
    cannot do without values does it compute: then on zeros, or on the image that is given.

    Rows are convolutions, pooling (to one value a channel also where it is a mean over the map), linear layers, matrix
    products of activations, changes of size, padding of its own, sums, concatenations and products where branches meet,
    norms, and whatever else has parameters. A network without any convolution has its rows too.

    Args:
        model: The network; its weights may lie on the meta device.
        input_size: Channels, height and width; or an image `(C, H, W)` or `(1, C, H, W)`.

    Raises:
        ValueError: The size is none, or the network refuses it (with its reason); or it was never run and does not
            know the shapes of its own weights.
        TypeError: `model` is no module.

    Example:
        >>> table = layer_table(nn.Sequential(nn.Conv2d(3, 10, 5, padding=2), nn.MaxPool2d(2)), (3, 32, 32))
        >>> [(row.formula, row.parameters, row.receptive_field) for row in table.rows]
        [('(32 + 2·2 - 5)/1 + 1 = 32', 760, (5, 5)), ('(32 - 2)/2 + 1 = 16', 0, (6, 6))]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layer_table needs an nn.Module, not {type(model).__name__}")
    image = _image(model, input_size)
    found, values = _record(model, image)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    plain = {name.replace("_orig_mod.", ""): size for name, size in sizes.items()}
    fields = UnclippedFields(model, image, found, values)
    rows, counted, uses = [], set[str](), dict[tuple[str, str], int]()
    for position, operation in enumerate(found):
        key = (operation.owner, operation.kind)
        uses[key] = uses.get(key, 0) + 1
        new = [name for name in operation.parameters if name not in counted]
        counted.update(new)
        rows.append(_row(operation, uses[key], sum(plain[name] for name in new), not new, fields.of(position)))
    unused = tuple((name, size) for name, size in plain.items() if name not in counted)
    _, channels, height, width = image.shape
    name = type(getattr(model, "_orig_mod", model)).__name__
    return LayerTable(name, (channels, height, width), tuple(rows), sum(plain.values()), unused)


def _check(*, least: int = 1, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name}={number} must be at least {least}")


def _image(model: nn.Module, input_size: Sequence[int] | Tensor) -> Tensor:
    """Return one image `(1, C, H, W)`, where the network's weights are and of their type."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"'{name}' of {type(model).__name__} has no shape yet: run the network once before")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(input_size, Tensor):
        image = input_size[None] if input_size.ndim == 3 else input_size
        if image.ndim != 4 or image.shape[0] != 1 or image.numel() == 0:
            raise ValueError(f"an image is (C, H, W) or (1, C, H, W), not {tuple(input_size.shape)}")
        return image.detach().to(like.device)
    size = tuple(int(n) for n in input_size)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"input_size={size} is no image: give channels, height and width, as in (3, 224, 224)")
    # Zeros pass through everything, norms included, without NaN.
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


def _record(model: nn.Module, image: Tensor) -> tuple[list[Operation], bool]:
    """Return the operations, and whether it took values to find them."""
    without = record_operations(model, image, values=False)
    if without.error is None:
        return without.operations, False
    found = without if image.is_meta else record_operations(model, image, values=True)
    if found.error is None:
        return found.operations, True
    size = "x".join(str(n) for n in image.shape[1:])
    where = f"layer '{found.where}'" if found.where else "the network itself"
    came = f", after {_brief(found.operations[-1])}" if found.operations else ""
    reason = " ".join(str(found.error).split()) or type(found.error).__name__
    raise ValueError(
        f"{type(model).__name__} does not take an image of {size}: {where} stopped{came}, with: {reason}"
    ) from found.error


def _brief(operation: Operation) -> str:
    size = "x".join(str(n) for n in _one(operation.output_shape))
    return f"'{operation.owner or operation.type}' gave {size}"


def _one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


# Rows


def _row(operation: Operation, use: int, parameters: int, seen: bool, field: Field) -> LayerRow:
    kernel, stride, padding, dilation = operation.window or ((), (), (), ())
    before, after = operation.input_shape[2:], operation.output_shape[2:]
    fits: tuple[Fit, ...] = ()
    formula = ""
    if operation.window is not None and operation.kind != "transposed":
        ceil = bool(operation.options.get("ceil_mode", False))
        fits = tuple(fit(n, *window, ceil) for n, window in zip(before, _axes(operation), strict=True))
        formula = _for_axes([_formula(f, *w[:4]) for f, w in zip(fits, _axes(operation), strict=True)])
    elif operation.kind == "transposed":
        extra = operation.options["output_padding"]
        texts = [_transposed_formula(*numbers) for numbers in zip(before, after, _axes(operation), extra, strict=True)]
        formula = _for_axes(texts)
    elif operation.kind == "pool":
        kernel, formula = _adaptive(before, after)
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
    )


def _axes(operation: Operation) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation, axis by axis."""
    return list(zip(*operation.window, strict=True)) if operation.window is not None else []


def _for_axes(texts: list[str]) -> str:
    if len(set(texts)) == 1:
        return texts[0]
    names = ("rows", "columns") if len(texts) == 2 else ("frames", "rows", "columns")
    return "; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))


def _formula(found: Fit, kernel: int, stride: int, padding: int, dilation: int) -> str:
    pad = f" + 2·{padding}" if padding else ""
    window = f"{kernel}" if dilation == 1 else f"({dilation}·{kernel - 1} + 1)"
    text = f"({found.size}{pad} - {window})/{stride} + 1 = {_decimal(found.exact)}"
    return text if found.fits else f"{text}, so {found.output}"


def _decimal(number: Fraction) -> str:
    text = f"{float(number):.2f}".rstrip("0").rstrip(".")
    return text if Fraction(text) == number else f"{math.floor(number)} {Fraction(number - math.floor(number))}"


def _transposed_formula(before: int, after: int, window: tuple[int, int, int, int], extra: int) -> str:
    kernel, stride, padding, dilation = window
    reach = f"{kernel}" if dilation == 1 else f"{dilation}·{kernel - 1} + 1"
    pad = f" - 2·{padding}" if padding else ""
    return f"({before} - 1)·{stride}{pad} + {reach}{f' + {extra}' if extra else ''} = {after}"


def _adaptive(before: Sequence[int], after: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """The windows of a pooling to a fixed size, which it chooses itself."""
    after = tuple(after) or (1,) * len(before)
    equal = all(n % m == 0 for n, m in zip(before, after, strict=True))
    windows = [
        f"{n // m}" if n % m == 0 else f"{n // m} to {-(-n // m) + (1 if n > m and n % m > 1 and m > 1 else 0)}"
        for n, m in zip(before, after, strict=True)
    ]
    texts = [f"{n} to {m}, windows of {window}" for n, m, window in zip(before, after, windows, strict=True)]
    return tuple(n // m for n, m in zip(before, after, strict=True)) if equal else (), _for_axes(texts)


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
    if total * units != parameters:  # a reparametrized weight, or half of it shared
        return f"{parameters:,}"
    bias = " + 1" if operation.bias else ""
    sides = f" = {total:,}" if bias or "·" in factors else ""
    return f"{each} {factors}{bias}{sides}, times {units:,} = {parameters:,}"
