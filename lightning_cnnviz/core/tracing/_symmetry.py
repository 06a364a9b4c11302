"""Whether an operation does to columns what it does to rows: then what holds down a square image holds across it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing._operation_rules import ShapedCall

__all__ = ["treats_axes_alike"]


def treats_axes_alike(call: ShapedCall) -> bool:
    """Whether rows and columns, the last two dimensions, are the same to an operation; False where that is not sure."""
    if call.name in calls.COPIES or call.operator.pointwise:
        return True
    rule = _RULES.get(call.name)
    return rule is not None and rule(call)


def _always(_call: ShapedCall) -> bool:
    return True


def _window(call: ShapedCall) -> bool:
    pairs = [*call.window(2), call.numbers("output_padding", 2)]
    return len(call.shapes[0]) == 4 and all(len(pair) == 2 and pair[0] == pair[1] for pair in pairs)


def _sizes(call: ShapedCall) -> bool:
    before, after = call.shapes[0][-2:], call.output[-2:]
    scales = call.argument("scale_factors") or (call.argument("scales_h"), call.argument("scales_w"))
    return before[0] == before[1] and after[0] == after[1] and len({*scales}) == 1


def _pad(call: ShapedCall) -> bool:
    pad = [*call.args[1], 0, 0, 0, 0]
    return pad[:2] == pad[2:4]


def _one_dim(call: ShapedCall) -> bool:
    """Slices, pieces, concatenations and rolls along other dimensions than these two."""
    return _others(call, [call.argument("dim", 0)])


def _over(call: ShapedCall) -> bool:
    """Means and the like: over both of them, or none."""
    dims, count = call.argument("dim"), len(call.shapes[0])
    if dims is None or dims == []:
        return True
    dims = [dims] if isinstance(dims, int) else dims
    return {count - 2, count - 1} <= {dim % count for dim in dims} or _others(call, dims)


def _others(call: ShapedCall, dims: Sequence[int]) -> bool:
    count = len(call.shapes[0])
    return count >= 4 and all(dim % count < count - 2 for dim in dims)


def _swap(call: ShapedCall) -> bool:
    return _others(call, [call.args[1], call.args[2]])


def _reshape(call: ShapedCall) -> bool:
    return len(call.output) == 2 or call.shapes[0][-2:] == call.output[-2:]


def _flat(call: ShapedCall) -> bool:
    return all(len(shape) == 2 for shape in call.shapes)


_RULES: dict[str, Callable[[ShapedCall], bool]] = {
    **dict.fromkeys(calls.CONVOLUTIONS | calls.MAX_POOLS | calls.AVERAGE_POOLS, _window),
    **dict.fromkeys(calls.ADAPTIVE_POOLS | calls.NEAREST_UPSAMPLINGS | calls.INTERPOLATIONS, _sizes),
    **dict.fromkeys(calls.CONSTANT_PADS | calls.EDGE_PADS, _pad),
    **dict.fromkeys(calls.JOINS | calls.SLICES | calls.SPLITS | {"select", "unbind"}, _one_dim),
    **dict.fromkeys(calls.REDUCTIONS, _over),
    **dict.fromkeys(calls.BATCH_NORMS | calls.GROUP_NORMS | {"pixel_shuffle", "pixel_unshuffle"}, _always),
    **dict.fromkeys(calls.RESHAPES, _reshape),
    **dict.fromkeys(["mm", "addmm", "t"], _flat),
    "transpose": _swap,
}
