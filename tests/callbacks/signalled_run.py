"""Run by test_signals.py in processes of their own: a signal comes while a monitor looks, or where none does."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from callbacks.test_contract import hooks_of

from lightning_cnnviz import FilterMonitor, OcclusionMonitor, OnlineProbeMonitor, TopPatchesMonitor
from lightning_cnnviz.callbacks._base.feed import Feed
from lightning_cnnviz.record.drawing import Drawer
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.sinks._page_folder import PageFolder
from lightning_cnnviz.sinks.outlet import Outlet

# In what the signal comes, and the hook of Lightning that this is called from.
POINTS: dict[str, tuple[Any, str, str]] = {
    "reading a batch of validation": (Feed, "end_batch", "on_validation_batch_end"),
    "adding to the record": (Record, "_added", "on_validation_end"),
    "giving a file its name": (Path, "replace", "on_validation_end"),
    "drawing": (Outlet, "_draw", "on_validation_end"),
    "handing over to the process that draws": (Drawer, "submit", "on_validation_end"),
    "writing the page's list": (PageFolder, "write_list", "on_validation_end"),
    "experimenting": (OcclusionMonitor, "experiment", "on_train_epoch_end"),
}


class Armed(pl.Callback):
    """Lets a signal come once, from the second epoch's validation on: in a function of ours, or in a hook."""

    def __init__(self, number: int, owner: Any, name: str) -> None:
        self.left: list[bool] = []
        self.is_due = True
        real: Callable[..., Any] = getattr(owner, name)

        def signalled(*arguments: Any, **options: Any) -> Any:
            if self.left:
                self.left.clear()
                os.killpg(0, number)  # to the process that draws, too, as a terminal does it
            return real(*arguments, **options)

        setattr(owner, name, signalled)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and self.is_due:
            self.is_due = False
            self.left.append(True)


class Alone(pl.Callback):
    """Has the hooks that a monitor has, and does nothing in them."""

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        pass

    def on_validation_end(self, *_: Any) -> None:
        pass

    def on_train_epoch_end(self, *_: Any) -> None:
        pass


def main(folder: Path, number: int, point: str, looks: bool) -> None:
    """Fit until the signal ends it, and save what has become of the run; the process ends as Lightning lets it end."""
    torch.set_num_threads(1)
    owner, name, hook = POINTS[point]
    monitors: list[Any] = [Alone()]
    if looks:
        monitors = [OnlineProbeMonitor(), TopPatchesMonitor(), FilterMonitor(), OcclusionMonitor(images=2, size=7)]
    armed = Armed(number, *((owner, name) if looks else (Alone, hook)))
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    trainer = quiet_trainer(callbacks=[armed, *monitors], max_epochs=4, default_root_dir=folder)
    try:
        trainer.fit(model, train_loader(), val_loader())
    finally:
        momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
        chance = [torch.rand(3), torch.from_numpy(np.random.rand(3)), torch.tensor([random.random()])]
        flags = [module.training for module in model.modules()] + [each.requires_grad for each in model.parameters()]
        told = {
            "tensors": [value.clone() for value in [*model.state_dict().values(), *momenta, *chance]],
            "moment": (trainer.current_epoch, trainer.global_step, str(trainer.state.status), trainer.received_sigterm),
            "flags": flags,
            "hooks": hooks_of(model),
            "handlers": [str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)],
        }
        torch.save(told, folder / "found.pt")
