"""A report files each item under a key that tells views and monitors apart, and refuses what could be confused."""

from __future__ import annotations

import pickle

import pytest
import torch

from lightning_cnnviz.report import Gallery, LateTile, Picture, Report, Row, Scalar, Series, Step, Table, Tile

PICTURE = Picture("features.3", torch.zeros(3, 2, 2, dtype=torch.uint8))
SCALAR = Scalar("features.3", 0.5)


def test_keys_tell_views_and_monitors_apart() -> None:
    alone = Report("filters", title="Filters", items=(PICTURE, SCALAR))
    named = Report("filters", title="Filters", items=(PICTURE, SCALAR), name="teacher")
    assert [alone.key(item) for item in alone.items] == ["filters/features.3", "filters_stats/features.3"]
    assert [named.key(item) for item in named.items] == [
        "filters/teacher/features.3",
        "filters_stats/teacher/features.3",
    ]
    assert (alone.source, named.source) == ("filters", "filters/teacher")
    assert (alone.heading, named.heading) == ("Filters", "Filters · teacher")


def test_what_could_be_swapped_is_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        Step(1, 10)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Series("line", (0.0,), (1.0,))  # type: ignore[misc]


def test_items_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="two items Scalar 'features"):
        Report("filters", title="Filters", items=(SCALAR, SCALAR))
    with pytest.raises(ValueError, match="equally long"):
        Series("line", x=(0.0,), y=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 columns, but a row of 1 cells"):
        Table("table", ("a", "b"), ((1,),))
    with pytest.raises(ValueError, match=r"a Tile needs uint8 pixels of shape \(3, H, W\)"):
        Tile(torch.zeros(3, 2, 2))


def test_a_late_tile_is_drawn_when_its_pixels_are_asked_for_and_pickled_as_drawn() -> None:
    drawn: list[int] = []

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.full((3, 4, 5), 7, dtype=torch.uint8)

    tile = LateTile(draw, (4, 5), caption="one", numbers={"a": 1}, shows="patch", rank=2)
    gallery = Gallery("g", (Row("r", (tile, Tile(torch.zeros(3, 4, 5, dtype=torch.uint8)))),))
    assert (tile.size, gallery.rows[0].tiles[1].size, drawn) == ((4, 5), (4, 5), [])
    assert torch.equal(tile.pixels, draw())
    kept = pickle.loads(pickle.dumps(tile))
    assert (type(kept), kept.caption, kept.numbers, kept.shows, kept.rank) == (Tile, "one", {"a": 1}, "patch", 2)
    assert torch.equal(kept.pixels, draw())
    with pytest.raises(TypeError, match="captoin"):
        LateTile(draw, (4, 5), captoin="one")
    with pytest.raises(ValueError, match=r"the tiles of Gallery 'g' have sizes"):
        Gallery("g", (Row("r", (tile, LateTile(draw, (4, 6)))),))
    with pytest.raises(ValueError, match="a Tile needs uint8 pixels"):
        LateTile(lambda: torch.zeros(3, 4, 5), (4, 5)).pixels  # noqa: B018
