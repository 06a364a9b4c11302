"""Run by test_long_runs.py in a process of its own: every monitor looks after every epoch; what does an epoch cost?"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.injection_run import CHEAP, loader
from callbacks.littlenet import LittleNet, quiet_trainer
from callbacks.test_contract import MONITORS, takes

from lightning_cnnviz import Monitor


def watching(names: Sequence[str]) -> list[Monitor]:
    """Some monitors, or every one there is, as cheap as it goes; those that have a schedule look after each epoch."""
    kinds = [kind for kind in MONITORS if not names or kind.__name__ in names]
    every = {"every_n_epochs": 1}
    return [kind(**CHEAP.get(kind.__name__, {}), **(every if takes(kind, "epochs") else {})) for kind in kinds]


class Counting(pl.Callback):
    """Notes at the end of each epoch how much was written so far, and how much memory this process holds.

    Attributes:
        written: Bytes that this process gave to the system to write, to whatever file and however often.
        resident: Resident memory, in MB.
    """

    def __init__(self) -> None:
        self.written, self.resident = list[int](), list[float]()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        gc.collect()
        self.written.append(_told("io", "wchar"))
        self.resident.append(_told("status", "VmRSS") / 1e3)


def _told(file: str, name: str) -> int:
    """What the system tells of this process."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(folder: Path, epochs: int, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(3, verbose=False)
    monitors, counting = watching(names), Counting()
    trainer = quiet_trainer(callbacks=[*monitors, counting], max_epochs=epochs, default_root_dir=folder / "run")
    trainer.fit(LittleNet(), loader(8), loader(6))
    told = {
        "failures": {type(each).__name__: each.failure for each in monitors if each.failure},
        "written": counting.written,
        "resident": counting.resident,
        "list": (folder / "run" / "cnnviz" / "looks.js").stat().st_size,
        "looks": len(list((folder / "run" / "cnnviz" / "looks").iterdir())),
    }
    (folder / "found.json").write_text(json.dumps(told))
