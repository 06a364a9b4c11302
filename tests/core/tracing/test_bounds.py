"""Bounds: their unions, and how they live in memory that is written to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.tracing._bounds import NOTHING, Bounds, TensorBounds, compact, everything, nothing, union


def bounds(*values: float, shape: tuple[int, ...] = (2, 3)) -> Bounds:
    first, second, third, fourth = (torch.tensor(value).expand(shape) for value in values)
    return first, second, third, fourth


def numbers(of: Bounds) -> list[float]:
    assert all(bool((side == side.flatten()[0]).all()) for side in of)
    return [float(side.flatten()[0]) for side in of]


def test_a_union_reaches_as_far_as_any_of_its_parts() -> None:
    joined = union([bounds(-1.0, 3.0, 0.0, 2.0), bounds(-2.0, 4.0, -1.0, 1.0)], (2, 3))
    assert numbers(joined) == [-1, 4, 0, 2]
    assert all(side.stride() == (0, 0) for side in joined)  # without memory of its own
    assert numbers(union([joined, nothing((2, 3), 4)], (2, 3))) == [-1, 4, 0, 2]


def test_everything_is_one_box_for_all_elements() -> None:
    rows = torch.arange(6.0).view(2, 3)
    whole = everything([(-rows, rows, rows, rows)], torch.empty(4))
    assert numbers(whole) == [0, 5, 5, 5]
    assert numbers(everything([bounds(1.0, 1.0, 1.0, 1.0)], torch.empty(1))) == [1, 1, 1, 1]


def test_what_is_alike_along_a_dimension_is_cut_to_one() -> None:
    assert [side.shape for side in compact(bounds(0.0, 0.0, 0.0, 0.0), dims=(1,))] == [(2, 1)] * 4


def test_a_write_reaches_all_views_of_its_memory() -> None:
    kept, memory = TensorBounds(), torch.zeros(2, 3)
    row: Tensor = memory[1]
    kept.set(memory, nothing((2, 3), 4))
    kept.write(row, bounds(-1.0, 1.0, -2.0, 2.0, shape=(3,)))
    seen = kept.get(memory)
    assert seen is not None
    assert seen[1].tolist() == [[NOTHING] * 3, [1.0] * 3]
    assert kept.get(torch.zeros(2, 3)) is None
