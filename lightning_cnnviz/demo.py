"""The demo: a small convnet learns handwritten digits, with the monitors attached, on any machine, in a minute."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import WandbLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.v2 import Normalize

from lightning_cnnviz.callbacks import (
    ActivationMapMonitor,
    AttributionMonitor,
    CorrelationMonitor,
    DeconvnetMonitor,
    FilterMonitor,
    InvarianceMonitor,
    LayerProbeMonitor,
    LayerTableMonitor,
    MaximizationMonitor,
    OcclusionMonitor,
    OnlineProbeMonitor,
    TopPatchesMonitor,
)
from lightning_cnnviz.render.studies import sample_efficiency_report
from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import show_once
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink
from lightning_cnnviz.studies.digits import digits_transfer

__all__ = ["DemoNet", "DemoResult", "Digits", "run_demo"]

_SEED = 1


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made.

    Attributes:
        accuracy: Of the held-out test images, 0 to 1.
        page: The local page.
        run: The W&B run's folder.
    """

    accuracy: float
    page: Path
    run: Path


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's 1,797 handwritten digits, `(1, 32, 32)`: enlarged from 8 x 8, then normalized.

    Args:
        part: `"train"` (1,197 images), `"val"` or `"test"` (300 each); the same ones every time.
    """

    classes = tuple(str(digit) for digit in range(10))

    def __init__(self, part: str) -> None:
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        chosen = {"train": order[600:], "val": order[:300], "test": order[300:600]}[part]
        self.images = F.interpolate(images[chosen], size=32, mode="bilinear", antialias=False)
        self.labels = torch.tensor(labels)[chosen]
        self.transform: Callable[[Tensor], Tensor] = Normalize([0.305], [0.33])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


class DemoNet(pl.LightningModule):
    """Four convolutions with BatchNorm, functional ReLUs and a residual sum: an ordinary convnet of somebody's own."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(64)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, 10)
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` of images `(N, 1, 32, 32)`."""
        maps = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 2)
        maps = F.max_pool2d(F.relu(self.norm2(self.conv2(maps))), 2)
        maps = maps + F.relu(self.norm3(self.conv3(maps)))
        maps = F.relu(self.norm4(self.conv4(maps)))
        logits: Tensor = self.head(self.dropout(maps.mean((2, 3))))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log(f"{part}/loss", F.cross_entropy(logits, batch[1]))
        self.log(f"{part}/accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def run_demo(out: Path, *, epochs: int = 8, online: bool = False) -> DemoResult:
    """Train, look, and write everything below `out`.

    Args:
        out: Folder for the page, the run and nothing else.
        epochs: Number of training epochs.
        online: Whether the run is uploaded while it is made (needs a W&B account).
    """
    out.mkdir(parents=True, exist_ok=True)
    # Pictures in tables would otherwise wait below the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(out))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    pl.seed_everything(_SEED, verbose=False)
    logger = WandbLogger(
        project="cnnviz-demo", save_dir=str(out), offline=not online, settings={"silent": True, "console": "off"}
    )
    page = PageSink(out / "page")
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=logger,
        callbacks=_monitors(page),
        accelerator="cpu",
        default_root_dir=out,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    with warnings.catch_warnings():
        # Two of Lightning's hints, meant for larger data sets.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*tensorboard.*")
        model = DemoNet()
        trainer.fit(model, _loader("train", shuffle=True), _loader("val"))
        tested: list[Any] = list(trainer.test(model, _loader("test"), verbose=False))
        _show_transfer(out, trainer, page)
    run = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    return DemoResult(accuracy=float(tested[0]["test/accuracy"]), page=page.path.resolve(), run=run.resolve())


def _show_transfer(out: Path, trainer: pl.Trainer, page: PageSink) -> None:
    """A small study: what the digits 0 to 4 teach about 5 to 9."""
    result = digits_transfer(out / "study", variants=("pretrained-full", "scratch"), seeds=(0, 1))
    step = Step(epoch=trainer.current_epoch, global_step=trainer.global_step, stage="test")
    report = sample_efficiency_report(result)
    show_once("digits_transfer", report, step, [WandbSink(), page], loggers=trainer.loggers, folder=out)


def _monitors(page: PageSink) -> list[pl.Callback]:
    """Every monitor; those whose looks take seconds look at the trained network alone."""

    def sinks() -> list[Sink]:
        return [WandbSink(), page]

    return [
        LayerTableMonitor(sinks=sinks()),
        TopPatchesMonitor(sinks=sinks()),
        DeconvnetMonitor(sinks=sinks()),
        FilterMonitor(sinks=sinks()),
        ActivationMapMonitor(sinks=sinks()),
        LayerProbeMonitor(every_n_epochs=4, control="random", sinks=sinks()),
        OnlineProbeMonitor(sinks=sinks()),
        CorrelationMonitor(every_n_epochs=4, sinks=sinks()),
        InvarianceMonitor(every_n_epochs=4, sinks=sinks()),
        OcclusionMonitor(epochs="last", sinks=sinks()),
        AttributionMonitor(epochs="last", sinks=sinks()),
        MaximizationMonitor(penalty=0.8, invariance=0, epochs="last", sinks=sinks()),
    ]


def _loader(part: str, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(Digits(part), batch_size=64, shuffle=shuffle)
