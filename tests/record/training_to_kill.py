"""A training that says which looks are in its record, and goes on from its newest checkpoint; to be killed."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from callbacks._base.test_resuming import monitors
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_cnnviz.record.store import Record


class Announce(pl.Callback):
    """Prints the looks that are in the record, after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.record = Record(folder / "cnnviz" / "record")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        print("looks:", *(look.id for look in self.record.looks()), flush=True)


def main(folder: Path, epochs: int) -> None:
    """Train."""
    pl.seed_everything(0, verbose=False)
    checkpoints = folder / "checkpoints"
    callbacks = [*monitors(), Announce(folder), ModelCheckpoint(dirpath=checkpoints, save_last=True, save_top_k=0)]
    settings = {"default_root_dir": folder, "enable_checkpointing": True, "callbacks": callbacks}
    trainer = quiet_trainer(max_epochs=epochs, **settings)
    loader, model = DataLoader(train_loader().dataset, batch_size=8), LittleNet()
    model.features[6].p = 0.0  # type: ignore[assignment]
    last = checkpoints / "last.ckpt"
    resumed = {"ckpt_path": last, "weights_only": False} if last.exists() else {}
    trainer.fit(model, loader, val_loader(), **resumed)
