"""Looks stay under their share of the training time."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import pytest
from callbacks._base.test_cost import Clock, Owner, clock
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import CorrelationMonitor, FilterMonitor, MemorySink
from lightning_cnnviz.callbacks._base.budget import Budget
from lightning_cnnviz.callbacks._base.cost import Costs
from lightning_cnnviz.report import Report

__all__ = ["clock"]


def looked(budget: Budget, costs: Costs, clock: Clock, owner: Any, step: int, seconds: float) -> bool:
    if not budget.allows(owner, costs, step):
        return False
    with costs.look(owner):
        clock.pass_by(seconds)
    return True


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_wrong_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"budget=.*above 0 and up to 1"):
        Budget(share)


def test_a_look_waits_until_there_is_room_for_it(clock: Clock) -> None:
    budget, costs, owner = Budget(0.1), Costs(), Owner("a")
    budget.monitors.append(owner)
    taken = []
    for step in range(1, 101):
        clock.pass_by(1)
        if looked(budget, costs, clock, owner, step, 2):
            taken.append(step)
            # The first one's cost is not known; no later one exceeds the share.
            assert step == 1 or costs.seconds_of(owner) <= 0.1 * costs.training_seconds
    assert taken == [1, 40, 60, 80, 100]
    assert costs.put_off[owner] == 95


def test_they_share_it_and_unknown_looks_are_taken_one_at_a_time(clock: Clock) -> None:
    budget, costs, owners = Budget(0.1), Costs(), [Owner("a"), Owner("b"), Owner("c")]
    budget.monitors.extend(owners)
    clock.pass_by(10)
    # All are asked before any has looked, as at the start of a validation.
    assert [budget.allows(owner, costs, 1) for owner in owners] == [True, False, False]
    assert not budget.allows(owners[1], costs, 1)
    assert [costs.put_off[owner] for owner in owners] == [0, 1, 1], "asked again for the same look"
    assert budget.allows(owners[0], costs, 1), "asked again for the same look"
    with costs.look(owners[0]):
        clock.pass_by(0.4)
    assert looked(budget, costs, clock, owners[1], 2, 0.4)
    assert looked(budget, costs, clock, owners[2], 2, 0.4)
    assert sum(map(costs.seconds_of, owners)) == pytest.approx(1.2)
    clock.pass_by(10.1)
    # There is room for two.
    assert [budget.allows(owner, costs, 3) for owner in owners] == [True, True, False]


def test_cheap_looks_leave_a_dear_one_its_turn(clock: Clock) -> None:
    budget, costs, cheap, dear = Budget(0.1), Costs(), Owner("cheap"), Owner("dear")
    budget.monitors.extend([cheap, dear])
    taken: dict[Any, list[int]] = {cheap: [], dear: []}
    for step in range(1, 101):
        clock.pass_by(1)
        for owner, seconds in ((cheap, 0.1), (dear, 1)):
            if looked(budget, costs, clock, owner, step, seconds):
                taken[owner].append(step)
    assert sum(map(costs.seconds_of, (cheap, dear))) <= 0.1 * costs.training_seconds
    assert len(taken[dear]) >= 8
    assert len(taken[cheap]) >= 8


def test_one_that_fails_does_not_keep_what_it_was_promised(clock: Clock) -> None:
    budget, costs, owners = Budget(0.1), Costs(), [Owner("a"), Owner("b")]
    budget.monitors.extend(owners)
    clock.pass_by(10)
    assert budget.allows(owners[0], costs, 1)
    owners[0].failed = True
    assert budget.allows(owners[1], costs, 1)


class Slow(FilterMonitor):
    """Takes a tenth of a second to look."""

    def experiment(self, network: Any, progress: Any) -> Any:
        time.sleep(0.1)
        return super().experiment(network, progress)


class SlowPasses(CorrelationMonitor):
    """Takes a fifth of a second to look, and draws nothing."""

    def part(self, look: Any, running: Any) -> Any:
        time.sleep(0.2)
        return super().part(look, running)

    def render(self, result: Any) -> Report:
        return Report("correlation", title="", items=())


def test_the_share_is_kept_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "lightning_cnnviz.callbacks._base.budget.printed_log.info", lambda text, *values: said.append(text % values)
    )
    shares: list[float] = []

    class Steps(LittleNet):
        """Training alone takes four seconds."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(0.02)
            return super().training_step(batch, batch_idx)

    class Listening(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            costs = callbacks[0]._feed.costs
            shares.append(sum(map(costs.seconds_of, callbacks)) / costs.training_seconds)

    options: dict[str, Any] = {"every_n_epochs": 1, "sinks": [sink := MemorySink()], "on_error": "raise"}
    callbacks: list[Any] = [SlowPasses(**options), Slow(**options)]
    budget = Budget(0.3)
    pl.seed_everything(3, verbose=False)
    quiet_trainer(callbacks=callbacks).fit(Steps(), train_loader(), val_loader())  # the first looks load libraries
    for monitor in callbacks:
        monitor.share(budget)
    sink.reports.clear()
    quiet_trainer(callbacks=[*callbacks, Listening()], max_epochs=40).fit(Steps(), train_loader(), val_loader())
    by_view = {
        view: [step.epoch for step, report in sink.reports if report.view == view]
        for view in ("filters", "correlation")
    }
    assert all(epochs[-1] == 40 for epochs in by_view.values())
    assert all(2 < len(epochs) < 15 for epochs in by_view.values())
    # Once the first looks are made up for, and before the last ones, which are always taken; on a busy machine a look
    # may take longer than the one before.
    first = max(epochs[1] for epochs in by_view.values())
    assert max(shares[first - 1 : -1]) <= 0.3 + 0.05
    assert len([text for text in said if "puts a look off" in text]) == 1
