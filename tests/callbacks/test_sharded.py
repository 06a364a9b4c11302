"""Where processes hold parts of the weights alone, every view steps aside, says why, and training goes on."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from callbacks.sharded_run import main


@pytest.mark.fault(
    "network",
    "FSDP, tensor parallelism or ZeRO stage 3 has cut the weights up among processes",
    "every view steps aside and says why and what to do, and training goes on",
)
@pytest.mark.parametrize("way", ["ModelParallelStrategy", pytest.param("FullySharded", marks=pytest.mark.slow)])
def test_every_view_steps_aside(way: str, tmp_path: Path) -> None:
    said = processes.run(main, *[(rank, way, tmp_path) for rank in range(2)])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert (found["steps"], found["shown"]) == (6, 0)
        assert [len(reasons) for reasons in found["reasons"]] == ([12, 12] if way == "ModelParallelStrategy" else [12])
        for name, reason in [pair for reasons in found["reasons"] for pair in reasons.items()]:
            assert reason is not None, name
            assert f"{way} has cut them up among processes" in reason
    assert said[0].count("steps aside: looks at whole weights") == sum(map(len, found["reasons"]))
    assert "steps aside" not in said[1]


def test_parts_that_deepspeed_holds_are_seen_too() -> None:
    from types import SimpleNamespace

    from callbacks.littlenet import LittleNet

    from lightning_cnnviz.callbacks._base.trainer import refuse_sharded

    model = LittleNet()
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=model))
    refuse_sharded("FilterMonitor", trainer)  # stages 1 and 2 leave the weights whole
    model.head.weight.ds_id = 0  # type: ignore[assignment]  # as deepspeed.zero marks what it has cut up
    with pytest.raises(ValueError, match=r"^FilterMonitor looks at whole weights.*ZeRO stage 3.*cnnviz explore"):
        refuse_sharded("FilterMonitor", trainer)
