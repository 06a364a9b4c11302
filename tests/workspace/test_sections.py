"""The sections of a workspace show every key that a run has, as what it is."""

from __future__ import annotations

import re

import pytest
from workspace.documented import documented_keys

from lightning_cnnviz.render.how_to_read import HOW_TO_READ
from lightning_cnnviz.render.views import VIEW_NAMES
from lightning_cnnviz.workspace.sections import SECTIONS, chosen_sections, sections_text

AS = {"number": "numbers", "chart": "chart", "table": "table", "picture": "pictures", "list of pictures": "pictures"}
AS["page"] = "pictures"


def test_every_documented_key_is_shown_once_as_what_it_is() -> None:
    kinds = {**documented_keys(), **documented_keys(studies=True)}
    shown = [(key, panel.kind) for section in SECTIONS for panel in section.panels for key in panel.keys]
    expected = {(key, AS[kind]) for key, kind in kinds.items() if key != "cnnviz/epoch" and "<" not in key}
    assert set(shown) == expected
    assert len(shown) == len(set(shown))


def test_sections_are_in_reading_order() -> None:
    names = [section.name for section in SECTIONS]
    assert [name.split()[0] for name in names] == [
        "Health", "Probes", "Patches", "Invariance", "Occlusion", "Maximization", "Architecture", "Study",
    ]  # fmt: skip


def test_there_is_a_text_for_every_view_that_can_be_drawn() -> None:
    assert set(VIEW_NAMES) <= HOW_TO_READ.keys()
    assert {view for section in SECTIONS for view in section.views} - {"cnnviz"} <= HOW_TO_READ.keys()


def test_views_can_be_chosen() -> None:
    sections = chosen_sections(["online_probe", "ablation"], prefix="run_a")
    assert [section.name for section in sections] == ["Health", "Probes by depth", "Study"]
    keys = [key for section in sections for panel in section.panels for key in panel.keys]
    assert all(re.fullmatch(r"run_a/(online_probe|test/ablation)/\w+", key) for key in keys)
    assert len(keys) == 6


def test_a_view_that_no_panel_shows_is_refused() -> None:
    with pytest.raises(ValueError, match="no panel shows 'oclusion'; there are top_patches, layer_probe,"):
        chosen_sections(["oclusion"])


def test_the_text_says_how_to_read_what_it_lists() -> None:
    text = sections_text(chosen_sections(["deconvnet"]), explained=True)
    assert "It is no gradient" in text
    assert "pictures  deconvnet/evolution" in text
