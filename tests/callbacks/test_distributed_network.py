"""On two processes the views of the network itself come once, whole, and every process keeps the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from lightning_cnnviz.report import Gallery, Table

SCRIPT = Path(__file__).with_name("ddp_network_run.py")


def test_two_processes_show_once_and_renormalize_alike(tmp_path: Path) -> None:
    out = tmp_path / "two.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), "2", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(out, weights_only=False)
    assert found["same"] == [True, True]
    assert float(found["weight"].flatten(1).square().mean(1).sqrt().max()) <= 0.05 + 1e-6
    tables = [item for view, item in found["items"] if view == "layer_table" and isinstance(item, Table)]
    assert [table.name for table in tables] == ["layers", "does_not_fit"]
    filters = [item for view, item in found["items"] if view == "filters" and isinstance(item, Gallery)]
    assert [gallery.name for gallery in filters] == ["features.0"]
    maps = [item for view, item in found["items"] if view == "activation_maps"]
    assert [gallery.name for gallery in maps] == ["features.0", "features.4"]
    for gallery in maps:  # three images, shared by two processes
        assert len({row.caption for row in gallery.rows}) == len(gallery.rows) == 3
        assert all(len(row.tiles) > 1 for row in gallery.rows)
