"""On two processes the first rank maximizes while the other waits, and training goes on in step."""

from __future__ import annotations

from pathlib import Path

import processes
import torch
from callbacks.ddp_maximization_run import main

from lightning_cnnviz.report import Gallery


def test_the_first_rank_alone_maximizes(tmp_path: Path) -> None:
    processes.run(main, (tmp_path,))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert (first["climbs"], second["climbs"]) == (2, 0)
    assert (first["same"], second["same"]) == (True, True)
    assert second["items"] == []
    names = [item.name for item in first["items"] if isinstance(item, Gallery) and "invariance" not in item.name]
    assert names == ["features.0", "features.4", "classes"] * 2
