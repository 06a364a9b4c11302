"""On two processes the first rank maximizes while the other waits, and training goes on in step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from lightning_cnnviz.report import Gallery

SCRIPT = Path(__file__).with_name("ddp_maximization_run.py")


def test_the_first_rank_alone_maximizes(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert (first["climbs"], second["climbs"]) == (2, 0)
    assert (first["same"], second["same"]) == (True, True)
    assert second["items"] == []
    names = [item.name for item in first["items"] if isinstance(item, Gallery) and "invariance" not in item.name]
    assert names == ["features.0", "features.4", "classes"] * 2
