"""A monitor that fails on one rank alone ends on all of them, and nothing waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("ddp_failure_run.py")


def test_the_run_goes_on_with_equal_weights_and_the_other_monitors(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert all(rank["same"] for rank in ranks)
    assert ranks[1]["shown"] == []
    good = ["correlation ", "correlation good data", "filters ", "layer_probe "]
    assert ranks[0]["shown"] == [f"{view} {epoch}" for view in good for epoch in (1, 2, 3)]
