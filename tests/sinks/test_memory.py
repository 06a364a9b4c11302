"""A list of reports; what it has to keep is in the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sinks.harness import Harness, full_disk

from lightning_cnnviz import MemorySink
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink


def keys(sink: Sink, loggers: Sequence[Any]) -> list[str]:
    assert isinstance(sink, MemorySink)
    return [report.key(item) for _, report in sink.reports for item in report.items]


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: Sequence[Any]) -> None:
    class Full(list[Any]):
        append = full_disk

    assert isinstance(sink, MemorySink)
    patch.setattr(sink, "reports", Full(sink.reports))


HARNESS = Harness(make=MemorySink, loggers=list, keys=keys, breaks=breaks)


def test_reports_stand_in_the_order_of_writing() -> None:
    sink = MemorySink()
    reports = [Report("view", title=title, items=()) for title in ("first", "second")]
    for epoch, report in enumerate(reports, 1):
        sink.write(report, Step(epoch=epoch, global_step=10 * epoch))
    assert [(step.epoch, report.title) for step, report in sink.reports] == [(1, "first"), (2, "second")]
