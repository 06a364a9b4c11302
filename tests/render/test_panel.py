"""Galleries in a dashboard's panel: what colors stand for is drawn, and of several layers what they have in common."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_cnnviz.render.panel import draw_panel, overview
from lightning_cnnviz.report import ColorScale, Gallery, Row, Tile

SCALE = ColorScale(("#0000ff", "#ffffff", "#ff0000"), "-2", "2", "0")
TILE = Tile(torch.full((3, 8, 8), 128, dtype=torch.uint8))


def gallery(layer: str, scale: ColorScale | None = SCALE, **of_row: float) -> Gallery:
    return Gallery(layer, (Row("image 3", (TILE, TILE), of_row),), layer=layer, scale=scale)


def test_a_bar_says_what_the_colors_of_a_panel_stand_for() -> None:
    bare, sheet = (draw_panel(gallery("conv", scale), title="Filters") for scale in (None, SCALE))
    assert sheet.shape[1] > bare.shape[1]
    assert torch.equal(sheet[:, -300:], bare[:, -300:])  # what is below it moves down as it is
    row = next(line.T.tolist() for line in sheet.unbind(1) if [0, 0, 255] in line.T.tolist())
    assert row.index([255, 0, 0]) - row.index([0, 0, 255]) == 139


def test_layers_of_one_scale_share_its_bar() -> None:
    assert overview([gallery("a"), gallery("b")], name="all").scale == SCALE
    assert not any(row.numbers for row in overview([gallery("a"), gallery("b")], name="all").rows)


def test_layers_of_the_same_colors_say_their_own_numbers() -> None:
    found = overview([gallery("a"), gallery("b", replace(SCALE, low="-5", high="5"))], name="all")
    assert found.scale == ColorScale(SCALE.colors, "least", "most, layer by layer", "0")
    assert [row.numbers for row in found.rows] == [{"scale": "-2 to 2"}, {"scale": "-5 to 5"}]


def test_layers_of_other_colors_have_no_bar_in_common() -> None:
    gray = ColorScale(("#000000", "#ffffff"), "0", "1")
    assert overview([gallery("a"), gallery("b", gray)], name="all").scale is None
    assert overview([gallery("a"), gallery("b", None)], name="all").scale is None
    assert overview([], name="all").scale is None


def test_of_the_image_that_stands_for_a_layer_its_numbers_are_said() -> None:
    found = overview([gallery("a", white=3.5), gallery("b", white=7.0)], name="all")
    assert [row.numbers for row in found.rows] == [{"white": 3.5}, {"white": 7.0}]
