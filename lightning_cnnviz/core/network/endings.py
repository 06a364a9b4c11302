"""What a network's output is made by: probabilities by a softmax or a sigmoid, and what is computed from these.

For each tensor that is computed from softmaxes, sigmoids and constants alone, bounds of its values are kept. So an
average of sigmoids is known to be probabilities, and their sum, which reaches 2, or a scaled tanh are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Ending", "EndingMode", "sums_to_one", "undone", "within_one"]

Ending = Literal["softmax", "sigmoid", ""]
"""The function that a network ends in, where that makes probabilities: of all classes together, or of each."""


def undone(values: Tensor, ending: Ending) -> Tensor:
    """Return logits whose softmax, or sigmoid, some probabilities are; of no ending, the values themselves.

    Example:
        >>> undone(torch.tensor([[0.25, 0.75]]), "softmax").softmax(1)
        tensor([[0.2500, 0.7500]])
    """
    if not ending:
        return values
    exact = values if values.dtype == torch.float64 else values.float()
    if ending == "sigmoid":
        return exact.logit(torch.finfo(exact.dtype).eps)
    return exact.clamp(min=torch.finfo(exact.dtype).tiny).log()


def sums_to_one(values: Tensor, tolerance: float | None = None) -> bool:
    """Return whether all rows `(N, classes, ...)` that are not NaN lie within 0 and 1, and sum to one.

    Args:
        values: `(N, classes, ...)`.
        tolerance: Of the sums; None where a single row may come near by chance.
    """
    if not within_one(values) or values.ndim == 1 or values.shape[1] == 1:
        return False
    sums = _sums(values)
    close = max(1e-5, torch.finfo(values.dtype).eps) if tolerance is None else tolerance
    return torch.allclose(sums, torch.ones_like(sums), atol=close)


def within_one(values: Tensor) -> bool:
    """Return whether the scores of all images that have no NaN lie within 0 and 1."""
    known = _known(values)
    return known.numel() > 0 and bool(((known >= 0) & (known <= 1 + _tolerance(values))).all())


def _known(values: Tensor) -> Tensor:
    return values[~values.flatten(1).isnan().any(1)] if values.ndim > 1 else values[~values.isnan()]


def _sums(values: Tensor) -> Tensor:
    return _known(values).float().sum(1)


def _tolerance(values: Tensor) -> float:
    return max(1e-3, torch.finfo(values.dtype).eps)


class _Range(NamedTuple):
    """Between what values lie.

    Attributes:
        low: The bound below.
        high: The bound above.
        ending: What they were computed from; empty of constants.
        loose: Whether they may lie closer than the bounds say: weights that sum to one, say, are not followed.
    """

    low: float
    high: float
    ending: Ending = ""
    loose: bool = False

    def between(self, low: float, high: float) -> _Range:
        return self._replace(low=low, high=high)


class EndingMode(TorchDispatchMode):
    """Follows, for as long as it is entered, what is computed from softmaxes and sigmoids, and its bounds."""

    def __init__(self, images: Tensor) -> None:
        """Begin at the images, on which everything else that counts depends."""
        super().__init__()  # type: ignore[no-untyped-call]
        # What depends on the images; None where other things have come in. All else is constant.
        self._ranges = WeakTensorKeyDictionary()
        self._ranges[images] = None

    def of(self, values: Tensor) -> Ending:
        """Return what has made probabilities; empty where a tensor is none."""
        found: _Range | None = self._ranges.get(values)
        if found is None or not within_one(values):
            return ""
        proven = found.low >= 0 and found.high <= 1 + _tolerance(values)
        if found.ending == "softmax" and values.ndim > 1 and values.shape[1] > 1:
            if sums_to_one(values, _tolerance(values)):
                return "softmax"
            if not proven and bool((_sums(values) > 1 + _tolerance(values)).any()):
                return ""
        return "sigmoid" if proven or found.loose else ""

    def never_negative(self, values: Tensor) -> bool:
        """Return whether a tensor is no probabilities, but is computed from them so that it is never below zero."""
        found: _Range | None = self._ranges.get(values)
        return found is not None and found.low >= 0 and not self.of(values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        given = _tensors([*args, *kwargs.values()])
        depends = any(tensor in self._ranges for tensor in given)
        ranges = self._read(name, args, kwargs) if depends else None  # before it is written over
        returned = func(*args, **kwargs)
        if not depends:
            return returned
        made = _tensors([returned])
        size = args[0].numel() / max(made[0].numel(), 1) if made and args and isinstance(args[0], Tensor) else 1.0
        range_ = None if ranges is None else _RULES[_plain(name)](ranges, kwargs, size)
        if range_ is not None and (math.isnan(range_.low) or math.isnan(range_.high)):
            range_ = None
        for tensor in made:
            self._ranges[tensor] = range_ if tensor.is_floating_point() else None
        if name.endswith("_") and args and isinstance(args[0], Tensor) and args[0]._base is not None:
            self._write(args[0]._base, range_)
        return returned

    def _read(self, name: str, args: Any, kwargs: Any) -> list[_Range] | None:
        """The ranges of an operation's operands, as far as it is followed and all of them are known."""
        if _plain(name) in _BEGUN:
            return []
        if _plain(name) not in _RULES:
            return None
        read: list[_Range] = []
        for value in _operands(_plain(name), args, kwargs):
            if isinstance(value, Tensor):
                found = self._ranges[value] if value in self._ranges else _constant(value)
            else:
                found = _Range(float(value), float(value))
            if found is None and _plain(name) != "exp":
                return None
            # An exponential begins a sigmoid, or a softmax, that is spelled out.
            read.append(found or _Range(-math.inf, math.inf, "sigmoid"))
        return read

    def _write(self, whole: Tensor, written: _Range | None) -> None:
        """A part of a tensor has been written over."""
        before = self._ranges.get(whole, _Range(0, 0, loose=True))  # of a constant, which may be anything yet
        self._ranges[whole] = None if before is None or written is None else _joined([before, written], {}, 1)


_Rule = Callable[[Sequence[_Range], dict[str, Any], float], "_Range | None"]


def _plain(name: str) -> str:
    return name.rstrip("_") if name.endswith("_") else name


def _constant(value: Tensor) -> _Range | None:
    if not value.numel() or value.is_complex():
        return None
    low, high = float(value.min()), float(value.max())
    return _Range(low, high, loose=low != high)


def _operands(name: str, args: Any, kwargs: Any) -> list[Any]:
    """The values that an operation computes with, without its settings."""
    if name in ("cat", "stack"):
        return list(args[0])
    if name in ("where", "copy"):
        return list(args[1:3] if name == "where" else args[1:2])
    if name == "masked_fill":
        return [args[0], args[2]]
    if name == "constant_pad_nd":
        return [args[0], args[2] if len(args) > 2 else 0]
    if name in ("clamp_min", "clamp_max"):
        ends = (args[1], math.inf) if name == "clamp_min" else (-math.inf, args[1])
        return [args[0], *ends]
    if name == "clamp":
        named = [args[place] if len(args) > place else kwargs.get(key) for place, key in ((1, "min"), (2, "max"))]
        free = (-math.inf, math.inf)
        return [args[0], *(end if bound is None else bound for bound, end in zip(named, free, strict=True))]
    return list(args[:2] if name in _OF_TWO else args[:1])


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
    return found


def _begun(ending: Ending, low: float, high: float) -> _Rule:
    return lambda _given, _options, _size: _Range(low, high, ending)


def _kept(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    return given[0]


def _together(given: Sequence[_Range]) -> _Range:
    """What several ranges have in common; their bounds are still to be said."""
    endings = {one.ending for one in given if one.ending}
    ending: Ending = "" if not endings else endings.pop() if len(endings) == 1 else "sigmoid"
    return _Range(0, 0, ending, any(one.loose for one in given))


def _joined(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    return _together(given).between(min(one.low for one in given), max(one.high for one in given))


def _added(given: Sequence[_Range], options: dict[str, Any], _size: float, sign: int = 1) -> _Range:
    one, other = given
    ends = [_times(sign * options.get("alpha", 1), end) for end in (other.low, other.high)]
    both = _together(given)
    # The probabilities of several classes together: at most one, too.
    loose = both.loose or (one.ending == other.ending == "softmax" and sign > 0)
    return both.between(one.low + min(ends), one.high + max(ends))._replace(loose=loose)


def _subtracted(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range:
    return _added(given, options, size, -1)


def _subtracted_from(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range:
    return _added(given[::-1], options, size, -1)


def _negated(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    return given[0].between(-given[0].high, -given[0].low)


def _multiplied(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    one, other = given
    ends = [_times(a, b) for a in one[:2] for b in other[:2]]
    both = _together(given).between(min(ends), max(ends))
    return _unlike(both, given)


def _divided(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range | None:
    if "rounding_mode" in options:
        return None
    below = given[1]
    if below.low < 0 <= below.high:
        return None
    with_inverse = below.between(_inverse(below.high), _inverse(below.low) if below.low else math.inf)
    return _multiplied([given[0], with_inverse], {}, size)


def _inverted(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range | None:
    return _divided([_Range(1, 1), given[0]], options, size)


def _unlike(made: _Range, given: Sequence[_Range]) -> _Range:
    """A product of several is not of a softmax, and sums of it may be less than its bounds say."""
    several = sum(bool(one.ending) for one in given) > 1
    return made._replace(loose=True) if several else made


def _summed(given: Sequence[_Range], _options: Any, size: float) -> _Range:
    ends = (size * given[0].low, size * given[0].high)
    loose = given[0].loose or given[0].ending == "softmax"
    return given[0].between(*ends)._replace(loose=loose)


def _all_multiplied(given: Sequence[_Range], _options: Any, _size: float) -> _Range | None:
    inside = given[0].low >= 0 and given[0].high <= 1
    return given[0].between(0, 1)._replace(ending="sigmoid") if inside else None


def _matrix_product(given: Sequence[_Range], _options: Any, _size: float) -> _Range | None:
    """Of probabilities with probabilities, as a mixture's: what is summed is not followed."""
    if any(not one.ending or one.low < 0 for one in given):
        return None  # a layer with weights: its outputs are logits
    return _together(given).between(0, math.inf)._replace(loose=True)


def _exponential(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    return given[0].between(*(math.exp(min(end, 700)) if end < math.inf else end for end in given[0][:2]))


def _squared(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range | None:
    return _power([given[0], _Range(2, 2)], options, size)


def _root(given: Sequence[_Range], options: dict[str, Any], size: float) -> _Range | None:
    return _power([given[0], _Range(0.5, 0.5)], options, size)


def _power(given: Sequence[_Range], _options: Any, _size: float) -> _Range | None:
    base, exponent = given
    if base.low < 0 or exponent.low < 0 or exponent.low != exponent.high or not base.ending:
        return None
    return base.between(base.low**exponent.low, base.high**exponent.low)


def _clamped(given: Sequence[_Range], _options: Any, _size: float) -> _Range:
    ends = [max(min(end, given[2].high), given[1].low) for end in given[0][:2]]
    return given[0].between(*ends)


def _times(one: float, other: float) -> float:
    return 0.0 if not (one and other) else one * other


def _inverse(value: float) -> float:
    return math.inf if not value else 1 / value


# Operations as torch spells them below autograd, in place or not.
_BEGUN: dict[str, _Rule] = {
    **dict.fromkeys(("_softmax", "softmax"), _begun("softmax", 0, 1)),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), _begun("sigmoid", 0, 1)),
    "_log_softmax": _begun("softmax", -math.inf, 0),
    "log_sigmoid_forward": _begun("sigmoid", -math.inf, 0),
    "tanh": _begun("sigmoid", -1, 1),
}
_MOVED = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "squeeze", "unsqueeze", "select", "slice"),
    *("narrow", "transpose", "permute", "t", "expand", "alias", "as_strided", "detach", "clone", "contiguous"),
    *("_to_copy", "split", "split_with_sizes", "unbind", "index", "index_select", "gather", "flip", "roll", "repeat"),
    *("mean", "amax", "amin", "max", "min", "median", "sort", "topk", "unfold", "diagonal", "cummax", "cummin"),
    *("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"),
    *("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_linear1d"),
)
_OF_TWO: dict[str, _Rule] = {
    **{"add": _added, "sub": _subtracted, "rsub": _subtracted_from, "mul": _multiplied, "div": _divided},
    **{"maximum": _joined, "minimum": _joined, "fmax": _joined, "fmin": _joined, "pow": _power},
    **dict.fromkeys(("bmm", "mm", "mv", "dot"), _matrix_product),
}
_RULES: dict[str, _Rule] = {
    **_BEGUN,
    **dict.fromkeys(_MOVED, _kept),
    **_OF_TWO,
    **dict.fromkeys(("cat", "stack", "where", "masked_fill", "constant_pad_nd", "copy"), _joined),
    **{"neg": _negated, "sum": _summed, "prod": _all_multiplied, "square": _squared, "sqrt": _root},
    **{"exp": _exponential, "reciprocal": _inverted, **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamped)},
}
