"""The patches of a result as a report: what is where, at which scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.core.top_patches.search import diagnose, mine_top_patches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import _OUTSIDE, MEAN_NOTE, brief
from lightning_cnnviz.render.top_patches import top_patches_report, top_patches_table
from lightning_cnnviz.report import Gallery, Scalar

AS_IT_IS = Normalization((0.0,), (1.0,))


def gallery_of(images: torch.Tensor, weight: torch.Tensor) -> Gallery:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data = weight
    found = mine_top_patches(nn.Sequential(conv), [images], k=len(images))
    report = top_patches_report(found, diagnose(found), AS_IT_IS)
    (gallery,) = [item for item in report.items if isinstance(item, Gallery)]
    return gallery


@pytest.mark.parametrize(
    ("row", "column", "top", "left"),
    [(0, 0, 1, 1), (0, 5, 1, 0), (7, 0, 0, 1), (7, 9, 0, 0), (3, 4, 0, 0)],
)
def test_a_patch_cut_at_the_border_lies_where_it_was_cut(row: int, column: int, top: int, left: int) -> None:
    # One pixel in the middle of a filter that sees its middle alone: the unit lies on it.
    image = torch.rand(1, 1, 8, 10) / 2
    image[0, 0, row, column] = 1.0
    middle = torch.zeros(1, 1, 3, 3)
    middle[0, 0, 1, 1] = 1.0
    other = torch.zeros(1, 1, 8, 10)
    other[0, 0, 4, 4] = 0.1  # a whole patch, so that the layer's tiles are 3 x 3
    tile = gallery_of(torch.cat([image, other]), middle).rows[0].tiles[0].pixels
    padded = nn.functional.pad(image[0], (1, 1, 1, 1), value=-1.0)[0, row : row + 3, column : column + 3]
    for i in range(3):
        for j in range(3):
            pixel = tile[:, i, j].tolist()
            expected = list(_OUTSIDE) if padded[i, j] < 0 else [round(float(padded[i, j]) * 255)] * 3
            assert pixel == expected
    assert int(tile[0, 1, 1]) == 255
    assert (top == 1) == (row == 0)
    assert (left == 1) == (column == 0)


def test_numbers_stand_beside_the_pixels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3))
    images, labels = torch.rand(6, 1, 9, 9), torch.tensor([0, 1, 2, 0, 1, 2])
    found = mine_top_patches(model, [(images, labels)], k=4, features=[2, 0])
    report = top_patches_report(found, diagnose(found), AS_IT_IS, class_names=("ant", "bee"))
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert [row.caption for row in gallery.rows] == ["feature 0", "feature 2"]
    layer = found["0"]
    for row, feature in zip(gallery.rows, (0, 2), strict=True):
        for rank, tile in enumerate(row.tiles):
            label = int(layer.labels[feature, rank])  # type: ignore[index]
            assert tile.numbers == {
                "activation": float(layer.activations[feature, rank]),
                "dataset index": int(layer.images[feature, rank]),
                "label": ("ant", "bee", 2)[label],  # a label without a name stays a number
                "row": int(layer.rows[feature, rank]),
                "column": int(layer.columns[feature, rank]),
            }
    table = top_patches_table(found, report)
    assert [row[:3] for row in table.rows] == [("0", feature, rank) for feature in (0, 2) for rank in (1, 2, 3, 4)]


@pytest.fixture
def by_mean() -> TopPatches:
    """Two feature maps, the images themselves; the first is strongest on an image that does not rank by its mean."""
    maps = torch.zeros(4, 2, 4, 4)
    maps[0, 0, 1, 2] = 9.0
    maps[1, 0], maps[2, 0], maps[3, 0] = 2.0, 3.0, -1.0
    maps[2, 0, 3, 1] = 7.0
    maps[:, 1] -= 1.0
    maps[3, 1], maps[3, 1, 0, 0] = -3.0, 0.5  # alive, though nothing that ranks is above zero
    model = nn.Sequential(nn.Identity())
    return mine_top_patches(model, [maps], "0", k=2, rank_by="mean")


def test_with_means_each_number_bears_its_own_name(by_mean: TopPatches) -> None:
    report = top_patches_report(by_mean, diagnose(by_mean), AS_IT_IS)
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert gallery.caption == (
        "all 2 feature maps, highest mean activation first, receptive fields of 1 x 1 px · 0 dead"
    )
    first, second = gallery.rows
    # The strongest unit of the whole set is on an image that is not shown.
    assert (first.numbers, second.numbers) == ({"max activation": 9.0}, {"max activation": 0.5})
    assert [tile.caption for tile in first.tiles] == ["7", "2"]
    assert first.tiles[0].numbers == {
        "activation": 7.0, "mean activation": 3.25, "dataset index": 2, "row": 3, "column": 1
    }  # fmt: skip
    assert [tile.numbers["activation"] for tile in second.tiles] == [-1.0, -1.0]
    assert [tile.numbers["mean activation"] for tile in second.tiles] == [-1.0, -1.0]
    assert MEAN_NOTE in report.notes
    scalars = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    assert scalars["0/dead_features"] == 0
    table = top_patches_table(by_mean, report)
    assert table.columns[3:6] == ("activation", "mean activation", "dataset index")
    assert [row[3:6] for row in table.rows[:2]] == [(7.0, 3.25, 2), (2.0, 2.0, 1)]


def test_without_means_nothing_speaks_of_them() -> None:
    maps = torch.rand(4, 2, 3, 3)
    result = mine_top_patches(nn.Sequential(nn.Identity()), [maps], "0", k=2)
    report = top_patches_report(result, diagnose(result), AS_IT_IS)
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert "strongest patch first" in gallery.caption
    assert not any("mean" in note for note in report.notes[1:])
    assert "mean activation" not in top_patches_table(result, report).columns
    for row in gallery.rows:
        assert row.numbers["max activation"] == row.tiles[0].numbers["activation"]


def test_notes_tell_of_normalization_and_of_activations_that_are_no_numbers() -> None:
    images = torch.rand(4, 1, 9, 9)
    images[2, 0, 4, 4] = float("nan")
    found = mine_top_patches(nn.Sequential(nn.Conv2d(1, 2, 3)), [images], k=2)
    report = top_patches_report(found, diagnose(found), Normalization((0.5,), (0.25,), "given"))
    assert report.notes[1] == "Inputs are shown with their normalization undone: mean 0.5, std 0.25 (given)."
    assert "Not finite: NaN or infinite activations, left out of the ranking, in 0 (image 2)." in report.notes


def test_fewer_images_than_k_and_dead_features_make_a_report() -> None:
    conv = nn.Conv2d(1, 2, 3)
    conv.weight.data.zero_()
    conv.bias.data = torch.tensor([-1.0, 1.0])  # type: ignore[union-attr]
    found = mine_top_patches(nn.Sequential(conv), [torch.rand(2, 1, 5, 5)], k=9)
    (summary,) = diagnose(found)
    assert (summary.dead_features, summary.dead_fraction) == (1, 0.5)
    report = top_patches_report(found, [summary], AS_IT_IS)
    gallery = report.items[0]
    assert isinstance(gallery, Gallery)
    assert [len(row.tiles) for row in gallery.rows] == [2, 2]
    assert "1 dead" in gallery.caption


@pytest.mark.parametrize(
    ("value", "text"), [(1362.4, "1362"), (12.345, "12.3"), (0.01234, "0.0123"), (-150.0, "-150"), (3e8, "3e+08")]
)
def test_brief(value: float, text: str) -> None:
    assert brief(value) == text


def test_all_channels_have_facts_also_those_without_patches() -> None:
    images, labels = torch.rand(6, 1, 9, 9), torch.tensor([0, 1, 2, 0, 1, 2])
    model = nn.Sequential(nn.Conv2d(1, 3, 3))
    model[0].bias.data[1] = -100.0  # dead
    found = mine_top_patches(model, [(images, labels)], k=4, features=[2])
    report = top_patches_report(found, diagnose(found, found), AS_IT_IS, class_names=("ant", "bee"))
    (gallery,) = (item for item in report.items if isinstance(item, Gallery))
    assert (gallery.layer, [row.channel for row in gallery.rows]) == ("0", [2])
    assert [(tile.shows, tile.rank) for tile in gallery.rows[0].tiles] == [("patch", rank) for rank in range(4)]
    (facts,) = report.facts
    assert facts.channels["dead"] == (0, 1, 0)
    assert facts.channels["stability"] == (1.0, 1.0, 1.0)
    assert math.isnan(facts.channels["label purity"][1])
    # Two of four patches have one label, of three, whatever they show.
    assert facts.numbers == {"least label purity": 0.5}
    assert "label purity 0.50 (at least 0.50)" in gallery.caption
    (unnamed,) = top_patches_report(found, diagnose(found, found), AS_IT_IS).facts
    assert unnamed.numbers == {}
    labels_of, weights = found["0"].labels[2].tolist(), found["0"].activations[2]
    parts = dict.fromkeys(("ant", "bee", 2), 0.0)
    for label, weight in zip(labels_of, (weights / weights.sum()).tolist(), strict=True):
        parts[("ant", "bee", 2)[label]] += weight
    expected = sorted(((name, part) for name, part in parts.items() if part), key=lambda pair: -pair[1])
    assert [name for name, _ in facts.classes[2]] == [name for name, _ in expected]
    assert [part for _, part in facts.classes[2]] == pytest.approx([part for _, part in expected])
    assert facts.classes[1] == ()
    assert facts.histograms[:2] == (None, None)
    assert sum(facts.histograms[2].counts) == 6
    assert {name for name, _ in facts.told[2]} == {"ant", "bee", 2}
