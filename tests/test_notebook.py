"""The notebook in examples/ runs, and shows what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "digits.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: Any) -> set[str]:
    """In which forms a cell's results are shown."""
    return {kind for output in cell["outputs"] for kind in output.get("data", {}) if kind != "text/plain"}


def kept_outputs() -> list[set[str]]:
    return [shown(cell) for cell in code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))]


def test_the_notebook_is_kept_with_its_outputs_and_small() -> None:
    wanted = ["displays" in cell["metadata"].get("tags", ()) for cell in code_cells(json.loads(NOTEBOOK.read_text()))]
    assert [bool(kinds) for kinds in kept_outputs()] == wanted
    assert sum(wanted) >= 5
    assert NOTEBOOK.stat().st_size < 300_000


def test_the_notebook_runs_and_every_cell_displays_what_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    path = os.pathsep.join([str(NOTEBOOK.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)  # of the kernel, which runs in another folder
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # it leaves nothing elsewhere
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert [shown(cell) for cell in code_cells(notebook)] == kept_outputs()
    assert {"fig2.pdf", "fig2.svg", "fig2.png", "fig2.csv"} <= {file.name for file in tmp_path.iterdir()}
