"""Run by test_distributed_probe.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch.utils.data import DataLoader

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
from lightning_cnnviz.core.data.distributed import gathered_objects
from lightning_cnnviz.core.probing.probe import LayerProbe


class Saving(LayerProbeMonitor):
    """Keeps its results."""

    found: list[LayerProbe]

    def render(self, result: LayerProbe) -> Any:
        self.found = [*getattr(self, "found", []), result]
        return super().render(result)


class Ranks(pl.Callback):
    """Notes whether all ranks have the same online probes; saves everything, before rank zero's process ends."""

    def __init__(self, probes: Saving, online: OnlineProbeMonitor, sink: MemorySink, out: Path) -> None:
        self.probes, self.online, self.sink, self.out = probes, online, sink, out
        self.same: list[bool] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            assert self.online.probes is not None
            mine = self.online.probes._weights
            theirs = pl_module.all_gather(mine).reshape(-1, *mine.shape)
            self.same.append(bool(mine.any()) and all(torch.equal(mine, other) for other in theirs))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        numbers = gathered_objects({key: float(value) for key, value in trainer.callback_metrics.items()})
        if trainer.is_global_zero:
            notes = [report.notes[1] for _, report in self.sink.reports]
            found = {"probes": self.probes.found, "same": self.same, "online": notes, "numbers": numbers}
            torch.save(found, self.out)


def main(ranks: int, out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    # Sets of its own, since networks that were trained on one process and on two are not the same: it looks before.
    known, test = DataLoader(dataset(41, seed=3), batch_size=5, shuffle=True), DataLoader(dataset(23, 4), batch_size=4)
    probes = Saving(
        data=(known, test), heads=("svm", "softmax", "knn"), splits=2, epochs=[2], control="random",
        sinks=[MemorySink()], on_error="raise", images=37,
    )  # fmt: skip
    sink = MemorySink()
    online = OnlineProbeMonitor(sinks=[sink], on_error="raise")
    model = LittleNet()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)  # type: ignore[method-assign]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    strategy = "ddp_fork" if ranks > 1 else "auto"
    stopping = pl.callbacks.EarlyStopping("layer_probe/features_0/svm", mode="max", strict=False)
    callbacks = [stopping, probes, online, Ranks(probes, online, sink, out)]
    trainer = quiet_trainer(callbacks=callbacks, devices=ranks, strategy=strategy, max_epochs=2)
    trainer.fit(model, train_loader(), val_loader())
