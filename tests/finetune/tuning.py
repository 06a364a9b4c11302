"""Little networks and data for the tests of FineTuner."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.finetune import FineTuner

SIZE = (1, 14, 14)


def little_net(*, norms: bool = True, seed: int = 0) -> nn.Sequential:
    """Three stages below the head: 12, 5 and 2 pixels."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for channels, width in ((1, 4), (4, 6), (6, 6)):
        parts += [nn.Conv2d(channels, width, 3, padding=0 if channels == 1 else 1)]
        parts += [nn.BatchNorm2d(width), nn.Dropout(0.2)] if norms else []
        parts += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 9))


def images(count: int = 24, classes: int = 3, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.rand(count, *SIZE, generator=generator) + labels[:, None, None, None] / classes
    return TensorDataset(pixels, labels)


def train_loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(images(), batch_size=8, **{"shuffle": True, **options})


def val_loader() -> DataLoader[Any]:
    return DataLoader(images(15, seed=2), batch_size=6)


def tuner(network: nn.Module | None = None, **options: Any) -> FineTuner:
    settings: dict[str, Any] = {"num_classes": 3, "image_size": SIZE, "sinks": [], **options}
    network = little_net() if network is None else network
    torch.manual_seed(5)
    return FineTuner(network, **settings)


def trainer(**options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return pl.Trainer(**{**settings, **options})


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [key for key, value in one.items() if not torch.equal(value, other[key])]
