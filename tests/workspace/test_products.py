"""Workspaces and reports of W&B are built without an account, and hold what the sections say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lightning_cnnviz.workspace.products import AXIS, make_report, make_workspace
from lightning_cnnviz.workspace.sections import SECTIONS, Panel

KINDS = {
    "numbers": "Run History Line Plot",
    "chart": "Vega2",
    "table": "Weave",
    "pictures": "Media Browser",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every way out of this machine."""
    pytest.importorskip("wandb_workspaces")

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", refused)


def texts(value: Any) -> Iterator[str]:
    """Every string in a nested structure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def check_panel(panel: Panel, spec: dict[str, Any]) -> None:
    assert spec["viewType"] == KINDS[panel.kind]
    wanted = {f"{key}_table" for key in panel.keys} if panel.kind == "chart" else set(panel.keys)
    assert wanted <= set(texts(spec["config"]))
    if panel.kind == "numbers":
        assert spec["config"]["xAxis"] == AXIS


def test_a_workspace_has_the_sections_and_their_panels() -> None:
    (bank,) = [make_workspace("team", "flowers", SECTIONS)._spec["spec"]["section"]["panelBankConfig"]]
    made = bank["sections"]
    assert [section["name"] for section in made] == [section.name for section in SECTIONS]
    for section, spec in zip(SECTIONS, made, strict=True):
        assert spec["isOpen"] == section.is_open
        assert spec["localPanelSettings"]["xAxis"] == AXIS
        for panel, panel_spec in zip(section.panels, spec["panels"], strict=True):
            check_panel(panel, panel_spec)


def test_a_report_says_how_to_read_each_view_and_shows_it() -> None:
    report = make_report("team", "flowers", SECTIONS)
    # Grids ask W&B for the project's number when the report is saved: here without.
    grids = [block for block in report.blocks if type(block).__name__ == "PanelGrid"]
    rest = [block._to_model().model_dump(by_alias=True) for block in report.blocks if block not in grids]
    told = " ".join(texts(rest))
    assert "It is no gradient and no heat map of importance" in told
    assert "Zeiler & Fergus 2013, section 4, Fig. 2" in told
    for section, grid in zip(SECTIONS, grids, strict=True):
        assert [(runset.entity, runset.project) for runset in grid.runsets] == [("team", "flowers")]
        for panel, made in zip(section.panels, grid.panels, strict=True):
            spec = made._to_model().model_dump(by_alias=True, exclude_none=True)
            check_panel(panel, spec)
            assert spec["layout"]["x"] + spec["layout"]["w"] <= 24
