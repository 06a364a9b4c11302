"""Monitors with names of their own, and what all have in common."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from sinks.harness import page_text

from lightning_cnnviz import DeconvnetMonitor, FilterMonitor, MemorySink, PageSink, TopPatchesMonitor


def fit(*monitors: Any, **options: Any) -> None:
    pl.seed_everything(3, verbose=False)
    quiet_trainer(callbacks=list(monitors), **options).fit(LittleNet(), train_loader(), val_loader())


def test_two_of_one_class_stand_beside_each_other(tmp_path: Any) -> None:
    sink, page = MemorySink(), PageSink(tmp_path)
    options: dict[str, Any] = {"sinks": [sink, page], "on_error": "raise", "epochs": [2]}
    fit(DeconvnetMonitor(**options), DeconvnetMonitor(name="guided", method="guided", **options))
    reports = [report for _, report in sink.reports]
    assert sorted(report.name for report in reports) == ["", "guided"]
    keys = [report.key(item) for report in reports for item in report.items]
    assert len(set(keys)) == len(keys)
    assert {"deconvnet/features.0", "deconvnet/guided/features.0"} <= set(keys)
    text = page_text(page.path)
    assert "guided" in text


def test_two_of_one_class_and_name_are_refused() -> None:
    for options in ({}, {"name": "one"}):
        pair = [FilterMonitor(sinks=[MemorySink()], **options) for _ in range(2)]
        # A checkpoint would hold both under one key: Lightning refuses them before we can.
        with pytest.raises(RuntimeError, match="more than one stateful callback of type `FilterMonitor`"):
            fit(*pair)


@pytest.mark.parametrize("name", ["a/b", " ", "end-", "\n", "<b>"])
def test_names_that_no_key_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name="):
        FilterMonitor(name=name)
    assert FilterMonitor(name="ÄÖ 1.5-x").name == "ÄÖ 1.5-x"


@pytest.mark.fault(
    "memory",
    "a look fails with Python's MemoryError, which says nothing",
    "the line about the monitor that is switched off says that memory has run out",
)
def test_an_error_without_words_is_put_into_words(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError

    monitor = TopPatchesMonitor(sinks=[MemorySink()])
    monitor.render = fails  # type: ignore[method-assign]
    fit(monitor)
    assert monitor.failure == "MemoryError: memory has run out"
    assert "switched off during the run: MemoryError: memory has run out" in caplog.text


def test_messages_name_the_monitor(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no ink")

    monitor = TopPatchesMonitor(name="second", sinks=[MemorySink()])
    monitor.render = fails  # type: ignore[method-assign]
    fit(monitor)
    assert 'TopPatchesMonitor "second" has failed and is switched off' in caplog.text
