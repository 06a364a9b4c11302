"""Run by test_distributed_failure.py in processes of its own."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.strategies import DDPStrategy

from lightning_cnnviz import CorrelationMonitor, DeconvnetMonitor, FilterMonitor, LayerProbeMonitor, MemorySink
from lightning_cnnviz.callbacks._base.monitor import Monitor


def failing(monitor: Monitor, stage: str, rank: int) -> Monitor:
    """Make a monitor fail at a stage of its looks, on one rank alone."""
    works = getattr(monitor, stage)

    def fails(*arguments: Any, **options: Any) -> Any:
        if torch.distributed.get_rank() == rank:
            raise RuntimeError("it failed on one rank")
        return works(*arguments, **options)

    setattr(monitor, stage, fails)
    return monitor


class Ranks(pl.Callback):
    """Saves what each rank was shown and how it ended, before its process does."""

    def __init__(self, sink: MemorySink, out: Path) -> None:
        self.sink, self.out = sink, out

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weight = pl_module.features[0].weight.detach()
        weights = pl_module.all_gather(weight).reshape(-1, *weight.shape)
        shown = sorted({f"{report.view} {report.name} {step.epoch}" for step, report in self.sink.reports})
        ended = {"shown": shown, "same": all(torch.equal(weight, other) for other in weights)}
        torch.save(ended, self.out / f"rank{trainer.global_rank}.pt")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    sink = MemorySink()
    options: dict[str, Any] = {"sinks": [sink], "every_n_epochs": 1}
    monitors = [
        failing(CorrelationMonitor(name="render", **options), "render", 0),
        failing(CorrelationMonitor(name="own data", data=val_loader(), **options), "render", 0),
        failing(LayerProbeMonitor(name="render", **options), "render", 0),
        failing(DeconvnetMonitor("features.0", name="part", **options), "part", 1),
        FilterMonitor(**options),
        CorrelationMonitor(**options),
        CorrelationMonitor(name="good data", data=val_loader(), **options),
        LayerProbeMonitor(**options),
    ]
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    trainer = quiet_trainer(callbacks=[*monitors, Ranks(sink, out)], devices=2, strategy=strategy, max_epochs=3)
    trainer.fit(LittleNet(), train_loader(), val_loader())
