"""Run by test_distributed_ending.py in processes of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import CorrelationMonitor, FilterMonitor, MemorySink
from lightning_cnnviz.callbacks._base.budget import Budget


class LazyFilters(FilterMonitor):
    """Has a view of its own."""

    def render(self, result: Any) -> Any:
        return replace(super().render(result), view="lazy")


class Saving(pl.Callback):
    """Writes when something was shown, and a number that all weights go into, on rank zero."""

    def __init__(self, out: Path, sink: MemorySink) -> None:
        self.out, self.sink = out, sink

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            total = float(sum(value.double().abs().sum() for value in pl_module.state_dict().values()))
            steps = [[report.view, step.epoch, step.global_step] for step, report in self.sink.reports]
            self.out.write_text(json.dumps({"total": total, "steps": steps}))


def main(out: Path, watched: bool) -> None:
    torch.set_num_threads(1)
    sink = MemorySink()
    options: dict[str, Any] = {"sinks": [sink], "on_error": "raise"}
    lazy = LazyFilters(**options)
    lazy.share(Budget(1e-9))
    monitors = [CorrelationMonitor(every_n_steps=3, **options), FilterMonitor(every_n_epochs=9, **options), lazy]
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(
        callbacks=[*(monitors if watched else ()), Saving(out, sink)],
        max_steps=8,
        max_epochs=99,
        strategy="ddp_fork",
        devices=2,
    )
    trainer.fit(LittleNet(), train_loader(), val_loader())
