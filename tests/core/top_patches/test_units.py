"""Units come out of their packing as they went in."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnviz.core.top_patches._units import NO_IMAGE, NO_LABEL, Units

sides = st.integers(0, 2**15 - 1)
labels = st.integers(-(2**31) + 1, 2**31 - 1)


def packed(numbers: torch.Tensor, labels: torch.Tensor | None) -> Units:
    """Units with rows, columns and boxes from `(n, 6)` numbers; equal scores, no two activations alike."""
    count = len(numbers)
    return Units.packed(
        scores=torch.ones(count),
        activations=torch.arange(float(count)),
        images=torch.arange(count) + 7,
        labels=labels,
        rows=numbers[:, 0],
        columns=numbers[:, 1],
        boxes=numbers[:, 2:].to(torch.int16),  # as receptive fields have them
    )


@given(st.lists(st.tuples(*[sides] * 6, labels), min_size=1))
@settings(deadline=None, derandomize=True)
def test_packed_numbers_come_back(rows: list[tuple[int, ...]]) -> None:
    numbers = torch.tensor(rows)
    units = packed(numbers[:, :6], numbers[:, 6])
    assert units.details.dtype == torch.int32
    for found, expected in (
        (units.rows, numbers[:, 0]),
        (units.columns, numbers[:, 1]),
        (units.boxes, numbers[:, 2:6]),
        (units.labels, numbers[:, 6]),
    ):
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)


@given(st.lists(st.tuples(sides, sides), min_size=2, max_size=9))
@settings(deadline=None, derandomize=True)
def test_positions_are_in_the_order_of_rows_then_columns(places: list[tuple[int, int]]) -> None:
    numbers = torch.zeros(len(places), 6, dtype=torch.int64)
    numbers[:, :2] = torch.tensor(places)
    order = packed(numbers, None).positions.sort(stable=True).indices
    assert [places[place] for place in order.tolist()] == sorted(places)


def test_no_label_is_none_that_data_could_have() -> None:
    units = packed(torch.ones(2, 6, dtype=torch.int64), None)
    assert units.labels.tolist() == [NO_LABEL] * 2 == [-(2**31)] * 2


def test_a_place_without_a_unit_holds_nothing() -> None:
    units = packed(torch.ones(2, 6, dtype=torch.int64), torch.tensor([1, 2]))
    cleared = units._replace(scores=torch.tensor([-torch.inf, 1.0])).cleared()
    assert cleared.activations.tolist() == [-torch.inf, 1.0]
    assert cleared.images.tolist() == [NO_IMAGE, 8]
    assert cleared.details[0].tolist() == [0] * 4
    assert torch.equal(cleared.details[1], units.details[1])
    for part, none in zip(cleared, Units.none(1), strict=True):
        assert torch.equal(part[:1], none)
    assert Units.none(2, 3, dtype=torch.float64).activations.dtype == torch.float64
