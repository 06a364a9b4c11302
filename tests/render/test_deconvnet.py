"""Projections beside their patches: in which order, with which numbers, and how they change from look to look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.render.deconvnet import FirstRanked, deconvnet_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import MEAN_NOTE, to_gray_centered
from lightning_cnnviz.report import ColorScale, Gallery, Report

AS_IT_IS = Normalization((0.0,), (1.0,))
MAPS = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
MAPS[4, 0, 2, 2] = 3.0  # the strongest unit of all, on an image of
MAPS[4, 0] -= 1.0  # a low mean


def mined(rank_by: RankBy) -> tuple[TopPatches, list[Tensor]]:
    """Units of the images themselves, and a projection of a color of its own for each."""
    result = mine_top_patches(nn.Sequential(nn.Identity()), [MAPS], "0", k=3, rank_by=rank_by)
    return result, [torch.tensor([1.0, -0.1 * number, 0.0]).view(3, 1, 1) for number in range(6)]


GRAYS = ColorScale(("#000000", "#ffffff"), "less of it activates", "more of it activates", "no contribution")


def galleries(report: Report) -> list[Gallery]:
    return [item for item in report.items if isinstance(item, Gallery)]


@pytest.mark.parametrize("rank_by", ["max", "mean"])
def test_each_projection_stands_beside_its_patch_with_the_numbers_of_its_unit(rank_by: RankBy) -> None:
    result, projections = mined(rank_by)
    report = deconvnet_report(result, projections, "deconvnet", AS_IT_IS, {})
    (gallery,) = galleries(report)
    layer = result["0"]
    places = iter(projections)
    for feature, row in enumerate(gallery.rows):
        assert row.numbers == {"max activation": float(MAPS[:, feature].max())}
        # Two on the left and two on the right, line by line; what is missing is empty.
        left = [row.tiles[place] for place in (0, 1, 4)]
        right = [row.tiles[place] for place in (2, 3, 6)]
        for rank, (projected, seen) in enumerate(zip(left, right, strict=True)):
            image, row_of, column = (int(part[feature, rank]) for part in (layer.images, layer.rows, layer.columns))
            assert torch.equal(projected.pixels, to_gray_centered(next(places)))
            assert {**seen.numbers, "full contrast": projected.numbers["full contrast"]} == projected.numbers
            assert (projected.shows, seen.shows, projected.rank, seen.rank) == ("projection", "patch", rank, rank)
            assert projected.numbers["activation"] == pytest.approx(float(MAPS[image, feature].max()))
            assert (projected.numbers["row"], projected.numbers["column"]) == (row_of, column)
            mean = projected.numbers.get("mean activation")
            assert mean == (None if rank_by == "max" else pytest.approx(float(MAPS[image, feature].mean())))
    assert (MEAN_NOTE in report.notes) == (rank_by == "mean")
    which = "the 3 strongest units" if rank_by == "max" else "the strongest units of the 3 images of highest mean"
    assert gallery.caption.startswith(f"deconvnet: {which} of 2 of 2 feature maps")


def test_a_strip_grows_look_by_look() -> None:
    result, projections = mined("max")
    looks = [
        FirstRanked(epoch=epoch, activation=1.5 * epoch, box=torch.tensor([0, 0, 1, 1]), pixels=projections[0])
        for epoch in (1, 2)
    ]
    once = deconvnet_report(result, projections, "guided", AS_IT_IS, {"0": {1: looks[:1]}})
    assert [gallery.name for gallery in galleries(once)] == ["0"]
    twice = deconvnet_report(result, projections, "guided", AS_IT_IS, {"0": {1: looks}})
    _, strip = galleries(twice)
    assert (strip.name, strip.columns) == ("0/evolution", 2)
    assert strip.scale == galleries(twice)[0].scale == GRAYS
    assert "the strongest projection of each feature map" in strip.caption
    assert [row.caption for row in strip.rows] == ["feature 1"]
    assert [tile.numbers for tile in strip.rows[0].tiles] == [
        {"epoch": 1, "activation": 1.5}, {"epoch": 2, "activation": 3.0}
    ]  # fmt: skip
    by_mean = deconvnet_report(mined("mean")[0], projections, "guided", AS_IT_IS, {"0": {1: looks}})
    assert "the projection that ranks first" in galleries(by_mean)[1].caption
