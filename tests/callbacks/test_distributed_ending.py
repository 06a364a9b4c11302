"""On two processes looks by steps, looks that are put off and last looks come at the same moments on both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("ddp_ending_run.py")


def run(out: Path, what: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(out), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
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
