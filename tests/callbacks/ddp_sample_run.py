"""Run by test_distributed_sample.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, val_loader
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.attribution import AttributionMonitor
from lightning_cnnviz.callbacks.invariance import InvarianceMonitor
from lightning_cnnviz.callbacks.occlusion import OcclusionMonitor


class Shown(pl.Callback):
    """Saves what each rank was shown, before its process ends."""

    def __init__(self, sink: MemorySink, monitors: list[Any], out: Path) -> None:
        self.sink, self.monitors, self.out = sink, monitors, out

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        found = {
            "reports": [report for _, report in self.sink.reports],
            "indices": [monitor.sample.indices for monitor in self.monitors],
        }
        torch.save(found, self.out.with_suffix(f".{trainer.global_rank}"))


def several_labels() -> DataLoader[Any]:
    """Images with any number of labels, one of four only mostly."""
    images, labels = val_loader().dataset[:]
    rows = torch.nn.functional.one_hot(labels, 4).float()
    rows[::5] = torch.tensor([1.0, 1.0, 0.0, 1.0])
    return DataLoader(TensorDataset(images, rows), batch_size=6)


def main(ranks: int, out: Path, several: bool = False) -> None:
    pl.seed_everything(2, verbose=False)
    sink = MemorySink()
    monitors: list[Any] = [
        InvarianceMonitor(transforms=["translation"], images=3, sinks=[sink], on_error="raise"),
        OcclusionMonitor(images=3, size=5, stride=5, sinks=[sink], on_error="raise"),
        AttributionMonitor("guided_gradcam", 3, sinks=[sink], on_error="raise"),
        OcclusionMonitor(name="small", images=1, size=7, stride=7, sinks=[sink], on_error="raise"),  # one rank has none
    ]
    strategy = "ddp_fork" if ranks > 1 else "auto"
    callbacks = [*monitors, Shown(sink, monitors, out)]
    trainer = quiet_trainer(callbacks=callbacks, devices=ranks, strategy=strategy)
    trainer.validate(LittleNet(), several_labels() if several else val_loader(), verbose=False)
