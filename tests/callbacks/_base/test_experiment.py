"""Monitors with an experiment of their own: when they look, on which images, and what a failure does."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch import nn
from torch.utils.data import DataLoader

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.report import Report, Scalar


class WeightNorm(ExperimentMonitor):
    """Of the first layer."""

    fails = False

    def prepare(self, network: nn.Module) -> None:
        self.modes: list[bool] = []

    def experiment(self, network: nn.Module, progress: Progress) -> float:
        if self.fails:
            raise RuntimeError("a failing experiment")
        self.modes.append(network.training)
        return float(next(network.parameters()).detach().norm())

    def render(self, result: float) -> Report:
        return Report("weight_norm", title="Norm", items=(Scalar("norm", result),))


class Brightness(ExperimentMonitor):
    """Of each image."""

    every_rank = True

    def __init__(self, images: Any = 5, *, data: Any = None, **options: Any) -> None:
        super().__init__(DisplayedSample(images, data=data), **options)

    def prepare(self, network: nn.Module) -> None:
        self.seen: list[Sample] = []

    def check(self, network: nn.Module) -> None:
        if self.sample.labels is None:
            raise ValueError("labels are missing")

    def experiment(self, network: nn.Module, progress: Progress) -> torch.Tensor | None:
        sample = self.drawn.part(network)
        if sample is None:
            return None
        self.seen.append(sample)
        return sample.images.mean((1, 2, 3))

    def merge(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)

    def render(self, result: torch.Tensor) -> Report:
        return Report("brightness", title="Brightness", items=(Scalar("first", float(result[0])),))


def fit(monitor: Any, **options: Any) -> LittleNet:
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=[monitor], **options).fit(model, train_loader(), val_loader())
    return model


@pytest.mark.parametrize(
    ("when", "epochs"),
    [({}, [1, 2, 3]), ({"every_n_epochs": 2}, [2, 3]), ({"epochs": [1, 3]}, [1, 3]), ({"epochs": "last"}, [3])],
)
def test_looks_at_the_end_of_epochs(when: dict[str, Any], epochs: list[int]) -> None:
    sink = MemorySink()
    model = fit(WeightNorm(sinks=[sink], on_error="raise", **when), max_epochs=3)
    assert [step.epoch for step, _ in sink.reports] == epochs
    last = sink.reports[-1][1].items[0]
    assert isinstance(last, Scalar)
    if epochs[-1] == 3:
        assert last.value == float(next(model.parameters()).detach().norm())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_looks_once_outside_of_fit(stage: str) -> None:
    for kind in (WeightNorm, Brightness):
        sink = MemorySink()
        trainer = quiet_trainer(callbacks=[kind(sinks=[sink], on_error="raise")])
        getattr(trainer, stage)(LittleNet(), val_loader(), verbose=False)
        assert [step.stage for step, _ in sink.reports] == [stage]


def test_without_validation_weights_can_be_looked_at() -> None:
    sink = MemorySink()
    fit(WeightNorm(sinks=[sink]), limit_val_batches=0)
    assert len(sink.reports) == 2


def test_the_same_images_at_every_look_of_different_classes() -> None:
    monitor = Brightness(4, sinks=[MemorySink()], on_error="raise")
    fit(monitor, max_epochs=3)
    assert len(monitor.seen) == 3
    assert all(torch.equal(sample.images, monitor.seen[0].images) for sample in monitor.seen)
    assert monitor.sample.labels is not None
    assert len(set(monitor.sample.labels.tolist())) == 4
    data = dataset(23, seed=1)
    expected = torch.stack([data[int(index)][0] for index in monitor.sample.indices])
    assert torch.equal(monitor.sample.images, expected)


def test_given_images_and_given_loaders() -> None:
    images, labels = torch.rand(3, 1, 14, 14), torch.tensor([0, 1, 2])
    given = Brightness((images, labels), sinks=[MemorySink()], on_error="raise")
    fit(given)
    assert torch.equal(given.sample.images, images)
    drawn = Brightness(2, data=DataLoader(dataset(5, seed=9), batch_size=2), sinks=[MemorySink()], on_error="raise")
    fit(drawn, limit_val_batches=0)
    assert len(drawn.sample) == 2


def test_what_could_not_work_is_refused_before_training() -> None:
    for monitor, match in (
        (Brightness(torch.rand(2, 1, 14, 14), sinks=[MemorySink()]), "labels are missing"),
        (Brightness(torch.rand(2, 14, 14), sinks=[MemorySink()]), r"give \(N, C, H, W\)"),
        (Brightness(data=[], sinks=[MemorySink()]), "the loader list is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            fit(monitor)
    with pytest.raises(ValueError, match="there is none: give data"):
        fit(Brightness(sinks=[MemorySink()], on_error="raise"), limit_val_batches=0)
    with pytest.raises(ValueError, match="images=0"):
        Brightness(0)


def test_a_failure_is_reported_once_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    monitor = WeightNorm(sinks=[MemorySink()])
    monitor.fails = True
    fit(monitor, max_epochs=3)
    assert len([record for record in caplog.records if "has failed and is switched off" in record.message]) == 1
    monitor = WeightNorm(sinks=[MemorySink()], on_error="raise")
    monitor.fails = True
    with pytest.raises(RuntimeError, match="a failing experiment"):
        fit(monitor)
