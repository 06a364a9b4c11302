"""A set of monitors that suits a network and its data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from callbacks.test_contract import MONITORS, assert_equal, everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import MemorySink, OnlineProbeMonitor, monitors


def aside(said: list[str]) -> dict[str, str]:
    """What stepped aside, and why."""
    return dict(text.split(" steps aside: ") for text in said if " steps aside: " in text)  # type: ignore[misc]


def fit(make: Any, train: Any, val: Any = None, **options: Any) -> dict[str, set[int]]:
    """Fit with the set, and return at which steps each view was shown."""
    pl.seed_everything(3, verbose=False)
    model = make()
    settings = {key: options.pop(key) for key in ("budget", "epochs", "on_error") if key in options}
    sink = MemorySink()
    quiet_trainer(callbacks=monitors(sinks=[sink], **settings), **options).fit(model, train, val)
    views: dict[str, set[int]] = {}
    for step, report in sink.reports:
        views.setdefault(report.view, set()).add(step.global_step)
    return views


def test_every_view_that_looks_from_time_to_time_is_there() -> None:
    assert {type(each) for each in monitors()} == set(MONITORS) - {OnlineProbeMonitor}


@pytest.mark.parametrize("budget", [0, -1, 1.01])
def test_wrong_budgets_are_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        monitors(budget=budget)
    with pytest.raises(ValueError, match="every_n_steps=0"):
        monitors(every_n_steps=0)


@pytest.mark.parametrize("ending", [{"max_epochs": 2}, {"max_epochs": 99, "max_steps": 8}], ids=str)
def test_all_look_at_the_end_and_weights_are_bit_identical(ending: dict[str, Any], said: list[str]) -> None:
    pl.seed_everything(3, verbose=False)
    plain = LittleNet()
    quiet_trainer(**ending).fit(plain, train_loader(), val_loader())
    expected = everything(plain)
    made: list[LittleNet] = []

    def model() -> LittleNet:
        made.append(LittleNet())
        return made[0]

    views = fit(model, train_loader(), val_loader(), on_error="raise", **ending)
    assert_equal(everything(made[0]), expected)
    assert aside(said) == {}
    last = ending.get("max_steps", 10)
    assert {view for view, steps in views.items() if last in steps} == set(views) - {"layer_table"}
    assert len(views) == len(monitors())
    assert len([text for text in said if text.startswith("What looks cost")]) == 1


class Dense(pl.LightningModule):
    """No convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(14 * 14, 4))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Autoencoder(pl.LightningModule):
    """No class scores, and no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.net(images)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images_alone() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(24, 1, 14, 14)), batch_size=8)


OF_WEIGHTS = {"layer_table", "filters"}
OF_MAPS = {"top_patches", "deconvnet", "correlation", "activation_maps", "maximization"}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:Total length of `DataLoader`")
@pytest.mark.parametrize(
    ("model", "train", "val", "views", "found"),
    [
        (
            Dense,
            train_loader,
            val_loader,
            {"layer_table", "occlusion"},
            "Dense has no (Conv2d|layer that returns feature maps|convolution)",
        ),
        (Autoencoder, images_alone, images_alone, OF_WEIGHTS | OF_MAPS, "label|logits|class"),
        (LittleNet, train_loader, lambda: None, {*OF_WEIGHTS, "layer_probe"}, "validation"),
        (LittleNet, train_loader, lambda: val_loader(0), {"filters"}, "is empty"),
    ],
    ids=["no convolution", "no classes", "no validation data", "empty validation data"],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_what_does_not_suit_steps_aside_and_the_others_look(
    model: Callable[[], Any], train: Any, val: Any, views: set[str], found: str, sanity: int, said: list[str]
) -> None:
    shown = fit(model, train(), val(), on_error="raise", num_sanity_val_steps=sanity)
    reasons = aside(said)
    assert set(shown) == views
    assert all(re.search(found, reason) for reason in reasons.values())
    assert len(reasons) + len(shown) == len(monitors())
    assert not [reason for reason in reasons.values() if "\n" in reason]


def test_a_wrong_name_of_the_network_is_wrong() -> None:
    with pytest.raises(ValueError, match=r'model="typo".*no such submodule'):
        quiet_trainer(callbacks=monitors(model="typo", sinks=[MemorySink()])).fit(
            LittleNet(), train_loader(), val_loader()
        )


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_outside_of_fit_all_look_once(stage: str, said: list[str]) -> None:
    sink = MemorySink()
    trainer = quiet_trainer(callbacks=monitors(sinks=[sink]))
    getattr(trainer, stage)(LittleNet(), val_loader(), verbose=False)
    assert len({report.view for _, report in sink.reports}) == len(monitors())
    assert aside(said) == {}
