"""On two processes looks by steps, looks that are put off and last looks come at the same moments on both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
from callbacks.ddp_ending_run import main


def run(out: Path, what: str) -> Any:
    processes.run(main, (out, what == "watched"))
    return json.loads(out.read_text())


def test_looks_of_two_processes_that_end_by_max_steps(tmp_path: Path) -> None:
    watched, plain = run(tmp_path / "watched.json", "watched"), run(tmp_path / "plain.json", "plain")
    assert watched["total"] == plain["total"]
    steps: dict[str, list[tuple[int, int]]] = {}
    for view, epoch, step in watched["steps"]:
        steps.setdefault(view, []).append((epoch, step))
    # Three steps an epoch. With a budget of next to nothing, all looks but the first and the last are put off.
    assert steps == {
        "correlation": [(1, 3), (2, 6), (3, 8)],
        "filters": [(3, 8)],
        "lazy": [(1, 3), (3, 8)],
    }
