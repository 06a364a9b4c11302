"""Occlusion maps as a report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from render.classified import classified, has_color, pictures, scalars, shown

from lightning_cnnviz.core.images.occlusion import OcclusionMaps, occluder_boxes
from lightning_cnnviz.core.network.task import Task
from lightning_cnnviz.render.figures import class_color
from lightning_cnnviz.render.occlusion import occlusion_report


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


def test_one_picture_an_image_under_its_number_in_the_data_set() -> None:
    found = occlusions()
    report = occlusion_report(found, shown(), [7, 3], class_names=["hen", "cock", "jay", "kite"], notes=("A note.",))
    assert list(pictures(report)) == ["image 7", "image 3"]
    assert pictures(report)["image 3"].caption == (
        "image 3, true class cock: what an occluder of 4 x 4 pixels does, by the position of its center"
    )
    assert "Projection" in report.notes[2]
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


def test_a_class_has_one_color_in_all_images() -> None:
    predictions = torch.full((2, 3, 4), 3)
    predictions[1, 1:] = 2  # in this image alone, class 2 is found most often
    black = [torch.zeros(3, 12, 16, dtype=torch.uint8)] * 2
    drawn = pictures(occlusion_report(occlusions(predictions=predictions), black, [0, 1]))

    def area(image: int, number: int) -> int:
        """How many pixels have the n-th color, laid over a black image."""
        color = 0.6 * 255 * torch.tensor(class_color(number)).view(3, 1, 1) + 0.4 * 95
        return int(((drawn[f"image {image}"].pixels.float() - color).abs() < 3).all(0).sum())

    assert area(0, 0) > 1000
    assert area(0, 1) == 0
    assert area(1, 1) > 1.5 * area(1, 0) > 500


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


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        (Task(), {}, "one class an image (multiclass, as found"),
        (Task(kind="regression"), {"labeled": False, "classes": 1}, "a value (regression, as found"),
        (
            Task(kind="multilabel", told=True),
            {
                "present": torch.tensor([[True, True, False, False], [False] * 4]),
                "all_probabilities": torch.tensor([[0.95, 0.25, 0.5, 0.5], [0.1] * 4]),
            },
            "p of each label, image by image: hen 0.95, cock 0.25; no label.",
        ),
    ],
)
def test_the_report_says_what_it_took_outputs_and_labels_for(task: Task, changes: dict[str, Any], said: str) -> None:
    found = occlusions()
    found = replace(found, untouched=replace(found.untouched, task=task, **changes))
    report = occlusion_report(found, shown(), [7, 3], class_names=["hen", "cock", "jay", "kite"])
    assert any(said in note for note in report.notes)
    names = [name for name in scalars(report) if not name.startswith("features")]
    shares = ["p_true/largest_drop", "p_true/most_probable_share"]
    assert names == (["value/largest_change"] if task.kind == "regression" else shares)
