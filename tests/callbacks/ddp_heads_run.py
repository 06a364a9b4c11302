"""Run by test_distributed_probe.py in processes of its own: online probes of two heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from callbacks.littlenet import quiet_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
from lightning_cnnviz.core.data.distributed import gathered_objects

IMAGES = torch.rand(18, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Labelled(Dataset[Any]):
    """Each image so many times in a row: so many ranks have the same images."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __len__(self) -> int:
        return len(IMAGES) * self.times

    def __getitem__(self, place: int) -> Any:
        number = place // self.times
        return IMAGES[number], {"species": number % 3, "sex": number % 2}


class TwoHeads(pl.LightningModule):
    """Says two things of an image; its weights stay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.species, self.sex = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        means = self.conv(images).relu().mean((2, 3))
        return {"species": self.species(means), "sex": self.sex(means)}

    def training_step(self, batch: Any, _: int) -> Tensor:
        said = self(batch[0])
        return said["species"].square().mean() + said["sex"].square().mean()

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> Any:
        # A sampler of our own: Lightning's would shuffle.
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(Labelled(ranks), num_replicas=ranks, rank=rank, shuffle=False)
        return DataLoader(sampler.dataset, batch_size=6, sampler=sampler)

    def val_dataloader(self) -> Any:
        return DataLoader(Labelled(self.trainer.world_size), batch_size=6)


class Saves(pl.Callback):
    """Saves what each rank's probes are, and the numbers that it has, before rank zero's process ends."""

    def __init__(self, online: OnlineProbeMonitor, out: Path) -> None:
        self.online, self.out = online, out

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = {name: probes._weights.clone() for name, probes in self.online._learning.learned.items()}
        numbers = {key: float(value) for key, value in trainer.callback_metrics.items() if "online_probe" in key}
        every = gathered_objects((weights, numbers))
        if trainer.is_global_zero:
            torch.save(every, self.out)


def main(ranks: int, out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(2, verbose=False)
    online = OnlineProbeMonitor(sinks=[MemorySink()], on_error="raise")
    strategy = "ddp_fork" if ranks > 1 else "auto"
    trainer = quiet_trainer(callbacks=[online, Saves(online, out)], devices=ranks, strategy=strategy, max_epochs=2)
    trainer.fit(TwoHeads())
