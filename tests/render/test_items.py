"""Every kind of item is a picture with everything on it, and a table is text too."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import ImageDraw

from lightning_cnnviz.render import draw_item, draw_sheet, draw_table, table_text
from lightning_cnnviz.report import Curve, Gallery, Item, Number, Picture, Row, Scalar, Series, Table, Tile


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


TILE = Tile(noise(8, 4), "tench")
GALLERY = Gallery("features.3", (Row("channel 1", (TILE,) * 9),))
ITEMS: list[Item] = [
    GALLERY,
    Gallery("none", ()),
    Picture("input", noise(20, 40)),
    Curve("distance", (Series("layer 1", x=(0.0, 1.0), y=(0.0, math.nan)),), x_label="pixels", y_label="distance"),
    Curve("none", (), x_label="", y_label=""),
    Table("layers", ("layer", "patch"), (("conv1", TILE), ("conv2", None))),
    Table("no rows", ("layer",), ()),
    Table("no columns", (), ()),
    Scalar("accuracy", 0.5),
    Scalar("absent", math.nan),
]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn."""
    texts: list[str] = []
    original = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, **options: object) -> None:
        texts.append(text)
        original(self, corner, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{type(item).__name__} {item.name}")
def test_any_item_is_a_picture(item: Item) -> None:
    pixels = draw_item(item, title="Title")
    assert (pixels.dtype, pixels.ndim, pixels.shape[0]) == (torch.uint8, 3, 3)
    assert pixels.float().std() > 0


def test_a_gallery_is_its_sheet_and_a_picture_itself() -> None:
    assert torch.equal(draw_item(GALLERY, title="Title"), draw_sheet(GALLERY, title="Title"))
    assert torch.equal(draw_item(Picture("input", TILE.pixels), title="Title"), TILE.pixels)


def test_a_scalar_says_its_value(written: list[str]) -> None:
    draw_item(Scalar("accuracy", 0.125), title="Title")
    assert written == ["name", "value", "accuracy", "0.125", "Title"]


def test_a_table_shows_its_cells_where_they_belong(written: list[str]) -> None:
    table = Table("layers", ("layer", "patch", "n"), (("conv1", TILE, 12345), ("conv2", None, 7)), caption="Why.")
    pixels = draw_table(table, title="Layers")
    assert written == ["layer", "patch", "n", "conv1", "12,345", "conv2", "–", "7", "Layers", "Why."]  # noqa: RUF001
    enlarged = TILE.pixels.repeat_interleave(6, 1).repeat_interleave(6, 2)
    height, width = enlarged.shape[1:]
    windows = pixels.unfold(1, height, 1).unfold(2, width, 1)
    assert int((windows == enlarged[:, None, None]).all(-1).all(-1).all(0).sum()) == 1


@pytest.mark.parametrize(("count", "said"), [(3, "All."), (200, "First 60 of 200. All."), (0, "Nothing to show. All.")])
def test_a_long_table_is_cut_aloud(written: list[str], count: int, said: str) -> None:
    rows: tuple[tuple[Number], ...] = tuple((number,) for number in range(count))
    pixels = draw_table(Table("numbers", ("n",), rows, caption="All."), title="Numbers")
    assert written[-1] == said
    assert pixels.shape[1] < 2400


def test_a_table_as_text_aligns_numbers_and_names_tiles() -> None:
    rows = (("conv1", 1234, TILE), ("a.very.long.name", None, None))
    lines = table_text(Table("layers", ("layer", "n", "patch"), rows), widest=8).splitlines()
    assert lines == [
        "layer         n  patch",
        "--------  -----  -----",
        "conv1     1,234  tench",
        "…ng.name      –  –",  # noqa: RUF001
    ]
