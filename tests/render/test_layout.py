from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnviz.render.layout import SheetPlan, SheetSizes, plan_sheet

sizes = st.builds(
    SheetSizes,
    rows=st.integers(0, 4) | st.integers(0, 300),
    tiles=st.integers(0, 30),
    tile_width=st.integers(1, 400),
    tile_height=st.integers(1, 400),
    label_width=st.integers(0, 120),
    label_height=st.integers(0, 40),
    tile_label_width=st.integers(0, 200),
    tile_label_height=st.integers(0, 20),
)


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_a_sheet_has_a_sensible_size_and_holds_every_row_that_it_claims(sizes: SheetSizes) -> None:
    plan = plan_sheet(sizes)
    (width, height), (block_width, block_height) = plan.size, plan.block
    assert max(width, height) <= 2250
    assert (plan.shown > 0) == (sizes.rows > 0)
    for row in range(plan.shown):
        left, top = plan.block_corner(row)
        assert left >= 0
        assert left + block_width <= width
        assert top >= 0
        assert top + block_height <= height


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_rows_are_left_out_only_where_the_smallest_tiles_do_not_fit(sizes: SheetSizes) -> None:
    plan = plan_sheet(sizes)
    side = max(sizes.tile_width, sizes.tile_height)
    if plan.shown < sizes.rows:
        assert max(plan.tile) == 24 or (plan.scale - 1) * side < 24
    else:
        assert plan.shown == sizes.rows


@given(sizes)
@settings(max_examples=40, deadline=None)
def test_tiles_are_enlarged_by_whole_factors_and_do_not_overlap(sizes: SheetSizes) -> None:
    plan = plan_sheet(sizes)
    wanted = max(64, 128 // plan.block_columns)
    assert plan.scale <= 1 or plan.scale == int(plan.scale) or max(plan.tile) == wanted
    width, height = plan.tile
    spots = [plan.tile_corner(row, index) for row in range(min(plan.shown, 5)) for index in range(sizes.tiles)]
    for (left, top), (other_left, other_top) in combinations(spots, 2):
        assert abs(left - other_left) >= width or abs(top - other_top) >= height + plan.tile_label_height


@pytest.mark.parametrize(
    ("rows", "tiles", "side", "columns", "block_columns", "drawn"),
    [
        (16, 9, 11, 4, 3, 66),
        (16, 9, 51, 4, 3, 102),
        (16, 9, 70, 4, 3, 70),
        (16, 9, 227, 4, 3, 112),
        (3, 9, 51, 3, 3, 102),
        (64, 9, 11, 8, 3, 66),
        (1, 1, 11, 1, 1, 132),
        (1, 5, 300, 1, 3, 224),
    ],
)
def test_the_usual_galleries_look_as_in_the_paper(
    rows: int, tiles: int, side: int, columns: int, block_columns: int, drawn: int
) -> None:
    plan = plan_sheet(SheetSizes(rows, tiles, side, side, label_width=80, label_height=34))
    assert (plan.columns, plan.block_columns, plan.shown) == (columns, block_columns, rows)
    assert plan.tile == (drawn, drawn)


def test_captions_of_tiles_take_room_only_where_they_can_be_read() -> None:
    wide = SheetPlan(SheetSizes(1, 1, 100, 100, tile_label_width=150, tile_label_height=15), 1, 1, 1)
    narrow = SheetPlan(SheetSizes(1, 1, 60, 60, tile_label_width=150, tile_label_height=15), 1, 1, 1)
    short = SheetPlan(SheetSizes(1, 1, 60, 60, tile_label_width=50, tile_label_height=15), 1, 1, 1)
    silent = SheetPlan(SheetSizes(1, 1, 100, 100, tile_label_width=0, tile_label_height=15), 1, 1, 1)
    assert [plan.tile_label_height for plan in (wide, narrow, short, silent)] == [15, 0, 15, 0]
