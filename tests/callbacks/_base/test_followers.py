"""Early stopping, checkpoints and schedulers go by the numbers of looks, whatever the order of callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_cnnviz import LayerProbeMonitor, MemorySink, OnlineProbeMonitor, TopPatchesMonitor, monitors
from lightning_cnnviz.report import Scalar

KEY = "layer_probe/features_0/svm"


def fit(*callbacks: Any, **options: Any) -> Any:
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"num_sanity_val_steps": 0, **options})
    trainer.fit(LittleNet(), train_loader(), val_loader())
    return trainer


def probes(**options: Any) -> LayerProbeMonitor:
    options = {"every_n_epochs": 1, "heads": ["svm"], "sinks": [MemorySink()], **options}
    return LayerProbeMonitor(["features.0"], **options)


def values_of(monitor: Any, name: str) -> list[float]:
    reports = [report for _, report in monitor.sinks[0].reports]
    return [item.value for report in reports for item in report.items if isinstance(item, Scalar) and item.name == name]


class Sees(EarlyStopping):
    """Keeps what it was asked about."""

    def __init__(self, monitor: str, **options: Any) -> None:
        super().__init__(monitor, patience=100, **options)
        self.seen: list[float] = []

    def _evaluate_stopping_criteria(self, current: Any) -> Any:
        self.seen.append(float(current))
        return super()._evaluate_stopping_criteria(current)


@pytest.mark.parametrize("behind", [False, True], ids=["monitor first", "monitor last"])
def test_early_stopping_goes_by_a_probe(behind: bool) -> None:
    monitor, stopping = probes(), EarlyStopping(KEY, mode="max", stopping_threshold=0.0)
    trainer = fit(*([stopping, monitor] if behind else [monitor, stopping]), max_epochs=3)
    assert trainer.current_epoch == 1
    assert float(trainer.callback_metrics[KEY]) == pytest.approx(values_of(monitor, "features.0/svm")[0])


def test_a_checkpoint_keeps_the_best_look(tmp_path: Path) -> None:
    monitor = probes()
    kept = ModelCheckpoint(tmp_path, monitor=KEY, mode="max", filename="{epoch}")
    fit(kept, monitor, max_epochs=3, enable_checkpointing=True)
    values = values_of(monitor, "features.0/svm")
    assert len(values) == 3
    assert float(kept.best_model_score) == pytest.approx(max(values))  # type: ignore[arg-type]
    assert kept.best_model_path.endswith(f"epoch={values.index(max(values))}.ckpt")


class Patient(LittleNet):
    """Its learning rate is halved by each look that is no better."""

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.08)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}


def test_a_learning_rate_goes_by_the_looks() -> None:
    monitor = probes()
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=[monitor], num_sanity_val_steps=0, max_epochs=4)
    trainer.fit(Patient(KEY), train_loader(), val_loader())
    found = values_of(monitor, "features.0/svm")
    best = [max(found[:place], default=-1.0) for place in range(4)]
    halved = sum(value <= before * (1 + 1e-4) for value, before in zip(found, best, strict=True))
    (scheduler,) = trainer.lr_scheduler_configs
    assert scheduler.scheduler.best == pytest.approx(max(found))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.08 * 0.5**halved)
    assert halved > 0


def test_a_learning_rate_that_asks_too_early_is_refused_before_training() -> None:
    trainer = quiet_trainer(callbacks=[probes(every_n_epochs=3)], max_epochs=4)
    with pytest.raises(ValueError, match="does not look before epoch 3: give LayerProbeMonitor"):
        trainer.fit(Patient(KEY), train_loader(), val_loader())


def test_at_validation_the_newest_look_is_there() -> None:
    """Also in the middle of an epoch, and each value is seen once."""
    monitor = OnlineProbeMonitor(["features.0", "features.4"], sinks=[MemorySink()], name="mine")
    sees = Sees("online_probe/mine/features_4/accuracy", check_on_train_epoch_end=False)
    fit(monitor, sees, val_check_interval=2, max_epochs=3)
    *values, _ = values_of(monitor, "features.4/accuracy")  # the last look is taken when training has ended
    assert len(set(values)) >= 2
    assert len(values) == 6
    assert sees.seen == pytest.approx(values)


def test_numbers_of_the_whole_network_and_of_two_monitors_keep_apart() -> None:
    first, second = TopPatchesMonitor(k=1, sinks=[MemorySink()]), TopPatchesMonitor(sinks=[MemorySink()], name="nine")
    trainer = fit(first, second)
    keys = {key for key in trainer.callback_metrics if key.startswith("top_patches/")}
    assert {"top_patches/dead_features", "top_patches/nine/dead_features", "top_patches/nine/stability"} <= keys
    assert all(key.replace("/", "").replace("_", "").isalnum() for key in keys)


@pytest.mark.parametrize(
    ("monitor", "stopping", "message"),
    [
        (
            lambda: probes(every_n_epochs=None),
            lambda: EarlyStopping(KEY),
            r"asks after epoch 1, and LayerProbeMonitor does not look before epoch 5: give "
            r"LayerProbeMonitor\(every_n_epochs=1\)",
        ),
        (
            lambda: probes(epochs="last", every_n_epochs=None),
            lambda: ModelCheckpoint(monitor=KEY, every_n_epochs=2),
            r'asks while training goes on, and LayerProbeMonitor looks when it has ended \(epochs="last"\): give '
            r"LayerProbeMonitor\(every_n_epochs=1\)",
        ),
        (
            probes,
            lambda: EarlyStopping(KEY, check_on_train_epoch_end=False),
            r"looks when the training epoch ends: give EarlyStopping\(check_on_train_epoch_end=True\)",
        ),
        (
            lambda: TopPatchesMonitor(sinks=[MemorySink()]),
            lambda: EarlyStopping("top_patches/dead_features", check_on_train_epoch_end=False),
            "asks before TopPatchesMonitor has looked: put it behind the monitors",
        ),
        (
            lambda: probes(every_n_epochs=None, every_n_steps=11),  # an epoch has 5
            lambda: EarlyStopping(KEY),
            r"asks after epoch 1, and LayerProbeMonitor does not look before epoch 3",
        ),
    ],
    ids=["too seldom", "at the end", "validation", "order", "steps"],
)
def test_who_asks_too_early_is_refused_before_training(monitor: Any, stopping: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(stopping(), monitor(), max_epochs=9, enable_checkpointing=True)


def test_the_end_alone_is_too_late_for_the_only_epoch_too() -> None:
    with pytest.raises(ValueError, match="asks while training goes on"):
        fit(probes(epochs="last", every_n_epochs=None), EarlyStopping(KEY), max_epochs=1)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("layer_probe/features_0/smv", "layer_probe/features_0/svm"),
        ("layer_probe/feature_0/svm", "layer_probe/features_0/svm"),
        ("layer_probe/features_0/softmax", "layer_probe/features_0/svm"),  # a head that nobody asked for
        ("layer_probe/features.0/svm", "layer_probe/features_0/svm"),
        ("layer_probe/svn", "layer_probe/svm"),
    ],
)
def test_a_misspelt_number_is_said_before_training(
    key: str, meant: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[bool] = []  # when training begins
    monkeypatch.setattr(LittleNet, "on_train_start", lambda self: known.append("asks for a number" in caplog.text))
    with pytest.raises(RuntimeError, match="Early stopping conditioned on metric"):
        fit(probes(), EarlyStopping(key), max_epochs=1)
    (said,) = (entry.message for entry in caplog.records if "asks for a number" in entry.message)
    assert said.startswith(f'EarlyStopping(monitor="{key}") asks for a number that LayerProbeMonitor does not have')
    assert f'did you mean "{meant}"? Its numbers end in svm' in said
    assert known == [True]


def test_numbers_that_are_there_and_keys_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    every = [*monitors(budget=1.0, sinks=[MemorySink()])]
    others = [ModelCheckpoint(monitor=key) for key in ("loss", "layer_probes/svn", "filters", "deconvnet/mine")]
    named = [f"{monitor.view}/{name}" for monitor in every for name in monitor.number_names]
    numbers = [ModelCheckpoint(monitor=key) for key in named]
    with pytest.raises(LookupError, match="enough"):
        fit(*every, *others, *numbers, Stops(), enable_checkpointing=True)
    assert len(numbers) > 20
    assert [entry.message for entry in caplog.records if "asks for a number" in entry.message] == []


class Stops(pl.Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        raise LookupError("enough")


def test_who_can_wait_is_let_wait() -> None:
    monitor = probes(every_n_epochs=2)
    patient = Sees(KEY, strict=False)
    fit(patient, monitor, max_epochs=3)
    first, last = values_of(monitor, "features.0/svm")
    assert patient.seen == pytest.approx([first, last])


@pytest.mark.slow
def test_all_that_suit_look_early_enough() -> None:
    callbacks = monitors(budget=1.0, sinks=[MemorySink()])
    sees = Sees("occlusion/largest_drop", strict=False)
    trainer = fit(*callbacks, sees, max_epochs=1)
    prefixes = {key.split("/")[0] for key in trainer.callback_metrics}
    assert {
        "layer_table",
        "filters",
        "top_patches",
        "correlation",
        "layer_probe",
        "occlusion",
        "invariance",
    } <= prefixes


def test_fast_dev_run_has_the_numbers_too() -> None:
    trainer = fit(LayerProbeMonitor(["features.0"], heads=["svm"], every_n_epochs=1), fast_dev_run=True)
    assert KEY in trainer.callback_metrics


def test_evaluation_has_keys_of_its_own() -> None:
    trainer = quiet_trainer(callbacks=[TopPatchesMonitor(sinks=[MemorySink()])])
    trainer.validate(LittleNet(), val_loader(), verbose=False)
    assert "validate/top_patches/dead_features" in trainer.callback_metrics
