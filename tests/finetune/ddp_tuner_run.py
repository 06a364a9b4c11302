"""Run by test_fine_tuner_ddp.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from finetune.tuning import images, little_net, trainer, tuner, weights
from torch.utils.data import DataLoader, DistributedSampler


class Ranks(pl.Callback):
    """Saves each rank's weights after every epoch, before its process ends."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.weights: list[Any] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(weights(pl_module.network))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(self.weights, self.out.with_suffix(f".{trainer.global_rank}"))


class Data(pl.LightningDataModule):
    """The same global batches however many ranks: each takes every n-th image, and a share of the batch."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        sampler = DistributedSampler(images(), self.ranks, self.trainer.global_rank, shuffle=False)
        return DataLoader(images(), batch_size=8 // self.ranks, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(images(15, seed=2), batch_size=6)


def main(ranks: int, out: Path) -> None:
    torch.set_num_threads(1)
    module = tuner(
        little_net(norms=False),
        mode="staged",
        unfreeze_at=[1, 3],
        optimizer="SGD",
        lr=0.2,
        optimizer_options={"momentum": 0.9},
    )
    strategy = "ddp_fork" if ranks > 1 else "auto"
    options = {"devices": ranks, "strategy": strategy, "use_distributed_sampler": False}
    trainer(callbacks=[Ranks(out)], max_epochs=5, **options).fit(module, datamodule=Data(ranks))
