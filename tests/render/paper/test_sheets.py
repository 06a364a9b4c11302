import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnviz.render.paper.leaf import Leaf
from lightning_cnnviz.render.paper.sheets import sheet_leaves
from lightning_cnnviz.report import Gallery, Row, Tile


def gallery(rows: int, tiles: int, height: int = 8, width: int = 8, columns: int | None = None) -> Gallery:
    tile = Tile(torch.full((3, height, width), 60, dtype=torch.uint8), "1.5")
    return Gallery("g", tuple(Row(f"row {row}", (tile,) * tiles) for row in range(rows)), columns=columns)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 300), st.integers(1, 300), st.sampled_from((None, 1, 12)))
def test_everything_lies_on_its_leaf_and_nothing_is_left_out(
    rows: int, tiles: int, height: int, width: int, columns: int | None
) -> None:
    leaves = sheet_leaves(gallery(rows, tiles, height, width, columns), Leaf(700, 100), title="t", most_height=900)
    seen = 0
    for leaf in leaves:
        for left, top, pixels in leaf._pictures:
            assert left >= 0
            assert left + pixels.shape[2] <= leaf.width
            assert top + pixels.shape[1] <= leaf.top
            seen += 1
    lines = -(-tiles // (columns or round(tiles**0.5 + 0.49999)))
    assert seen == rows * lines
    captions = [text for leaf in leaves for _, _, text, _ in leaf._texts if text.startswith("row")]
    assert len(captions) == rows


@pytest.mark.parametrize("side", [7, 8, 11, 64])
def test_a_small_tile_keeps_square_pixels(side: int) -> None:
    pixels = torch.randint(0, 200, (3, side, side), dtype=torch.uint8)
    (leaf,) = sheet_leaves(Gallery("g", (Row("", (Tile(pixels),)),)), Leaf(2148, 300), title="")
    _, _, drawn = leaf._pictures[0]
    frame = 3
    inner = drawn[:, frame:-frame, frame:-frame]
    scale = inner.shape[1] // side
    assert inner.shape == (3, side * scale, side * scale)
    assert torch.equal(inner, pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def test_a_long_gallery_goes_on_on_another_leaf_under_its_title() -> None:
    leaves = sheet_leaves(gallery(300, 9), Leaf(700, 100), title="t", most_height=900)
    assert len(leaves) > 1
    assert all(leaf.top <= 1000 for leaf in leaves)
    assert ["t (continued)" in [text for _, _, text, _ in leaf._texts] for leaf in leaves[1:]] == [True] * len(
        leaves[1:]
    )
