"""Training is the same to the bit with all monitors and with none, in every way to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from callbacks.combinations_run import QUICK, WAYS, Way, compared, differences, left_by, main

from lightning_cnnviz import FilterMonitor, MemorySink

ALL = [*QUICK, *(way for way in WAYS if way not in QUICK)]


def name_of(way: Way) -> str:
    return " ".join(str(part) for part in way if part != "")


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in ALL], ids=name_of
)
def test_all_monitors_together_disturb_nothing(way: Way, tmp_path: Path) -> None:
    if way.ranks == 1:
        assert compared(way, draws=way == QUICK[0]) == []
        return
    number = WAYS.index(way)
    processes.run(main, *[(rank, way.ranks, tmp_path, [number]) for rank in range(way.ranks)])


def test_there_are_many_ways() -> None:
    assert len(set(ALL)) == len(ALL) >= 32


@pytest.mark.parametrize("what", ["chance", "weights", "modes", "hooks", "requires_grad"])
def test_a_monitor_that_disturbs_is_caught(what: str) -> None:
    class Disturbs(FilterMonitor):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *others: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *others)
            if what == "chance":
                torch.rand(1)
            elif what == "weights":
                pl_module.head.weight.data[0, 0] += 1e-6
            elif what == "modes":
                pl_module.features[6].eval()
            elif what == "hooks":
                pl_module.head.register_forward_hook(lambda *_: None)
            else:
                pl_module.head.weight.requires_grad_(False)

    way = Way()
    plain, again, disturbed = (left_by(way, each) for each in ([], [], [Disturbs(sinks=[MemorySink()])]))
    same, found = differences(plain, again), differences(plain, disturbed)  # named: pytest would draw whole states
    assert same == []
    assert found
