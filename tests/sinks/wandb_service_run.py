"""A training whose W&B service is stopped or killed in its second epoch; called in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import FilterMonitor, PageSink, WandbSink
from lightning_cnnviz.sinks import _handover

EPOCHS = 4


def train(folder: str, fault: str, *, lightning_logs: bool, monitored: bool) -> None:
    """Fit, and write to `said.json` and `weights.pt` what came of it; the service is dead afterwards."""
    from lightning.pytorch.loggers import WandbLogger

    _handover._PATIENCE = _handover._LAST_PATIENCE = 3.0

    class Net(LittleNet):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                os.kill(pid, getattr(signal, fault))

        def log(self, *arguments: Any, **options: Any) -> None:
            if lightning_logs:
                super().log(*arguments, **options)

    torch.manual_seed(0)
    model = Net()
    logger = WandbLogger(project="project", save_dir=folder, offline=True)
    run, pid = logger.experiment, service()
    callbacks = [FilterMonitor(sinks=[WandbSink(), PageSink(Path(folder) / "page")])] if monitored else []
    trainer = quiet_trainer(logger=logger, callbacks=callbacks, max_epochs=EPOCHS)
    raised = ""
    try:
        trainer.fit(model, train_loader(), val_loader())
    except Exception as error:
        raised = type(error).__name__
    said = {"raised": raised, "steps": trainer.global_step, "run": run.id}
    (Path(folder) / "said.json").write_text(json.dumps(said))
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
    os.kill(pid, signal.SIGKILL)


def train_alone(folder: str) -> None:
    """Fit without W&B and without monitors."""
    torch.manual_seed(0)
    model = LittleNet()
    quiet_trainer(max_epochs=EPOCHS).fit(model, train_loader(), val_loader())
    torch.save(model.state_dict(), Path(folder) / "alone.pt")


def log_to_a_stopped_service(folder: str, rows: int) -> None:
    """Let WandbLogger log rows, without monitors; says in `said.json` whether it is held."""
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="project", save_dir=folder, offline=True)
    logger.log_metrics({"loss": 0.5}, step=0)
    os.kill(service(), signal.SIGSTOP)

    def log() -> None:
        for step in range(1, rows):
            logger.log_metrics({"loss": 0.5}, step=step)

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    thread.join(15)
    (Path(folder) / "said.json").write_text(json.dumps({"held": thread.is_alive()}))
    os.kill(service(), signal.SIGKILL)


def service() -> int:
    """The process of W&B's service, a child of this one."""
    children = (task / "children" for task in Path("/proc/self/task").iterdir())
    pids = [pid for each in children for pid in each.read_text().split()]
    (found,) = (int(pid) for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found
