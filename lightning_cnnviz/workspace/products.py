"""Sections as a workspace and as a report of W&B; the only room that knows wandb-workspaces."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from lightning_cnnviz.workspace.sections import Panel, Section, how_to_read

__all__ = ["AXIS", "CHART", "CHART_FIELDS", "make_report", "make_workspace"]

AXIS = "cnnviz/epoch"
# As `wandb.plot.line_series` has them.
CHART, CHART_FIELDS = "wandb/lineseries/v0", {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
_WIDTH, _HEIGHT = 24, 14  # of a report's grid: its width, and the height of a panel of pictures
_TEMPLATE = (
    "How to read this: each section asks one question, and says of its views what they show, how they are made and "
    "what they cannot tell. Replace this paragraph by what was trained, on what, and what you found; choose the runs "
    "below each grid; delete what your runs do not have."
)


def make_workspace(entity: str, project: str, sections: Sequence[Section], *, name: str = "cnnviz") -> Any:
    """Build a workspace, which is not saved yet: a section each, charts over epochs, one column of a slider's pictures.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    workspaces, _ = _libraries()
    made = [
        workspaces.Section(
            name=section.name,
            panels=[_panel(panel) for panel in section.panels],
            is_open=section.is_open,
            layout_settings=workspaces.SectionLayoutSettings(columns=2, rows=2),
            panel_settings=workspaces.SectionPanelSettings(x_axis=AXIS),
        )
        for section in sections
    ]
    settings = workspaces.WorkspaceSettings(x_axis=AXIS)
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=made, settings=settings)


def make_report(
    entity: str, project: str, sections: Sequence[Section], *, name: str = "What the network learns"
) -> Any:
    """Build a report to copy and fill, which is not saved yet: of each section how to read it, and its panels.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    _, reports = _libraries()
    blocks = [reports.P(_TEMPLATE), reports.TableOfContents()]
    for section in sections:
        grid = reports.PanelGrid(
            runsets=[reports.Runset(entity=entity, project=project)], panels=_laid_out(section.panels)
        )
        texts = [reports.P(paragraph) for paragraph in how_to_read(section)]
        blocks += [reports.H1(section.name), reports.P(section.asks), *texts, grid, reports.P("Found: ...")]
    about = "What each view of lightning_cnnviz shows of these runs, and how to read it"
    return reports.Report(entity=entity, project=project, title=name, description=about, blocks=blocks, width="fluid")


def _libraries() -> tuple[Any, Any]:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ImportError('needs wandb-workspaces, not installed: pip install "lightning_cnnviz[workspaces]"')
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    return workspaces, reports


def _panel(panel: Panel, **layout: Any) -> Any:
    _, reports = _libraries()
    if panel.kind == "numbers":
        return reports.LinePlot(title=panel.title, x=AXIS, y=list(panel.keys), **layout)
    if panel.kind == "pictures":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=1, **layout)
    (key,) = panel.keys
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=key, **layout)
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"{key}_table"}},
        chart_name=CHART,
        chart_fields=dict(CHART_FIELDS),
        chart_strings={"title": panel.title, "xname": panel.x},
        **layout,
    )


def _laid_out(panels: Sequence[Panel]) -> list[Any]:
    """Panels of a report, two side by side."""
    _, reports = _libraries()
    width = _WIDTH // 2
    places = [(place % 2 * width, place // 2 * _HEIGHT) for place in range(len(panels))]
    return [
        _panel(panel, layout=reports.Layout(x=x, y=y, w=width, h=_HEIGHT))
        for panel, (x, y) in zip(panels, places, strict=True)
    ]
