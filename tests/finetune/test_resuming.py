"""A run that is resumed at the end of an epoch gives the weights of the one that was not interrupted, bit by bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from finetune.tuning import differing, images, little_net, train_loader, trainer, tuner, val_loader, weights
from torch.utils.data import DataLoader, Dataset

from lightning_cnnviz.finetune import FineTuner


class Saved(pl.Callback):
    """Writes a checkpoint in the second epoch, where ModelCheckpoint does it, and keeps learning rates."""

    def __init__(self, path: Path, hook: str) -> None:
        self.path, self.hook = path, hook
        self.rates: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_train_epoch_end")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def _save(self, trainer: Any, hook: str) -> None:
        if hook == self.hook and trainer.current_epoch == 1 and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


class Augmented(Dataset[Any]):
    """Each reading draws from all of the generators."""

    def __len__(self) -> int:
        return len(images())

    def __getitem__(self, index: int) -> Any:
        pixels, label = images()[index]
        return pixels + random.random() * 0.1 + float(np.random.rand()) * 0.1 + torch.rand(()) * 0.1, label


def both(path: Path, hook: str, make: Any, loader: Any = train_loader) -> tuple[FineTuner, FineTuner, Saved, Saved]:
    """A run of four epochs, and one that goes on from its second."""
    runs = []
    for ckpt_path in (None, path):
        pl.seed_everything(9 if ckpt_path is None else 77, verbose=False)
        module, saved = make(), Saved(path, hook if ckpt_path is None else "never")
        trainer(callbacks=[saved]).fit(module, loader(), val_loader(), ckpt_path=ckpt_path)
        runs.append((module, saved))
    (whole, first), (resumed, second) = runs
    return whole, resumed, first, second


HOOKS = ["on_validation_end", "on_train_epoch_end"]
OPTIONS: list[dict[str, Any]] = [
    {},  # dropout in the backbone, and the order of images
    {"head": "mlp", "mode": "head"},
    {"mixup": 0.4},
    {"mode": "head", "cache_features": True, "head": "mlp"},
]


@pytest.mark.parametrize(
    ("options", "hook"),
    [
        pytest.param(options, hook, marks=[] if place % 2 == HOOKS.index(hook) else pytest.mark.slow)
        for place, options in enumerate(OPTIONS)
        for hook in HOOKS
    ],
)
def test_dropout_mixup_and_the_order_of_images_go_on(options: dict[str, Any], hook: str, tmp_path: Path) -> None:
    whole, resumed, _, _ = both(tmp_path / "second.ckpt", hook, lambda: tuner(little_net(), **options))
    assert differing(weights(whole.network), weights(resumed.network)) == []


def test_augmentation_and_a_loaders_own_generator_go_on(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(4)
        return DataLoader(Augmented(), batch_size=8, shuffle=True, generator=generator)

    whole, resumed, _, _ = both(tmp_path / "second.ckpt", "on_train_epoch_end", tuner, loader)
    assert differing(weights(whole.network), weights(resumed.network)) == []


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plateau_loses_no_step(hook: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"}
    make = lambda: tuner(scheduler="ReduceLROnPlateau", scheduler_options=options)  # noqa: E731
    whole, resumed, first, second = both(tmp_path / "second.ckpt", hook, make)
    assert first.rates[2:] == second.rates[-2:]
    assert len(set(first.rates)) > 2  # they do fall
    assert differing(weights(whole.network), weights(resumed.network)) == []


def test_a_checkpoint_after_the_end_steps_no_plateau_twice(tmp_path: Path) -> None:
    options: dict[str, Any] = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"}
    make = lambda: tuner(scheduler="ReduceLROnPlateau", scheduler_options=options)  # noqa: E731
    rates = []
    for epochs in ((4,), (2, 4)):
        pl.seed_everything(9, verbose=False)
        path = None
        for end in epochs:
            module, saved = make(), Saved(tmp_path / "never.ckpt", "never")
            run = trainer(max_epochs=end, callbacks=[saved])
            run.fit(module, train_loader(), val_loader(), ckpt_path=path)
            path = tmp_path / "end.ckpt"
            run.save_checkpoint(path)
        rates.append((saved.rates[-2:], weights(module.network)))
    assert rates[0][0] == rates[1][0]
    assert differing(rates[0][1], rates[1][1]) == []


def test_a_checkpoint_that_is_loaded_to_be_trained_anew_begins_a_run_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "second.ckpt"
    both(path, "on_train_epoch_end", tuner)
    found = []
    for seed in (1, 1, 2):
        module = FineTuner.load_from_checkpoint(path, backbone=little_net(), sinks=[])
        pl.seed_everything(seed, verbose=False)
        trainer(max_epochs=1).fit(module, train_loader(), val_loader())
        found.append(weights(module.network))
    assert differing(found[0], found[1]) == []
    assert differing(found[0], found[2]) != []


class Never(pl.Callback):
    """A step of training is one too many."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise AssertionError("training has begun")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_plateau_without_validation_is_refused_before_training() -> None:
    options: dict[str, Any] = {"scheduler": "ReduceLROnPlateau"}
    with pytest.raises(ValueError, match="steps by 'val/loss', but this trainer does not validate"):
        trainer(callbacks=[Never()]).fit(tuner(**options), train_loader())
    with pytest.raises(ValueError, match="does not validate: give it validation images, or monitor='train/loss'"):
        trainer(callbacks=[Never()], limit_val_batches=0).fit(tuner(**options), train_loader(), val_loader())
    with pytest.raises(ValueError, match=r"validates every 2 epochs: give scheduler_options=\{'frequency': 2\}"):
        trainer(callbacks=[Never()], check_val_every_n_epoch=2).fit(tuner(**options), train_loader(), val_loader())
    by_training = tuner(**options, scheduler_options={"monitor": "train/loss"})
    trainer(max_epochs=2).fit(by_training, train_loader())
    rarely = tuner(**options, scheduler_options={"frequency": 2})
    trainer(max_epochs=2, check_val_every_n_epoch=2).fit(rarely, train_loader(), val_loader())
