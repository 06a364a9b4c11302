"""A monitor that fails on one rank alone ends on all of them, and nothing waits for it."""

from __future__ import annotations

from pathlib import Path

import processes
import torch
from callbacks._base.ddp_failure_run import main


def test_the_run_goes_on_with_equal_weights_and_the_other_monitors(tmp_path: Path) -> None:
    processes.run(main, (tmp_path,))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert all(rank["same"] for rank in ranks)
    assert ranks[1]["shown"] == []
    good = ["correlation ", "correlation good data", "filters ", "layer_probe "]
    assert ranks[0]["shown"] == [f"{view} {epoch}" for view in good for epoch in (1, 2, 3)]
