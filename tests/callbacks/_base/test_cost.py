"""What looks cost is measured, and charged to whom it belongs."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import nn

from lightning_cnnviz import CorrelationMonitor, FilterMonitor, LayerTableMonitor, MemorySink, TopPatchesMonitor
from lightning_cnnviz.callbacks._base.cost import Costs, wait_for_device
from lightning_cnnviz.core.network.hooks import Site, hooked, hooks_within


class Clock:
    """Moves when it is told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    return clock


class Owner:
    def __init__(self, title: str) -> None:
        self.title, self.failed = title, False


def test_time_is_shared_and_nobody_pays_for_another(clock: Clock) -> None:
    costs, a, b = Costs(), Owner("a"), Owner("b")
    clock.pass_by(10)
    with costs.charge([a, b]):
        clock.pass_by(2)
        with costs.charge([b]):
            clock.pass_by(4)
        clock.pass_by(2)
    clock.pass_by(10)
    assert (costs.seconds_of(a), costs.seconds_of(b)) == (2, 6)
    assert costs.training_seconds == 20


def test_an_error_closes_what_is_charged(clock: Clock) -> None:
    costs, a = Costs(), Owner("a")

    def fails() -> None:
        with costs.charge([a]):
            clock.pass_by(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    clock.pass_by(5)
    assert (costs.seconds_of(a), costs.training_seconds) == (1, 5)


def test_a_look_costs_all_that_was_charged_since_the_last(clock: Clock) -> None:
    costs, a = Costs(), Owner("a")
    for seconds in (1, 3):
        with costs.charge([a]):
            clock.pass_by(seconds)
        with costs.look(a):
            clock.pass_by(1)
            with costs.charge([a], "showing"):
                clock.pass_by(2)
    assert costs.looks_of(a) == [4, 6]
    assert (costs.seconds_of(a, "computing"), costs.seconds_of(a, "showing")) == (6, 4)
    clock.pass_by(10)
    costs.stop()
    clock.pass_by(100)
    assert costs.training_seconds == 10
    costs.put_off[a] = 3
    summary = costs.summary([a, Owner("never looked")]).splitlines()
    assert summary[0] == "What looks cost beside 10.0 s of training:"
    assert summary[1].split("  ")[-1] == "put off"
    assert summary[2].split() == ["a", "2", "6.00", "s", "4.00", "s", "100.0", "%", "3"]
    assert summary[3].split() == ["all", "looks", "2", "6.00", "s", "4.00", "s", "100.0", "%", "3"]
    assert len(summary) == 4
    assert costs.summary([Owner("never looked")]) == ""


def test_what_hooks_cost_in_another_s_pass(clock: Clock) -> None:
    costs, a, network = Costs(), Owner("a"), nn.Sequential(nn.ReLU())
    with (
        hooks_within(lambda: costs.charge([a])),
        hooked({"relu": Site(network[0])}, lambda name, value: clock.pass_by(3)),
    ):
        pass
    assert costs.seconds_of(a) == 0
    with hooks_within(lambda: costs.charge([a])):
        hooks = hooked({"relu": Site(network[0])}, lambda name, value: clock.pass_by(3))
        hooks.__enter__()
    network(torch.ones(1))
    hooks.__exit__(None, None, None)
    network(torch.ones(1))
    assert (costs.seconds_of(a), costs.training_seconds) == (3, 0)


def test_the_clock_waits_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    for device in ("cpu", "cuda:1"):
        wait_for_device(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device))))
    assert waited == ["cuda:1"]


class SlowSum(CorrelationMonitor):
    """Takes 0.05 s to compute, and 0.02 s to show."""

    def part(self, look: Any, running: Any) -> Any:
        time.sleep(0.05)
        return super().part(look, running)

    def render(self, result: Any) -> Any:
        time.sleep(0.02)
        return super().render(result)


class SlowFilters(FilterMonitor):
    """Takes 0.1 s to compute."""

    def experiment(self, network: Any, progress: Any) -> Any:
        time.sleep(0.1)
        return super().experiment(network, progress)


@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"every_n_steps": 5}, {"epochs": "last"}], ids=str)
def test_one_summary_at_the_end_of_fit(when: dict[str, Any], capsys: Any, monkeypatch: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "lightning_cnnviz.callbacks._base.monitor.printed_log.info", lambda text, *values: said.append(text % values)
    )
    options: dict[str, Any] = {"sinks": [MemorySink()], "on_error": "raise", **when}
    callbacks = [LayerTableMonitor(sinks=[MemorySink()]), SlowSum(**options), SlowFilters(**options)]
    callbacks.append(TopPatchesMonitor(epochs=[99], sinks=[MemorySink()]))
    trainer = quiet_trainer(callbacks=callbacks)
    pl.seed_everything(3, verbose=False)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    summaries = [text for text in said if text.startswith("What looks cost")]
    assert len(summaries) == 1
    rows = {line.split()[0]: line.split() for line in summaries[0].splitlines()[2:]}
    assert list(rows) == ["SlowSum", "SlowFilters", "all"]
    looks = 1 if when == {"epochs": "last"} else 2
    assert int(rows["SlowSum"][1]) == int(rows["SlowFilters"][1]) == looks
    assert 0.05 * looks <= float(rows["SlowSum"][2]) < 0.05 * looks + 0.5
    assert 0.02 * looks - 0.01 <= float(rows["SlowSum"][4])
    assert 0.1 * looks <= float(rows["SlowFilters"][2]) < 0.1 * looks + 0.5
    trainer.validate(trainer.lightning_module, val_loader(), verbose=False)
    assert len([text for text in said if text.startswith("What looks cost")]) == 1
