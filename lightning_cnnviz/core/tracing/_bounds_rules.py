"""How bounds go through each kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing._bounds import (
    NOTHING,
    Bounds,
    Step,
    each,
    everything,
    nothing,
    over_channels,
    remember_over_channels,
    union,
)
from lightning_cnnviz.core.tracing._bounds_windows import (
    convolution_bounds,
    fixed_size_pool_bounds,
    folded_bounds,
    interpolation_bounds,
    pool_3d_bounds,
    pool_bounds,
    unfolded_bounds,
)
from lightning_cnnviz.core.tracing._sampling import sampler_bounds

__all__ = ["RULES", "output_bounds"]

Rule = Callable[[Step], "list[Bounds] | None"]
"""Returns the bounds of an operation's outputs; None where it cannot tell."""

# What is written, as the operations call it; and those that join it to what is there.
_VALUES = ("src", "source", "values", "value")
_JOINING_WRITES = frozenset(["scatter_add", "scatter_reduce", "index_add"])


def output_bounds(step: Step) -> list[Bounds] | None:
    """Return the bounds of an operation's outputs; None where no rule tells."""
    if step.name in calls.CONSTANTS or (step.name in calls.FILLS and step.writes_only_itself):
        return _constant(step)
    rule = RULES.get(step.name) or (_pointwise if step.operator.pointwise else None)
    return None if rule is None else rule(step)


def _pointwise(step: Step) -> list[Bounds] | None:
    if step.writes_only_itself:
        return list(step.given.values())
    shape = step.outputs[0].shape
    return [union(list(step.given.values()), shape) for _ in step.outputs]


def _first_as_it_is(step: Step) -> list[Bounds] | None:
    return [step.bounds(step.args[0])] if step.only_first else None


def _moved(step: Step) -> list[Bounds] | None:
    """Operations that move values about without mixing them are run on the boxes themselves."""
    if not step.only_first:
        return None
    # Bounds are expanded views, which cannot always be viewed anew.
    move = torch.reshape if step.name in calls.RESHAPES else step.functional
    if move is None or any(isinstance(argument, torch.dtype) for argument in step.args):
        return None  # a view of the same memory as other numbers
    # Bounds lie on the CPU.
    args = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(step.args[1:]))
    sides = [tree_leaves(move(b, *args, **step.kwargs)) for b in step.bounds(step.args[0])]
    return list(zip(*sides, strict=True))


def _triangle(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    kept = step.functional(torch.ones(step.args[0].shape[-2:]), *step.args[1:], **step.kwargs).bool()
    return [each(lambda b: torch.where(kept, b, NOTHING), step.bounds(step.args[0]))]


def _written_at_places(step: Step) -> list[Bounds] | None:
    """Values go where an index says: into the boxes likewise, where the index does not depend on the image."""
    target, name = step.args[0], next((name for name in _VALUES if name in step.operator.places), "")
    values = step.argument(name)
    if any(tensor is not target and tensor is not values for tensor in step.dependent) or values is None:
        return None
    place = step.operator.places[name][0]
    joins = step.name in _JOINING_WRITES or step.argument("reduce") is not None
    if place >= len(step.args) or bool(step.argument("accumulate", False)):
        return None
    args = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(step.args))
    new: Sequence[Tensor | float] = step.bounds(values) if isinstance(values, Tensor) else [NOTHING] * step.sides

    def run(old: Tensor, value: Tensor | float) -> Tensor:
        if not joins:
            written: Tensor = step.functional(*[old, *args[1:place], value, *args[place + 1 :]], **step.kwargs)
            return written
        if not isinstance(value, Tensor):
            return old
        index = args[2]
        if step.name == "index_add":
            index = index.view([-1 if dim == args[1] % old.ndim else 1 for dim in range(old.ndim)]).expand_as(value)
        return old.contiguous().scatter_reduce(args[1], index, value.contiguous(), "amax")

    return [tuple(run(old, value) for old, value in zip(step.bounds(target), new, strict=True))]


def _constant(step: Step) -> list[Bounds] | None:
    return [nothing(tensor.shape, step.sides) for tensor in step.outputs]


def _copied(step: Step) -> list[Bounds] | None:
    return [union([step.bounds(step.args[1])], step.outputs[0].shape)]


def _joined(step: Step) -> list[Bounds] | None:
    """Concatenate or stack: pieces that do not depend on the image reach nothing."""
    pieces = [step.bounds(tensor) for tensor in step.args[0]]
    shape = step.outputs[0].shape
    along = int(step.argument("dim", 0)) % len(shape)

    def run(side: int) -> Tensor:
        parts = [piece[side] for piece in pieces]
        if len({part.shape[:along] + part.shape[along + 1 :] for part in parts}) == 1 and parts[0].ndim == len(shape):
            # Where all pieces are constant along a dimension, so is the whole.
            for dim in range(len(shape)):
                if dim != along and shape[dim] > 1 and all(part.stride(dim) == 0 for part in parts):
                    parts = [part.narrow(dim, 0, 1) for part in parts]
        joined: Tensor = step.functional(parts, *step.args[1:], **step.kwargs)
        joined = joined.expand(shape)
        if step.name == "cat" and along == 1 and all(piece[side].ndim == len(shape) == 4 for piece in pieces):
            farthest = [over_channels(piece[side]) for piece in pieces]
            remember_over_channels(joined, reduce(torch.maximum, farthest))
        return joined

    return [tuple(run(side) for side in range(step.sides))]


def _padded(step: Step) -> list[Bounds] | None:
    pad = step.args[1]
    return [each(lambda b: F.pad(b, pad, value=NOTHING), step.bounds(step.args[0]))]


def _reduced(step: Step) -> list[Bounds] | None:
    """Sums, means, norms, extrema over dimensions."""
    if step.argument("other") is not None:
        return _pointwise(step)
    if not step.only_first:
        return None
    bounds = step.bounds(step.args[0])
    dims = step.argument("dim")
    keep = bool(step.argument("keepdim", False))
    ndim = bounds[0].ndim
    chosen = list(range(ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    reach = each(lambda b: b.amax(dim=chosen, keepdim=keep), bounds)
    if any(tensor.shape != reach[0].shape for tensor in step.outputs):
        return None
    return [reach for _ in step.outputs]


def _mixed_along(step: Step) -> list[Bounds] | None:
    """Softmax and sorting: every element of a line depends on the whole line."""
    if not step.only_first:
        return None
    reach = each(lambda b: b.amax(step.argument("dim"), keepdim=True), step.bounds(step.args[0]))
    return [each(lambda b, shape=tensor.shape: b.expand(shape), reach) for tensor in step.outputs]  # type: ignore[misc]


def _running(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    reach = each(lambda b: b.cummax(int(step.argument("dim")))[0], step.bounds(step.args[0]))
    return [reach for _ in step.outputs]


def _complex_view(step: Step) -> list[Bounds] | None:
    if step.name == "view_as_complex":
        return [each(lambda b: b.amax(-1), step.bounds(step.args[0]))]
    return [each(lambda b: b[..., None].expand(*b.shape, 2), step.bounds(step.args[0]))]


def _fourier(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    shape = step.outputs[0].shape
    return [each(lambda b: b.amax(step.args[1], keepdim=True).expand(shape), step.bounds(step.args[0]))]


def _attention(step: Step) -> list[Bounds] | None:
    """Each query `(..., L, E)` with all keys `(..., S, E)` and values of its own batch and head, and its bias."""
    queries, keys, values = step.args[:3]
    out = step.outputs[0]
    if not queries.shape[:-2] == keys.shape[:-2] == values.shape[:-2] == out.shape[:-2]:
        return None
    reach = []
    for tensor, dims in ((queries, (-1,)), (keys, (-2, -1)), (values, (-2, -1))):
        if id(tensor) in step.given:
            reach.append(each(lambda b, dims=dims: b.amax(dims, keepdim=True), step.bounds(tensor)))  # type: ignore[misc]
    bias = step.argument("attn_mask") if step.argument("attn_bias") is None else step.argument("attn_bias")
    if bias is not None and id(bias) in step.given:
        reach.append(each(lambda b: b.amax(-1, keepdim=True), step.bounds(bias)))
    return [union(reach, out.shape), *[everything(step.given.values(), tensor) for tensor in step.outputs[1:]]]


def _layer_norm(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    dims = tuple(range(-len(step.args[1]), 0))
    mixed = each(lambda b: b.amax(dims, keepdim=True).expand(b.shape), step.bounds(step.args[0]))
    return [union([mixed], tensor.shape) if tensor.shape == mixed[0].shape else everything([mixed], tensor)
            for tensor in step.outputs]  # fmt: skip


def _group_norm(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    groups = int(step.argument("group"))

    def mix(b: Tensor) -> Tensor:
        batch, channels = b.shape[:2]
        reach = b.reshape(batch, groups, -1).amax(2, keepdim=True)
        return (
            reach.expand(batch, groups, channels // groups).reshape(batch, channels, *[1] * (b.ndim - 2)).expand_as(b)
        )

    mixed = each(mix, step.bounds(step.args[0]))
    return [mixed, *[everything([mixed], tensor) for tensor in step.outputs[1:]]]


def _batch_norm(step: Step) -> list[Bounds] | None:
    if not step.only_first:
        return None
    same = step.bounds(step.args[0])
    if step.uses_batch_statistics:  # as instance norm does, too
        dims = [dim for dim in range(same[0].ndim) if dim != 1]
        same = each(lambda b: b.amax(dims, keepdim=True).expand(b.shape), same)
    return [same if tensor.shape == same[0].shape else everything([same], tensor) for tensor in step.outputs]


def _matmul(step: Step) -> list[Bounds] | None:
    left, right = (argument for argument in step.args if isinstance(argument, Tensor))
    return _product(step, left, right)


def _addmm(step: Step) -> list[Bounds] | None:
    product = _product(step, step.args[1], step.args[2])
    return [union([step.bounds(step.args[0]), *product], step.outputs[0].shape)]


def _product(step: Step, left: Tensor, right: Tensor) -> list[Bounds]:
    if right.ndim < 2:
        lines = [each(lambda b: b.amax(-1), step.bounds(left))] if id(left) in step.given and left.ndim > 1 else []
        others = [bounds for tensor, bounds in step.given.items() if not lines or tensor != id(left)]
        return [union([*lines, *([everything(others, step.outputs[0])] if others else [])], step.outputs[0].shape)]
    # Weights are large and reach nothing: only what depends on the image is looked at.
    reach = []
    if id(left) in step.given:
        reach.append(each(lambda b: b.amax(-1, keepdim=True), step.bounds(left)))
    if id(right) in step.given:
        reach.append(each(lambda b: b.amax(-2, keepdim=True), step.bounds(right)))
    return [union(reach, step.outputs[0].shape)] if reach else []


RULES: dict[str, Rule] = {
    **dict.fromkeys(calls.COPIES, _first_as_it_is),
    **dict.fromkeys(calls.RESHAPES | calls.PERMUTATIONS | calls.SPLITS | calls.SLICES | calls.OTHER_MOVES, _moved),
    **dict.fromkeys(calls.EDGE_PADS | calls.NEAREST_UPSAMPLINGS, _moved),
    **dict.fromkeys(calls.TRIANGLES, _triangle),
    **dict.fromkeys(calls.WRITES_AT_PLACES, _written_at_places),
    **dict.fromkeys(calls.CONSTANT_PADS, _padded),
    **dict.fromkeys(calls.JOINS, _joined),
    **dict.fromkeys(calls.REDUCTIONS, _reduced),
    **dict.fromkeys(calls.ALONG_A_LINE, _mixed_along),
    **dict.fromkeys(calls.RUNNING, _running),
    **dict.fromkeys(calls.COMPLEX_VIEWS, _complex_view),
    **dict.fromkeys(calls.FOURIER_TRANSFORMS, _fourier),
    **dict.fromkeys(calls.ATTENTIONS, _attention),
    **dict.fromkeys(calls.UNFOLDINGS, unfolded_bounds),
    **dict.fromkeys(calls.FOLDINGS, folded_bounds),
    **dict.fromkeys(calls.SAMPLERS, sampler_bounds),
    **dict.fromkeys(calls.BATCH_NORMS, _batch_norm),
    **dict.fromkeys(calls.LAYER_NORMS, _layer_norm),
    **dict.fromkeys(calls.GROUP_NORMS, _group_norm),
    **dict.fromkeys(calls.MATRIX_PRODUCTS, _matmul),
    **dict.fromkeys(calls.MATRIX_PRODUCTS_ADDED, _addmm),
    **dict.fromkeys(calls.CONVOLUTIONS, convolution_bounds),
    **dict.fromkeys(calls.MAX_POOLS | calls.AVERAGE_POOLS, pool_bounds),
    **dict.fromkeys(calls.POOLS_3D, pool_3d_bounds),
    **dict.fromkeys(calls.ADAPTIVE_POOLS | calls.ADAPTIVE_POOLS_3D, fixed_size_pool_bounds),
    **dict.fromkeys(calls.INTERPOLATIONS, interpolation_bounds),
    "copy": _copied,
}
