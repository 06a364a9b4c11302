"""The network that training ends with is looked at, whatever ends it."""

from __future__ import annotations

import signal
from itertools import product
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_cnnviz import (
    CorrelationMonitor,
    FilterMonitor,
    LayerProbeMonitor,
    MemorySink,
    Monitor,
    OnlineProbeMonitor,
)
from lightning_cnnviz.report import Step

KINDS = [CorrelationMonitor, FilterMonitor, LayerProbeMonitor, OnlineProbeMonitor]
WHEN: list[dict[str, Any]] = [{}, {"every_n_epochs": 50}, {"every_n_steps": 50}, {"epochs": "last"}]


class At(pl.Callback):
    """Does something once so many steps are made."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.what(trainer)


def interrupt(trainer: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def out_of_time(trainer: Any) -> None:
    timer = next(each for each in trainer.callbacks if isinstance(each, Timer))
    timer._offset += 1000  # as if so many seconds had passed


# Five steps an epoch. What ends training, and the epochs and steps that are then complete.
ENDINGS: dict[str, tuple[dict[str, Any], list[Any], tuple[int, int]]] = {
    "max_epochs": ({"max_epochs": 3}, [], (3, 15)),
    "max_epochs, validated seldom": ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [], (3, 15)),
    "max_steps": ({"max_steps": 12, "max_epochs": 99}, [], (3, 12)),
    "max_steps before any validation": ({"max_steps": 3, "num_sanity_val_steps": 0, "max_epochs": 99}, [], (1, 3)),
    "early stopping": ({"max_epochs": 9}, [EarlyStopping("loss", stopping_threshold=99)], (1, 5)),
    "max_time": ({"max_time": {"minutes": 10}, "max_epochs": 99}, [At(7, out_of_time)], (2, 7)),
    "Ctrl-C": ({"max_epochs": 9}, [At(8, interrupt)], (1, 8)),
    "Ctrl-C after the last step of an epoch": ({"max_epochs": 9}, [At(10, interrupt)], (2, 10)),
}


def looks(monitor: Monitor, *others: Any, **options: Any) -> list[Step]:
    """When a monitor looked in a fit that may end by Ctrl-C."""
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=[monitor, *others], **options)
    try:
        trainer.fit(LittleNet(), train_loader(), val_loader())
    except SystemExit:
        assert any(isinstance(each, At) and each.what is interrupt for each in others)
    assert isinstance(monitor.sinks, list)
    sink = monitor.sinks[0]
    assert isinstance(sink, MemorySink)
    return list(dict.fromkeys(step for step, _ in sink.reports))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("kind", "when"),
    [*product(KINDS[:2], WHEN), *product(KINDS[2:], WHEN[:1])],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_the_last_look_is_always_taken_once(kind: type[Monitor], when: dict[str, Any], ending: str) -> None:
    options, others, (epoch, step) = ENDINGS[ending]
    found = looks(kind(sinks=[MemorySink()], on_error="raise", **when), *others, **options)
    assert found[-1] == Step(epoch=epoch, global_step=step)
    assert len({each.global_step for each in found}) == len(found)
    if when:
        assert len(found) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_chosen_epochs_are_exact(ending: str) -> None:
    options, others, _ = ENDINGS[ending]
    monitor = FilterMonitor(epochs=[1], sinks=[MemorySink()], on_error="raise")
    found = looks(monitor, *others, **options)
    assert [step.epoch for step in found] == [1]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_no_look_after_another_exception(error: type[BaseException]) -> None:
    def fails(trainer: Any) -> None:
        raise error("the user's own")

    sink = MemorySink()
    trainer = quiet_trainer(callbacks=[FilterMonitor(every_n_epochs=9, sinks=[sink]), At(3, fails)])
    with pytest.raises(error, match="the user's own"):
        trainer.fit(LittleNet(), train_loader(), val_loader())
    assert sink.reports == []


def test_nothing_was_trained_nothing_is_looked_at() -> None:
    class Early(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            raise KeyboardInterrupt

    sink = MemorySink()
    with pytest.raises(SystemExit):
        quiet_trainer(callbacks=[FilterMonitor(sinks=[sink]), Early()]).fit(LittleNet(), train_loader(), val_loader())
    assert sink.reports == []


@pytest.mark.parametrize("on_error", ["report", "raise"])
def test_a_failure_does_not_hide_the_interrupt(on_error: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no ink")

    monitor = FilterMonitor(every_n_epochs=9, sinks=[MemorySink()], on_error=on_error)
    monitor.render = fails  # type: ignore[method-assign]
    assert looks(monitor, At(3, interrupt)) == []  # SystemExit, as Lightning ends after Ctrl-C
    assert "no ink" in caplog.text


def test_a_second_ctrl_c_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    first = FilterMonitor(every_n_epochs=9, sinks=[MemorySink()])
    second = CorrelationMonitor(every_n_epochs=9, sinks=[MemorySink()], on_error="raise")
    render = first.render

    def renders(result: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return render(result)

    first.render = renders  # type: ignore[method-assign, assignment]
    found = looks(second, first, At(3, interrupt), max_epochs=9)
    assert len(found) == 1  # the second's passes came first
    assert first.sinks[0].reports == []  # type: ignore[index, attr-defined]
    assert "Interrupted again" in caplog.text
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_the_last_look_reads_as_many_batches_as_validation() -> None:
    seen: list[Any] = []

    class Counting(CorrelationMonitor):
        def part(self, look: Any, running: Any) -> Any:
            result = super().part(look, running)
            seen.append(running)
            return result

    monitor = Counting(sinks=[MemorySink()], on_error="raise")
    looks(monitor, max_steps=7, max_epochs=99, limit_val_batches=2)
    images = {int(next(iter(running._moments.values())).count) for running in seen}
    assert len(seen) == 2
    assert len(images) == 1


def test_an_epoch_counts_once_it_has_made_its_steps() -> None:
    steps = looks(
        CorrelationMonitor(sinks=[MemorySink()], on_error="raise"), val_check_interval=2, max_epochs=2, max_steps=9
    )
    assert [(step.epoch, step.global_step) for step in steps] == [(0, 2), (0, 4), (1, 7), (2, 9)]


@pytest.mark.parametrize("kind", KINDS)
def test_looks_by_steps(kind: type[Monitor]) -> None:
    monitor = kind(every_n_steps=2, sinks=[MemorySink()], on_error="raise")
    steps = looks(monitor, max_epochs=2, accumulate_grad_batches=2, val_check_interval=2)
    # Three steps an epoch: Lightning takes one at its end, whatever has been accumulated.
    assert [(step.epoch, step.global_step) for step in steps] == [(0, 2), (1, 4), (2, 6)]


class TwoOptimizers(LittleNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.features.parameters(), lr=0.1), torch.optim.SGD(self.head.parameters(), lr=0.1)]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()


def test_steps_of_several_optimizers_count_as_lightning_counts_them() -> None:
    sink = MemorySink()
    monitor = FilterMonitor(every_n_steps=3, sinks=[sink], on_error="raise")
    quiet_trainer(callbacks=[monitor], max_epochs=1).fit(TwoOptimizers(), train_loader(), val_loader())
    assert [step.global_step for step, _ in sink.reports] == [4, 6, 10]
