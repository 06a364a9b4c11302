import io
import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, JpegImagePlugin
from torch import Tensor

from lightning_cnnviz.render.image import draw_sheet, encode_tile, to_image
from lightning_cnnviz.report import ColorScale, Gallery, Row, Tile

Box = tuple[float, float, float, float]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def gallery(rows: int, tiles: int, side: int, **options: Any) -> Gallery:
    numbers = {"max": 12.3456, "mean": 0.5, "images": 1000}
    made = [Row(f"channel {n}", tuple(Tile(noise(side, side, n)) for _ in range(tiles)), numbers) for n in range(rows)]
    return Gallery("features.3", tuple(made), **options)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Box]]:
    """Every text that is drawn, with its box; a header lies in the sheet's upper left corner."""
    texts: list[tuple[str, Box]] = []
    original = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, **options: Any) -> None:
        texts.append((text, self.textbbox(corner, text, font=options["font"])))
        original(self, corner, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


@given(st.integers(1, 32), st.integers(1, 32))
@settings(max_examples=20, deadline=None)
def test_a_tiny_tile_keeps_every_bit(height: int, width: int) -> None:
    pixels = noise(height, width)
    kind, content = encode_tile(pixels)
    assert kind == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels.permute(1, 2, 0).numpy())


def test_a_larger_tile_is_a_jpeg_with_full_color_resolution() -> None:
    red_and_blue = torch.zeros(3, 40, 64, dtype=torch.uint8)
    red_and_blue[0, :, 0::2] = 255
    red_and_blue[2, :, 1::2] = 255
    kind, content = encode_tile(red_and_blue)
    image = Image.open(io.BytesIO(content))
    assert kind == "image/jpeg"
    assert (image.format, image.size) == ("JPEG", (64, 40))
    assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4
    error = np.abs(np.asarray(image).astype(int) - red_and_blue.permute(1, 2, 0).numpy())
    assert error.max() < 64


def places(sheet: npt.NDArray[np.uint8], tile: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Where a tile stands in a sheet, found without knowing the layout."""
    height, width = tile.shape[:2]
    corners = np.argwhere((sheet[: -height or None, : -width or None] == tile[0, 0]).all(-1))
    return [(y, x) for y, x in corners.tolist() if np.array_equal(sheet[y : y + height, x : x + width], tile)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(1, 21), st.integers(1, 21), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_sheet_keeps_every_pixel(lengths: list[int], height: int, width: int, labels: bool) -> None:
    pixels = [[noise(height, width, 10 * row + index) for index in range(n)] for row, n in enumerate(lengths)]
    caption = "channel" if labels else ""
    rows = tuple(Row(caption, tuple(Tile(tile, caption) for tile in tiles), {caption: 1.5}) for tiles in pixels)
    sheet = draw_sheet(Gallery("layer", rows, caption=caption), title="Title").permute(1, 2, 0).numpy()
    columns = max(1, math.ceil(math.sqrt(max(lengths))))
    factor = math.ceil(max(64, 128 // columns) / max(height, width))
    taken: list[tuple[int, int]] = []
    for tile in (tile for tiles in pixels for tile in tiles):
        large = tile.repeat_interleave(factor, 1).repeat_interleave(factor, 2).permute(1, 2, 0).numpy()
        # Two tiles of one pixel may be of one color by chance.
        free = [place for place in places(sheet, large) if place not in taken]
        assert free
        taken.append(free[0])


def test_tiles_stand_in_blocks_in_reading_order() -> None:
    tiles = tuple(tuple(Tile(noise(20, 20, 9 * row + index)) for index in range(9)) for row in range(2))
    sheet = draw_sheet(Gallery("layer", tuple(Row("", row) for row in tiles)), title="").permute(1, 2, 0).numpy()
    large = [[np.asarray(to_image(tile.pixels)).repeat(4, 0).repeat(4, 1) for tile in row] for row in tiles]
    corners = np.array([[places(sheet, tile)[0] for tile in row] for row in large])
    steps = corners - corners[:, :1]
    assert (steps == [[82 * (index // 3), 82 * (index % 3)] for index in range(9)]).all()
    assert corners[0, 0, 0] == corners[1, 0, 0]
    assert corners[1, 0, 1] > corners[0, 8, 1] + 82  # the blocks are further apart than the tiles


def test_large_tiles_are_shrunk_without_aliasing() -> None:
    stripes = torch.zeros(3, 400, 400, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    sheet = draw_sheet(Gallery("layer", (Row("", (Tile(stripes),)),)), title="")
    assert sheet.shape[1] < 400
    assert sheet[0, -100, 50:200].float().sub(127.5).abs().max() < 12


def test_smooth_tiles_are_enlarged_smoothly() -> None:
    step = torch.zeros(3, 2, 2, dtype=torch.uint8)
    step[:, :, 1] = 240

    def levels(enlarge: bool) -> int:
        sheet = draw_sheet(Gallery("layer", (Row("", (Tile(step),)),), enlarge=enlarge), title="")
        return len(set(sheet[0, -60, 30:140].tolist()))

    assert levels(True) == 2
    assert levels(False) > 20


@pytest.mark.parametrize("captions", [False, True])
def test_texts_lie_on_the_sheet_and_clear_of_each_other(written: list[tuple[str, Box]], captions: bool) -> None:
    long = "a very long caption that goes on and on " * 12
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 100, 100)
    row = Row(long, (Tile(red, "tench" if captions else ""),) * 4, {"max": 1.5, long: 2})
    sheet = draw_sheet(Gallery(long, (row,) * 5, caption=long, numbers={"channels": 96}), title=long)
    assert len(written) == 1 + 3 + 1 + 5 * (2 + 4 * captions)
    for _, (left, top, right, bottom) in written:
        assert left >= 20
        assert top >= 15
        assert right <= sheet.shape[2] - 20
        assert bottom <= sheet.shape[1] - 20
        assert sheet[1, int(top) : int(bottom), int(left) : int(right)].min() > 0  # no tile covers it
    for (_, a), (_, b) in combinations(written, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_figure_is_shown_whole_or_not_at_all(written: list[tuple[str, Box]]) -> None:
    draw_sheet(gallery(1, 4, 64), title="Title")
    draw_sheet(gallery(1, 1, 64), title="Title")
    assert [text for text, _ in written if "max" in text] == ["max 12.3 · mean 0.5 …", "max 12.3 …"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), ("fox", "fox"), (12.3456, "12.3"), (12345.6, "12346"), (math.nan, "nan"), (1e9, "1e+09")],
)
def test_figures_are_short(written: list[tuple[str, Box]], value: float | str, text: str) -> None:
    draw_sheet(Gallery("layer", (), numbers={"max": value}), title="Title")
    assert f"max {text}" in [line for line, _ in written]


def test_rows_that_do_not_fit_are_counted_in_the_caption(written: list[tuple[str, Box]]) -> None:
    row = Row("channel", (Tile(noise(3, 3)),))
    sheet = draw_sheet(Gallery("layer", (row,) * 1200, caption="All of them."), title="Title")
    shown = sum(text == "channel" for text, _ in written)
    assert 300 < shown < 1200
    assert f"First {shown} of 1200. All of them." in [text for text, _ in written]
    assert max(sheet.shape) <= 2400


@pytest.mark.parametrize(
    ("rows", "note"), [((), "Nothing to show. Why."), ((Row("a", ()),), "Nothing to show. Why."), (None, "Why.")]
)
def test_an_empty_gallery_says_so(written: list[tuple[str, Box]], rows: tuple[Row, ...] | None, note: str) -> None:
    rows = gallery(1, 1, 3).rows if rows is None else rows
    sheet = draw_sheet(Gallery("layer", rows, caption="Why."), title="Title")
    assert [text for text, _ in written][:2] == ["Title", note]
    assert sheet.dtype == torch.uint8
    assert sheet.shape[0] == 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 90)])
def test_tiles_of_odd_shapes_are_drawn(height: int, width: int) -> None:
    sheet = draw_sheet(
        Gallery("layer", (Row("", (Tile(torch.zeros(3, height, width, dtype=torch.uint8)),)),)), title=""
    )
    assert (sheet.amax(0)[50:] == 0).any()


def test_a_white_tile_shows_on_the_paper() -> None:
    sheet = draw_sheet(Gallery("layer", (Row("", (Tile(torch.full((3, 9, 9), 255, dtype=torch.uint8)),)),)), title="")
    assert 200 < int(sheet[0, 0, 0]) < 250
    assert (sheet.amin(0) == 255).sum() == 135**2


def test_what_colors_stand_for_is_drawn_above_the_tiles(written: list[tuple[str, Box]]) -> None:
    tile = Tile(torch.full((3, 8, 8), 128, dtype=torch.uint8))
    plain = Gallery("c", (Row("", (tile,)),))
    bare = draw_sheet(plain, title="t")
    written.clear()
    scale = ColorScale(("#0000ff", "#ffffff", "#ff0000"), "low", "high", "0")
    sheet = draw_sheet(replace(plain, scale=scale), title="t")
    assert sheet.shape[1] > bare.shape[1]
    assert torch.equal(sheet[:, -40:], bare[:, -40:])
    assert [text for text, _ in written if text not in ("t", "")] == ["low", "high, 0 in the middle"]
    row = next(line for line in sheet.unbind(1) if [0, 0, 255] in line.T.tolist())
    places = [line.tolist() for line in row.T]
    assert places.index([255, 0, 0]) - places.index([0, 0, 255]) == 139


def test_the_same_gallery_gives_the_same_sheet_and_is_left_alone() -> None:
    made = gallery(2, 3, 11, caption="Why.")
    before = made.rows[0].tiles[0].pixels.clone()
    assert torch.equal(draw_sheet(made, title="Title"), draw_sheet(made, title="Title"))
    assert torch.equal(before, made.rows[0].tiles[0].pixels)
