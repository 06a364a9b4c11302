from __future__ import annotations

import pytest

from lightning_cnnviz.core.network.suggestions import closest_names, did_you_mean, suggestion

NAMES = ["conv1", "conv2", "conv3", "conv4", "head"]


def test_the_closest_names_come_first_and_are_at_most_so_many() -> None:
    assert closest_names("conv3", NAMES)[0] == "conv3"
    assert len(closest_names("conv", NAMES)) == 3
    assert len(closest_names("conv", NAMES, 2)) == 2
    assert closest_names("zzz", NAMES) == []


@pytest.mark.parametrize(("asked", "expected"), [("haed", ": Did you mean 'head'?"), ("zzz", "")])
def test_a_question_where_there_is_something_to_ask(asked: str, expected: str) -> None:
    assert suggestion(asked, iter(NAMES), ": ") == expected


def test_nothing_is_asked_of_no_names() -> None:
    assert did_you_mean([]) == ""
