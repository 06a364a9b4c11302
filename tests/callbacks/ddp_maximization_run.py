"""Run by test_distributed_maximization.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import nn

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks._base.experiment import Progress
from lightning_cnnviz.callbacks.maximization import MaximizationMonitor


class Counted(MaximizationMonitor):
    """Counts how often this rank climbs."""

    climbs = 0

    def experiment(self, network: nn.Module, progress: Progress) -> Any:
        self.climbs += 1
        return super().experiment(network, progress)


class Ranks(pl.Callback):
    """Saves what each rank did and was shown, before its process ends."""

    def __init__(self, monitor: Counted, sink: MemorySink, out: Path) -> None:
        self.monitor, self.sink, self.out = monitor, sink, out

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weight = pl_module.features[0].weight.detach()
        weights = pl_module.all_gather(weight).reshape(-1, *weight.shape)
        found = {
            "climbs": self.monitor.climbs,
            "items": [item for _, report in self.sink.reports for item in report.items],
            "same": len(weights) > 1 and all(torch.equal(weight, other) for other in weights),
        }
        torch.save(found, self.out / f"rank{trainer.global_rank}.pt")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    sink = MemorySink()
    monitor = Counted(every_n_epochs=1, features=2, steps=4, images=5, sinks=[sink], on_error="raise")
    trainer = quiet_trainer(
        callbacks=[monitor, Ranks(monitor, sink, out)],
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        limit_train_batches=2,
    )
    trainer.fit(LittleNet(), train_loader(), val_loader())
