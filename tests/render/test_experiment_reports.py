"""Invariance, occlusion and attribution as reports: what is named, drawn and counted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.images.attribution import AttributionMaps, AttributionMethod
from lightning_cnnviz.core.images.invariance import InvarianceCurves, Sweep
from lightning_cnnviz.core.images.occlusion import OcclusionMaps, occluder_boxes
from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.render.attribution import attribution_report
from lightning_cnnviz.render.figures import COLORS, class_color, class_label, line_style, overlaid
from lightning_cnnviz.render.invariance import EXAMPLES, examples_at, invariance_report
from lightning_cnnviz.render.occlusion import occlusion_report
from lightning_cnnviz.report import Gallery, Picture, Report, Scalar


def classified(count: int, *, labeled: bool = True) -> Classified:
    targets = torch.arange(count) % 4
    return Classified(
        targets=targets,
        labeled=labeled,
        probabilities=torch.full((count,), 0.8),
        predictions=targets.roll(1),
        classes=4,
    )


def curves(count: int = 3, layers: int = 2, **changes: Any) -> InvarianceCurves:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    distances = values.float().abs().expand(layers, count, 5) * torch.arange(1.0, layers + 1).view(-1, 1, 1)
    probabilities = (0.8 - 0.35 * values.float().abs()).expand(count, 5)
    sweep = Sweep(
        transform="shift",
        label="shift, pixels",
        identity=0,
        values=values,
        raw=distances,
        relative=distances / 4,
        unit=distances / 8,
        probabilities=probabilities,
    )
    names = tuple(f"layer{number}" for number in range(layers))
    return InvarianceCurves(layers=names, untouched=classified(count), sweeps=(replace(sweep, **changes),))


def pictures(report: Report) -> dict[str, Picture]:
    return {item.name: item for item in report.items if isinstance(item, Picture)}


def scalars(report: Report) -> dict[str, float]:
    return {item.name: item.value for item in report.items if isinstance(item, Scalar)}


def examples(count: int, size: int = 20) -> dict[str, list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "shift": [
            [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(5)]
            for _ in range(count)
        ]
    }


def has_color(pixels: Tensor, color: tuple[float, ...]) -> bool:
    wanted = (torch.tensor(color) * 255).round().to(torch.uint8).view(3, 1, 1)
    return bool((pixels == wanted).all(0).any())


def test_one_picture_a_transform_with_a_line_an_image() -> None:
    report = invariance_report(curves(), examples(3), class_names=["hen", "cock", "jay", "kite"], notes=("A note.",))
    assert report.view == "invariance"
    assert list(pictures(report)) == ["shift"]
    picture = pictures(report)["shift"]
    assert picture.caption.startswith("shift, pixels: distance of features by layer, and probability of the true class")
    assert "0 of 3 images classified correctly" in picture.caption
    for number in range(3):
        assert has_color(picture.pixels, class_color(number))
    assert not has_color(picture.pixels, class_color(3))
    assert report.notes[-1] == "A note."
    assert "the paper's" in report.notes[0]


def test_areas_and_half_widths_are_means_over_the_images() -> None:
    found = scalars(invariance_report(curves(), {}))
    # Mean heights of |x| from -2 to 2; 0.8 has halved at 0.4 / 0.35 on either side.
    assert found["shift/layer0/area_raw"] == pytest.approx(1.0)
    assert found["shift/layer1/area_relative"] == pytest.approx(0.5)
    assert found["shift/layer1/area_unit"] == pytest.approx(0.25)
    assert found["shift/p_true/area"] == pytest.approx(0.8 - 0.35)
    assert found["shift/p_true/half_width"] == pytest.approx(2 * 0.4 / 0.35, rel=1e-5)
    assert len(found) == 2 * 3 + 2


def test_without_labels_it_is_the_class_that_was_found() -> None:
    report = invariance_report(replace(curves(), untouched=classified(3, labeled=False)), {})
    assert "shift/p_predicted/area" in scalars(report)
    caption = pictures(report)["shift"].caption
    assert caption.endswith("probability of the predicted class")


def test_an_image_without_features_does_not_hide_the_others() -> None:
    whole = curves()
    relative = whole.sweeps[0].relative.clone()
    relative[0, 1] = math.nan
    found = scalars(invariance_report(curves(relative=relative), {}))
    assert found["shift/layer0/area_relative"] == pytest.approx(0.25)
    found = scalars(invariance_report(curves(relative=torch.full_like(relative, math.nan), identity=None), {}))
    assert math.isnan(found["shift/layer0/area_relative"])
    assert math.isnan(found["shift/p_true/half_width"])


@pytest.mark.parametrize("count", [1, 5, 8, 9, 40])
def test_any_number_of_images_can_be_drawn(count: int) -> None:
    report = invariance_report(curves(count), examples(min(count, 8)), class_names=["a long name of a class " * 3] * 4)
    sizes = {tuple(picture.pixels.shape) for picture in pictures(report).values()}
    assert len(sizes) == 1
    assert min(sizes.pop()[1:]) > 400


def test_further_layers_go_to_pictures_of_their_own() -> None:
    report = invariance_report(curves(layers=7), examples(3))
    assert list(pictures(report)) == ["shift", "shift/from layer3", "shift/from layer6"]


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 1]), (5, [0, 1, 2, 3, 4]), (25, [0, 4, 8, 12, 16, 20, 24])])
def test_examples_are_even_with_the_first_and_the_last(count: int, expected: list[int]) -> None:
    assert examples_at(torch.arange(float(count))) == expected
    assert len(expected) <= EXAMPLES


def occlusions(count: int = 2, **changes: Any) -> OcclusionMaps:
    boxes = occluder_boxes((12, 16), (4, 4), (4, 4))
    generator = torch.Generator().manual_seed(0)
    shape = (count, *boxes.shape[:2])
    found = OcclusionMaps(
        layer="features.4",
        size=(4, 4),
        boxes=boxes,
        image_size=(12, 16),
        untouched=classified(count),
        channels=torch.arange(count),
        untouched_activations=torch.full((count,), 10.0),
        activations=10 * torch.rand(shape, generator=generator),
        probabilities=torch.rand(shape, generator=generator),
        predictions=torch.randint(0, 4, shape, generator=generator),
        projections=tuple(torch.randn(3, 12, 16, generator=generator) for _ in range(count)),
    )
    return replace(found, **changes)


def shown(count: int = 2) -> list[Tensor]:
    return [torch.full((3, 12, 16), 90 + number, dtype=torch.uint8) for number in range(count)]


def test_one_picture_an_image_under_its_number_in_the_data_set() -> None:
    found = occlusions()
    report = occlusion_report(found, shown(), [7, 3], class_names=["hen", "cock", "jay", "kite"], notes=("A note.",))
    assert list(pictures(report)) == ["image 7", "image 3"]
    assert pictures(report)["image 3"].caption == (
        "image 3, true class cock: what an occluder of 4 x 4 pixels does, by the position of its center"
    )
    assert "Projection" in report.notes[1]
    kept = (found.predictions == found.untouched.targets[:, None, None]).float().mean()
    drop = (0.8 - found.probabilities.flatten(1).amin(1)).mean()
    lost = 1 - found.activations.flatten(1).amin(1).mean() / 10
    assert scalars(report) == pytest.approx(
        {
            "p_true/largest_drop": float(drop),
            "p_true/most_probable_share": float(kept),
            "features.4/largest_drop": float(lost),
        }
    )


def test_the_occluder_is_shown_in_its_color() -> None:
    fill = torch.tensor([200, 30, 60], dtype=torch.uint8)
    with_it = pictures(occlusion_report(occlusions(1), shown(1), [0], fill=fill))["image 0"].pixels
    assert has_color(with_it, (200 / 255, 30 / 255, 60 / 255))
    without = pictures(occlusion_report(occlusions(1), shown(1), [0]))["image 0"].pixels
    assert not has_color(without, (200 / 255, 30 / 255, 60 / 255))


def test_without_a_projection_the_note_says_why() -> None:
    report = occlusion_report(occlusions(projections=(), unprojected="there is nothing to rectify"), shown(), [0, 1])
    assert "The feature map is not projected to pixels: there is nothing to rectify." in report.notes


def test_a_map_without_activation_has_none_to_lose() -> None:
    dead = occlusions(untouched_activations=torch.tensor([0.0, 10.0]))
    lost = 1 - float(dead.activations[1].min()) / 10
    assert scalars(occlusion_report(dead, shown(), [0, 1]))["features.4/largest_drop"] == pytest.approx(lost)
    dead = occlusions(untouched_activations=torch.zeros(2), activations=torch.zeros(2, 3, 4))
    assert math.isnan(scalars(occlusion_report(dead, shown(), [0, 1]))["features.4/largest_drop"])


def test_more_classes_than_colors_and_a_single_position_can_be_drawn() -> None:
    many = replace(classified(1), classes=50)
    report = occlusion_report(occlusions(1, predictions=torch.arange(12).view(1, 3, 4), untouched=many), shown(1), [0])
    assert pictures(report)["image 0"].pixels.shape[0] == 3
    boxes = occluder_boxes((12, 16), (12, 16), (1, 1))
    one = torch.ones(1, 1, 1)
    single = occlusions(
        1, boxes=boxes, size=(12, 16), activations=one, probabilities=one / 2, predictions=torch.ones_like(one).long()
    )
    assert pictures(occlusion_report(single, shown(1), [0]))["image 0"].pixels.shape[0] == 3


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
    assert dict(found.rows[0].numbers) == figures
    assert found.rows[0].tiles[1].numbers["full color"] == pytest.approx(float(maps[0].flatten().kthvalue(191).values))
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


@pytest.mark.parametrize("signed", [False, True])
def test_values_beyond_the_scale_have_the_full_color(signed: bool) -> None:
    image = torch.full((3, 1, 2), 90, dtype=torch.uint8)
    assert torch.equal(
        overlaid(image, torch.tensor([[1.0, 7.0]]), signed=signed)[..., 0],
        overlaid(image, torch.tensor([[1.0, 7.0]]), signed=signed)[..., 1],
    )


def test_names_of_classes_and_styles_of_lines() -> None:
    assert class_label(["hen", "cock"], 1) == "cock"
    assert class_label(["hen"], 5) == class_label(None, 5) == "class 5"
    assert len(class_label(["x" * 100], 0, 20)) == 20
    styles = [line_style(number) for number in range(2 * len(COLORS))]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 2 * len(COLORS)
