"""A fit with every monitor, logged to an offline W&B run, and what its files hold."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from sinks.offline_run import keep_wandb_inside, read_offline_run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

import lightning_cnnviz.callbacks as callbacks
from lightning_cnnviz.callbacks._base.monitor import Monitor

# What makes looks cheap, and changes nothing that is logged.
CHEAP: dict[str, dict[str, Any]] = {
    "MaximizationMonitor": {"steps": 2, "starts": 1},
}


class Classifier(pl.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(images)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def every_monitor() -> list[Monitor]:
    """One of each monitor, with its defaults."""
    kinds = [getattr(callbacks, name) for name in callbacks.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Monitor) and kind is not Monitor]
    return [kind(**CHEAP.get(kind.__name__, {})) for kind in kinds]


def loader(images: int, side: int) -> Any:
    pixels = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(pixels, torch.arange(images) % 4), batch_size=8)


def fit(network: nn.Module, folder: Path, *, side: int, images: int = 16, epochs: int = 2, logger: Any = None) -> Any:
    """Train with every monitor; the offline run lies in the folder."""
    logger = logger or WandbLogger(project="test", save_dir=folder, offline=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=logger,
        callbacks=every_monitor(),
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    trainer.fit(Classifier(network), loader(images, side), loader(images, side))
    return trainer


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run's files hold of ours.

    Attributes:
        rows: Of its history, those with a look.
        keys: Of all looks, and of the page.
        files: Pictures, tables and charts, without the record and the page.
        megabytes: Of these.
        table_rows: Of all tables and charts of a look together, where they are most.
    """

    rows: list[dict[str, Any]]
    keys: set[str]
    files: int
    megabytes: float
    table_rows: int


def figures(folder: Path) -> Figures:
    """Read a finished offline run back."""
    rows = [row for row in read_offline_run(folder) if "cnnviz/epoch" in row]
    lightnings = {"epoch", "trainer/global_step", "train/loss", "val/loss"}
    keys = {key for row in rows for key in row if not key.startswith("_")} - lightnings
    files = [file for file in folder.glob("wandb/offline-run-*/files/media/**/*") if file.is_file()]
    files = [file for file in files if file.suffix != ".html"]
    tables = [
        sum(value["nrows"] for value in row.values() if isinstance(value, dict) and "nrows" in value) for row in rows
    ]
    size = sum(file.stat().st_size for file in files) / 1e6
    rows = [row for row in rows if "cnnviz/page" not in row]
    return Figures(rows=rows, keys=keys, files=len(files), megabytes=size, table_rows=max(tables))


def main() -> None:
    """Print what a run of a network holds: `python whole_run.py FOLDER resnet50 64`."""
    out, name, side = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    keep_wandb_inside(out, pytest.MonkeyPatch())
    network = small_network() if name == "small" else getattr(models, name)(weights=None, num_classes=4)
    fit(network, out, side=side).logger.experiment.finish()
    found = figures(out)
    for key in sorted(found.keys):
        last = [row[key] for row in found.rows if key in row]
        print(f"{key} x {len(last)}: {str(last[-1])[:120]}")
    for row in found.rows:
        print(len(row), row["epoch"], row["trainer/global_step"], row["cnnviz/epoch"])
    print(len(found.keys), "keys;", found.files, "files;", f"{found.megabytes:.1f} MB;", found.table_rows, "table rows")


def small_network() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


if __name__ == "__main__":
    main()
