"""A LightningModule with all that a look could disturb, and its data."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class LittleNet(pl.LightningModule):
    """Shuffled data, dropout, BatchNorm (one of them frozen), an in-place and a functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8),
            nn.Dropout(0.3),
        )
        self.head = nn.Linear(8, 4)
        self.broken: str | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.features(images)).mean((2, 3)))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.features[5].eval()  # as users freeze a BatchNorm
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.broken == "validation_step" and not self.trainer.sanity_checking:
            raise RuntimeError("the user's own mistake")
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def dataset(count: int, seed: int = 0, size: int = 14) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size, size, generator=generator)
    return TensorDataset(images, torch.randint(0, 4, (count,), generator=generator))


def train_loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(dataset(40), batch_size=8, shuffle=True, **options)


def val_loader(count: int = 23, **options: Any) -> DataLoader[Any]:
    options.setdefault("batch_size", 6)
    return DataLoader(dataset(count, seed=1), **options)


def quiet_trainer(package: Any = pl, **options: Any) -> Any:
    """A Trainer that writes nothing of its own; fits two epochs on the CPU."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return package.Trainer(**{**settings, **options})
