"""Run by test_distributed_data.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_cnnviz.finetune.data import ImageFolderDataModule


class Looker(pl.LightningModule):
    """Keeps the labels and the brightness of the images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch[0].flatten(1).clone()))
        loss: Tensor = self.layer(batch[0].mean().view(1, 1)).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saved(pl.Callback):
    """Saves what each rank was given, before its process ends."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        data.setup("test")
        found = {"seen": pl_module.seen, "files": data.train_set.files, "broken": sorted(data._broken)}
        torch.save(found, self.out.with_suffix(f".{trainer.global_rank}"))


def main(ranks: int, folder: Path, out: Path) -> None:
    pl.seed_everything(2, verbose=False)
    data = ImageFolderDataModule(
        folder, image_size=8, batch_size=2, val=0, test=0, on_corrupt="skip", augment="standard"
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        max_epochs=2,
        callbacks=[Saved(out)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Looker(), datamodule=data)
