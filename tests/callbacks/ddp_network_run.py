"""Run by test_distributed_network.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.activation_maps import ActivationMapMonitor
from lightning_cnnviz.callbacks.filters import FilterMonitor, RenormalizeFilters
from lightning_cnnviz.callbacks.layer_table import LayerTableMonitor


class Ranks(pl.Callback):
    """Notes whether all ranks have the same weights; saves what rank zero was shown, before its process ends."""

    def __init__(self, sink: MemorySink, out: Path) -> None:
        self.sink, self.out, self.same = sink, out, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        weight = pl_module.features[0].weight.detach()
        all_weights = pl_module.all_gather(weight).reshape(-1, *weight.shape)
        self.same.append(len(all_weights) > 1 and all(torch.equal(weight, other) for other in all_weights))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            items = [(report.view, item) for _, report in self.sink.reports for item in report.items]
            weight = pl_module.features[0].weight.detach().clone()
            torch.save({"items": items, "same": self.same, "weight": weight}, self.out)


def main(ranks: int, out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    sink = MemorySink()
    monitors = [kind(sinks=[sink], on_error="raise") for kind in (LayerTableMonitor, FilterMonitor)]
    monitors.append(ActivationMapMonitor(images=3, sinks=[sink], on_error="raise"))
    strategy = "ddp_fork" if ranks > 1 else "auto"
    callbacks = [*monitors, RenormalizeFilters(0.05), Ranks(sink, out)]
    trainer = quiet_trainer(callbacks=callbacks, devices=ranks, strategy=strategy, max_epochs=1, limit_train_batches=2)
    trainer.fit(LittleNet(), train_loader(), val_loader())
