"""Attributions as a report."""

from __future__ import annotations

import pytest
import torch
from render.classified import classified, shown
from torch import Tensor

from lightning_cnnviz.core.images.attribution import AttributionMaps, AttributionMethod
from lightning_cnnviz.render.attribution import attribution_report
from lightning_cnnviz.report import Gallery, Report


def attributions(method: AttributionMethod, maps: Tensor) -> AttributionMaps:
    return AttributionMaps(
        method=method, layer="features.4" if "gradcam" in method else "", untouched=classified(len(maps)), maps=maps
    )


def gallery(report: Report) -> Gallery:
    (item,) = report.items
    assert isinstance(item, Gallery)
    return item


def test_a_row_an_image_under_its_class() -> None:
    maps = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    report = attribution_report(attributions("gradcam", maps), shown(), [7, 3], class_names=["hen", "cock"] * 2)
    found = gallery(report)
    assert found.name == "gradcam"
    assert found.caption == "Grad-CAM of features.4: what speaks for the true class of each image"
    assert [row.caption for row in found.rows] == ["hen", "cock"]
    assert [tile.caption for tile in found.rows[0].tiles] == ["image", "Grad-CAM", "by itself"]
    assert torch.equal(found.rows[1].tiles[0].pixels, shown()[1])
    figures = {"p(true class)": pytest.approx(0.8), "most probable": "cock", "dataset index": 7}
    full = pytest.approx(float(maps[0].flatten().kthvalue(191).values))
    assert dict(found.rows[0].numbers) == {**figures, "full color": full}
    assert found.rows[0].tiles[1].numbers["full color"] == full
    assert report.notes[0].startswith("Brighter speaks for the class")


def test_where_nothing_speaks_the_image_shows_and_the_strongest_has_the_full_color() -> None:
    maps = torch.zeros(1, 3, 12, 16)
    maps[0, :, 2:4, 3:9] = 1.0
    maps[0, :, 8:10, 3:9] = -1.0
    tiles = gallery(attribution_report(attributions("integrated_gradients", maps), shown(1), [0])).rows[0].tiles
    over, alone = tiles[1].pixels.int(), tiles[2].pixels.int()
    assert over[:, 0, 0].tolist() == [90, 90, 90]
    assert alone[:, 0, 0].tolist() == [255, 255, 255]
    for pixels in (over, alone):
        red, _, blue = pixels[:, 3, 5].tolist()
        assert red > blue
        red, _, blue = pixels[:, 9, 5].tolist()
        assert blue > red
    report = attribution_report(attributions("integrated_gradients", maps), shown(1), [0])
    assert report.notes[0].startswith("Red speaks for the class and blue against it")


@pytest.mark.parametrize("signed", [False, True])
def test_the_color_bar_has_the_colors_of_the_map_by_itself(signed: bool) -> None:
    maps = torch.zeros(2, 1, 12, 16)
    maps[:, :, 2:6, 3:9] = 1.0
    maps[:, :, 6:8, 3:9] = 0.5
    maps[0, :, 8:10, 3:9] = -1.0 if signed else 0.0  # the other image has no value below zero, and the same colors
    found = gallery(attribution_report(attributions("integrated_gradients", maps), shown(), [0, 1]))
    assert found.scale is not None
    assert found.named
    for row in found.rows:
        alone = row.tiles[2].pixels
        at = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in (alone[:, y, 5].tolist() for y in (0, 6, 3))]
        if signed:
            assert at == [found.scale.colors[8], found.scale.colors[12], found.scale.colors[16]]
        else:
            assert at == [found.scale.colors[0], found.scale.colors[8], found.scale.colors[16]]


def test_saliency_shows_the_largest_channel_and_the_others_their_sum() -> None:
    maps = torch.zeros(1, 3, 12, 16)
    maps[0, 0, 2] = 1.0
    maps[0, :, 8] = 0.5
    scales = {}
    for method in ("saliency", "integrated_gradients"):
        tile = gallery(attribution_report(attributions(method, maps), shown(1), [0])).rows[0].tiles[1]  # type: ignore[arg-type]
        scales[method] = tile.numbers["full color"]
    assert scales == {"saliency": 1.0, "integrated_gradients": 1.5}


def test_maps_of_zeros_are_drawn_too() -> None:
    (row,) = gallery(attribution_report(attributions("saliency", torch.zeros(1, 3, 12, 16)), shown(1), [0])).rows
    assert torch.equal(row.tiles[1].pixels, shown(1)[0])
