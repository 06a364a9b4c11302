from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import FilterMonitor, MemorySink, TopPatchesMonitor


class Remembering(Logger):
    """Keeps every row that Lightning logs."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[set[str], tuple[float, int]]] = []

    name = version = "remembering"  # type: ignore[assignment]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((set(metrics), (metrics.get("epoch", -1), step or 0)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def moments(self, key: str) -> list[tuple[float, int]]:
        return [moment for names, moment in self.rows if key in names]


class Two(pl.LightningModule):
    """Steps two optimizers a batch: Lightning's global step counts both."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 2))
        self.automatic_optimization = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(images)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        self.manual_backward(loss)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.step()
        self.log("train/whole", loss.detach(), on_step=False, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.network[at].parameters(), lr=0.01) for at in (0, 3)]


@pytest.fixture
def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(8, 3, 8, 8, generator=generator), torch.arange(8) % 2), batch_size=2)


def rows(sink: MemorySink, view: str) -> list[tuple[int, int]]:
    # The table at the end of a run is of its last look.
    return list(dict.fromkeys(step.row for step, report in sink.reports if report.view == view))


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_a_look_is_filed_under_the_epoch_and_step_of_lightnings_own_numbers(loader: Any, interval: float) -> None:
    logger, sink = Remembering(), MemorySink()
    trainer = pl.Trainer(
        max_epochs=2,
        logger=logger,
        callbacks=[
            TopPatchesMonitor(sinks=[sink]),
            FilterMonitor(sinks=[sink]),
            FilterMonitor(name="by steps", every_n_steps=4, sinks=[sink]),
            LearningRateMonitor(),
        ],
        accelerator="cpu",
        log_every_n_steps=1,
        val_check_interval=interval,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Two()
    trainer.fit(model, loader, loader)
    assert trainer.global_step == 16
    assert rows(sink, "top_patches") == logger.moments("val/loss")
    whole = [step.row for step, report in sink.reports if report.view == "filters" and not report.name]
    assert whole == logger.moments("train/whole") == [(0, 3), (1, 7)]
    by_steps = [step.row for step, report in sink.reports if report.name == "by steps"]
    assert by_steps == [moment for moment in logger.moments("train/loss") if moment[1] % 2 == 1]
    sink.reports.clear()
    trainer.validate(model, loader, verbose=False)
    assert rows(sink, "top_patches") == logger.moments("val/loss")[-1:]
