"""What every kind of sink must keep, and that these tests can fail."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sinks.harness import Harness
from sinks.test_memory import HARNESS as MEMORY

import lightning_cnnviz.sinks
from lightning_cnnviz import MemorySink
from lightning_cnnviz.report import Curve, Gallery, Item, Picture, Report, Row, Scalar, Series, Step, Table, Tile
from lightning_cnnviz.sinks.base import Sink

HOSTILE = "</script><img src=x onerror='window.hacked=1'>\"'&$x$\n\u2028\ud800/.."
STEP, LATER = Step(epoch=1, global_step=10), Step(epoch=2, global_step=20)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def items(prefix: str = "") -> tuple[Item, ...]:
    """One of each kind, with something in it, all with names that begin alike."""
    tile = Tile(noise(8, 8), prefix, {f"{prefix}activation": 0.5, f"{prefix}class": prefix})
    series = Series(f"{prefix}line", x=(0.0, 1.0, 2.0), y=(0.0, math.nan, 1.0))
    return (
        Gallery(f"{prefix}gallery", (Row(prefix, (tile, tile)),), caption=prefix, numbers={prefix: 1.5}),
        Picture(f"{prefix}picture", noise(20, 40), caption=prefix),
        Curve(f"{prefix}curve", (series,), x_label=prefix, y_label=prefix, caption=prefix),
        Table(f"{prefix}table", (prefix, "tile"), ((f"{prefix}cell", tile), ("b", None)), caption=prefix),
        Scalar(f"{prefix}scalar", 0.5),
    )


def report(*made: Item, view: str = "view", name: str = "") -> Report:
    return Report(view, title="Title", items=made or items(), notes=("A note.",), name=name)


EMPTY = report(
    Gallery("no rows", ()),
    Gallery("no tiles", (Row("dead", ()),)),
    Curve("no lines", (), x_label="x", y_label="y"),
    Curve("no points", (Series("line", x=(), y=()),), x_label="x", y_label="y"),
    Table("no table rows", ("a",), ()),
    Scalar("absent", math.nan),
    Scalar("infinite", math.inf),
)


def keys_of(shown: Report) -> list[str]:
    return [shown.key(item) for item in shown.items]


# What a sink has to keep. Plain functions, so that they can be tried on sinks that do not keep it.


def serves_what_it_can_be_opened_for(harness: Harness, folder: Path) -> None:
    kind = type(harness.make())
    assert kind.serves(harness.loggers()) is True
    assert isinstance(kind.is_default, bool)
    if kind.serves([]):
        harness.make().open([], folder)
    else:
        with pytest.raises(ValueError, match=kind.__name__):
            harness.make().open([], folder)


def everything_is_shown_once(harness: Harness, folder: Path) -> None:
    sink, loggers = harness.opened(folder)
    sink.open(loggers, folder)
    sink.write(report(), STEP)
    assert Counter(harness.keys(sink, loggers)) == Counter(keys_of(report()))


def what_is_empty_or_not_measured_is_no_failure(harness: Harness, folder: Path) -> None:
    sink, loggers = harness.opened(folder)
    sink.write(EMPTY, STEP)
    sink.write(report(), LATER)
    assert set(harness.keys(sink, loggers)) >= set(keys_of(report()))
    sink.close()


def any_text_is_only_text(harness: Harness, folder: Path) -> None:
    sink, loggers = harness.opened(folder)
    evil = Report(HOSTILE, title=HOSTILE, items=items(HOSTILE), notes=(HOSTILE,), name=HOSTILE)
    sink.write(evil, Step(epoch=1, global_step=10, stage=HOSTILE))
    sink.write(report(), LATER)
    assert len(harness.keys(sink, loggers)) == len(evil.items) + len(report().items)


def two_monitors_of_one_view_stand_beside_each_other(harness: Harness, folder: Path) -> None:
    sink, loggers = harness.opened(folder)
    reports = [report(), report(name="teacher"), report(name="student"), report(view="other")]
    for each in reports:
        sink.write(each, STEP)
    assert Counter(harness.keys(sink, loggers)) == Counter(key for each in reports for key in keys_of(each))


def a_failed_write_loses_no_other(harness: Harness, folder: Path) -> None:
    sink, loggers = harness.opened(folder)
    before, after = report(view="before"), report(view="after")
    sink.write(before, STEP)
    with pytest.MonkeyPatch.context() as patch:
        harness.breaks(patch, sink, loggers)
        with pytest.raises(OSError, match="No space left"):
            sink.write(report(view="lost"), LATER)
    sink.write(after, LATER)
    assert set(harness.keys(sink, loggers)) >= {*keys_of(before), *keys_of(after)}
    sink.close()


def nothing_is_lost_in_silence_before_it_is_open(harness: Harness, folder: Path) -> None:
    sink = harness.make()
    try:
        sink.write(report(), STEP)
    except RuntimeError:  # it refuses, which its caller sees
        return
    assert set(harness.keys(sink, [])) >= set(keys_of(report()))


def closing_is_no_end(harness: Harness, folder: Path) -> None:
    harness.make().close()
    sink, loggers = harness.opened(folder)
    sink.write(report(view="before"), STEP)
    sink.close()
    sink.close()
    sink.write(report(view="after"), LATER)
    sink.close()
    assert set(harness.keys(sink, loggers)) >= {*keys_of(report(view="before")), *keys_of(report(view="after"))}


def its_address_is_there(harness: Harness, folder: Path) -> None:
    assert isinstance(harness.make().address, str)
    sink, _ = harness.opened(folder)
    sink.write(report(), STEP)
    address = sink.address
    assert isinstance(address, str)
    words = address.split()
    assert not words or any(word.startswith("http") or Path(word).exists() for word in words)


def chance_is_left_alone(harness: Harness, folder: Path) -> None:
    def states() -> list[Any]:
        numpy = np.random.get_state(legacy=False)["state"]["key"].tolist()
        return [torch.get_rng_state().tolist(), numpy, random.getstate()]

    before = states()
    sink, _ = harness.opened(folder)
    sink.write(report(), STEP)
    sink.close()
    assert states() == before


CHECKS: list[Callable[[Harness, Path], None]] = [
    serves_what_it_can_be_opened_for,
    everything_is_shown_once,
    what_is_empty_or_not_measured_is_no_failure,
    any_text_is_only_text,
    two_monitors_of_one_view_stand_beside_each_other,
    a_failed_write_loses_no_other,
    nothing_is_lost_in_silence_before_it_is_open,
    closing_is_no_end,
    its_address_is_there,
    chance_is_left_alone,
]


def kinds(base: type[Sink] = Sink) -> Iterator[type[Sink]]:
    """Every kind of sink in the package."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("lightning_cnnviz.") and not inspect.isabstract(kind):
            yield kind
        yield from kinds(kind)


for module in pkgutil.walk_packages(lightning_cnnviz.sinks.__path__, "lightning_cnnviz.sinks."):
    importlib.import_module(module.name)
KINDS = list(kinds())


def test_there_are_sinks_and_each_is_exported() -> None:
    assert MemorySink in KINDS
    assert {kind.__name__ for kind in KINDS} < set(lightning_cnnviz.__all__)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_sink_keeps_the_contract(
    kind: type[Sink], check: Callable[[Harness, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stem = kind.__module__.rpartition(".")[2]
    check(importlib.import_module(f"sinks.test_{stem}").HARNESS, tmp_path / "logs")


class ServesNobody(MemorySink):
    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        return bool(loggers)


class WritesTwice(MemorySink):
    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        self.times += 1

    def write(self, report: Report, step: Step) -> None:
        for _ in range(self.times):
            super().write(report, step)


class NeedsNumbers(MemorySink):
    def write(self, report: Report, step: Step) -> None:
        for item in report.items:
            assert not isinstance(item, Scalar) or item.measured
        super().write(report, step)


class NeedsAscii(MemorySink):
    def write(self, report: Report, step: Step) -> None:
        assert report.title.isascii()
        super().write(report, step)


class OneAView(MemorySink):
    def write(self, report: Report, step: Step) -> None:
        self.reports = [pair for pair in self.reports if pair[1].view != report.view]
        super().write(report, step)


class StopsAtAFailure(MemorySink):
    failed = False

    def write(self, report: Report, step: Step) -> None:
        failed, self.failed = self.failed, True
        if not failed:
            super().write(report, step)
            self.failed = False


class DropsUnlessOpen(MemorySink):
    is_open = False

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        self.is_open = True

    def write(self, report: Report, step: Step) -> None:
        if self.is_open:
            super().write(report, step)


class ForgetsAtTheEnd(MemorySink):
    def close(self) -> None:
        self.reports.clear()


class Elsewhere(MemorySink):
    @property
    def address(self) -> str:
        return "open nowhere/index.html in a browser"


class DrawsLots(MemorySink):
    def write(self, report: Report, step: Step) -> None:
        super().write(report, step)
        torch.rand(1)


BROKEN = [
    ServesNobody,
    WritesTwice,
    NeedsNumbers,
    NeedsAscii,
    OneAView,
    StopsAtAFailure,
    DropsUnlessOpen,
    ForgetsAtTheEnd,
    Elsewhere,
    DrawsLots,
]


@pytest.mark.parametrize(
    ("check", "broken"), list(zip(CHECKS, BROKEN, strict=True)), ids=lambda value: getattr(value, "__name__", None)
)
def test_a_sink_that_breaks_the_contract_is_caught(
    check: Callable[[Harness, Path], None], broken: type[MemorySink], tmp_path: Path
) -> None:
    harness = dataclasses.replace(MEMORY, make=broken)
    # An assertion's, or that of pytest.raises where nothing was raised.
    with pytest.raises((AssertionError, pytest.fail.Exception), match=r".+"):
        check(harness, tmp_path)
