"""A report files each item under a key that tells views and monitors apart, and refuses what could be confused."""

from __future__ import annotations

import pytest
import torch

from lightning_cnnviz.report import Picture, Report, Scalar, Series, Step, Table, Tile

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
