"""The arithmetic of one layer: how its windows lie on rows, how many parameters it has, and what does not fit.

Plain numbers in and out; `table.layer_table` applies it to whole networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "WindowFit",
    "adaptive_windows",
    "fit_windows",
    "for_axes",
    "output_size",
    "parameter_count",
    "same_padding",
    "transposed_formula",
    "transposed_output_size",
    "window_formula",
]


@dataclass(frozen=True, kw_only=True)
class WindowFit:
    """How the windows of one layer lie on its input along one axis; "rows" stands for columns, too.

    Attributes:
        size: Number of input rows, N.
        exact: (N + 2P - D(F - 1) - 1) / S + 1, whole only where the windows fit.
        output: Number of output rows.
        unread: Rows of the padded input that no window reads; they lie at the bottom (columns: at the right).
        lost: How many of these are rows of the input itself and not of its padding.
        overhang: Rows by which the last window reaches beyond the padded input, which only `ceil_mode` does.
        fitting_sizes: The nearest numbers of rows, below and above, with which the windows fit; empty where they do.
        fitting_padding: The padding on both sides nearest to P with which they fit and every window still overlaps the
            input; None where there is none.
        preserving_padding: The padding on both sides that keeps N rows, D(F - 1) / 2; None where there is none: for a
            stride other than one, and for windows of even length.
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
        """Whether the windows fit without remainder."""
        return self.exact.denominator == 1


def output_size(
    n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Return the number of output rows of a convolution or pooling: (N + 2P - D(F - 1) - 1) / S + 1, rounded down.

    With `ceil_mode`, as pooling has it, rounded up, unless the last window would begin beyond the input.

    Args:
        n: Number of input rows, N.
        kernel: Length of the window, F.
        stride: Step from a window to the next, S.
        padding: Rows added on each side, P.
        dilation: Distance between the taps of the window, D.
        ceil_mode: Whether to round up.

    Raises:
        ValueError: A number is out of range, or the window is larger than the padded input.

    Example:
        >>> output_size(32, kernel=5, stride=1, padding=2)
        32
    """
    return fit_windows(n, kernel, stride, padding, dilation, ceil_mode).output


def transposed_output_size(
    n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, output_padding: int = 0
) -> int:
    """Return the number of output rows of a transposed convolution: (N - 1)S - 2P + D(F - 1) + 1 + output padding.

    Args:
        n: Number of input rows, N.
        kernel: Length of the window, F.
        stride: Step from a window to the next in the output, S.
        padding: Rows cut off on each side, P.
        dilation: Distance between the taps of the window, D.
        output_padding: Rows added at the end.

    Raises:
        ValueError: A number is out of range, or no row is left.

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


def fit_windows(
    n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> WindowFit:
    """Lay windows on `n` rows; say what does not fit, and what would.

    Args:
        n: Number of input rows.
        kernel: Length of the window.
        stride: Step from a window to the next.
        padding: Rows added on each side.
        dilation: Distance between the taps of the window.
        ceil_mode: Whether to add a last window that reaches beyond the padded input.

    Raises:
        ValueError: A number is out of range, or the window is larger than the padded input.

    Example:
        >>> fit = fit_windows(224, kernel=11, stride=4, padding=0)
        >>> fit.output, fit.lost, fit.fitting_sizes, fit.fitting_padding
        (54, 1, (223, 227), None)
    """
    _check(n=n, kernel=kernel, stride=stride, dilation=dilation)
    _check(least=0, padding=padding)
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
    paddings = {padding, *range(reach + 1)}
    fitting = [p for p in paddings if n + 2 * p > reach and (n + 2 * p - reach - 1) % stride == 0]
    return WindowFit(
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


# The same as text


def for_axes(texts: list[str]) -> str:
    """Say once what holds for all axes, else axis by axis."""
    if len(set(texts)) == 1:
        return texts[0]
    names = ("rows", "columns") if len(texts) == 2 else ("frames", "rows", "columns")
    return "; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))


def window_formula(fit: WindowFit, kernel: int, stride: int, padding: int, dilation: int) -> str:
    """Write the output size with its numbers: "(32 + 2·2 - 5)/1 + 1 = 32"."""
    pad = f" + 2·{padding}" if padding else ""
    window = f"{kernel}" if dilation == 1 else f"({dilation}·{kernel - 1} + 1)"
    text = f"({fit.size}{pad} - {window})/{stride} + 1 = {_decimal(fit.exact)}"
    return text if fit.fits else f"{text}, so {fit.output}"


def _decimal(number: Fraction) -> str:
    text = f"{float(number):.2f}".rstrip("0").rstrip(".")
    return text if Fraction(text) == number else f"{math.floor(number)} {Fraction(number - math.floor(number))}"


def transposed_formula(before: int, after: int, window: tuple[int, int, int, int], extra: int) -> str:
    """Write the output size with its numbers: "(16 - 1)·2 - 2·1 + 4 = 32"."""
    kernel, stride, padding, dilation = window
    reach = f"{kernel}" if dilation == 1 else f"{dilation}·{kernel - 1} + 1"
    pad = f" - 2·{padding}" if padding else ""
    return f"({before} - 1)·{stride}{pad} + {reach}{f' + {extra}' if extra else ''} = {after}"


def adaptive_windows(before: Sequence[int], after: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Return the windows that pooling to a fixed size chooses, empty where they differ, and how it comes by them."""
    after = tuple(after) or (1,) * len(before)
    lengths = [_adaptive_lengths(n, m) for n, m in zip(before, after, strict=True)]
    texts = [
        f"{n} to {m}, windows of {shortest}" + (f" to {longest}" if longest > shortest else "")
        for n, m, (shortest, longest) in zip(before, after, lengths, strict=True)
    ]
    equal = all(shortest == longest for shortest, longest in lengths)
    return tuple(shortest for shortest, _ in lengths) if equal else (), for_axes(texts)


def _adaptive_lengths(size: int, bins: int) -> tuple[int, int]:
    """Length of the shortest and of the longest window of `bins` that cover `size` rows."""
    lengths = {-(-(place + 1) * size // bins) - place * size // bins for place in range(bins)}
    return min(lengths), max(lengths)


def _check(*, least: int = 1, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name}={number} must be at least {least}")
