"""Run by test_distributed_everything.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.ddp_run import net, whole_numbers
from callbacks.injection_run import CHEAP
from callbacks.littlenet import quiet_trainer
from torch.utils.data import DataLoader

import lightning_cnnviz
from lightning_cnnviz import MemorySink, Monitor

FIT_ALONE = {"OnlineProbeMonitor"}  # its probes learn from what each rank has, and are not those of one process


def keeping(monitor: Monitor, found: dict[str, Any]) -> Monitor:
    """Let a monitor keep its whole results, which there are on rank zero alone."""
    merge = monitor.merge

    def merged(parts: list[Any]) -> Any:
        found[type(monitor).__name__] = merge(parts)
        return found[type(monitor).__name__]

    monitor.merge = merged  # type: ignore[method-assign]
    return monitor


class Saving(pl.Callback):
    """Saves what was found, before the process ends that has found it."""

    def __init__(self, found: dict[str, Any], out: Path) -> None:
        self.found, self.out = found, out

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(self.found, self.out)


def main(ranks: int, out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    found: dict[str, Any] = {}
    watching = []
    for name in lightning_cnnviz.__all__:
        kind = getattr(lightning_cnnviz, name)
        if isinstance(kind, type) and issubclass(kind, Monitor) and kind is not Monitor and name not in FIT_ALONE:
            options = {**CHEAP.get(name, {}), **({"images": 5} if "images" in CHEAP.get(name, {}) else {})}
            options |= {"images": 20, "layers": "conv"} if name == "LayerProbeMonitor" else {}
            watching.append(keeping(kind(**options, sinks=[MemorySink()], on_error="raise"), found))
    # 23 images: the sampler pads, and last batches are uneven.
    loader = DataLoader(whole_numbers(23), batch_size=5)
    strategy = "ddp_fork" if ranks > 1 else "auto"
    trainer = quiet_trainer(callbacks=[*watching, Saving(found, out)], devices=ranks, strategy=strategy)
    trainer.validate(net(), loader, verbose=False)
