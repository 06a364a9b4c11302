"""An outlet shows in every sink that works, gives one up that does not, and says where things are once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from sinks.harness import page_text

from lightning_cnnviz import ActivationMapMonitor, FilterMonitor, MemorySink, PageSink
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.outlet import Outlet, show_once

REPORT, STEP = Report("view", title="Title", items=()), Step(epoch=1, global_step=10)


class Faulty(MemorySink):
    """Fails to write, or to close, with a full disk."""

    def __init__(self, *, writes: bool = False, closes: bool = True) -> None:
        super().__init__()
        self.writes, self.closes, self.closed = writes, closes, 0

    def write(self, report: Report, step: Step) -> None:
        super().write(report, step)
        if not self.writes:
            raise OSError("No space left on device")

    def close(self) -> None:
        self.closed += 1
        if not self.closes:
            raise OSError("No space left on device")


class Broken(MemorySink):
    """Fails to write, by a fault of its own."""

    def write(self, report: Report, step: Step) -> None:
        super().write(report, step)
        raise TypeError("a picture is no number")


def given_up(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "given up" in record.message]


def test_a_sink_that_fails_is_given_up_closed_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    broken, good = Broken(), MemorySink()
    outlet = Outlet("Who", [broken, good])
    outlet.open_for([], Path("unused"))
    for _ in range(3):
        outlet.show(REPORT, STEP)
    outlet.close()
    assert (len(broken.reports), len(good.reports)) == (1, 3)
    assert given_up(caplog) == ["Who: Broken is given up, the run goes on: a picture is no number"]


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    full, good = Faulty(), MemorySink()
    outlet = Outlet("Who", [full, good])
    outlet.open_for([], Path("unused"))
    for epoch in (1, 2, 3):
        outlet.show(REPORT, Step(epoch=epoch, global_step=epoch))
    full.writes, full.reports = True, []
    outlet.show(REPORT, Step(epoch=4, global_step=4))
    outlet.close()
    assert [step.epoch for step, _ in full.reports] == [step.epoch for step, _ in good.reports] == [1, 2, 3, 4]
    said = [record.message for record in caplog.records]
    assert len([message for message in said if "Faulty cannot be written to" in message]) == 1
    assert not given_up(caplog)


def test_what_is_never_written_is_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    full = Faulty()
    outlet = Outlet("Who", [full])
    outlet.open_for([], Path("unused"))
    for epoch in range(30):
        outlet.show(REPORT, Step(epoch=epoch, global_step=epoch))
    outlet.close()
    assert full.closed == 1
    assert "Who: 30 reports are lost to Faulty" in caplog.text


def test_a_sink_that_cannot_be_closed_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Faulty(writes=True, closes=False), Faulty(writes=True)
    show_once("Who", REPORT, STEP, [bad, good], folder=Path("unused"))
    assert (bad.closed, good.closed) == (1, 1)
    assert "Faulty could not be closed: No space left on device" in caplog.text


def test_where_failures_are_to_raise_they_do() -> None:
    outlet = Outlet("Who", [Faulty(closes=False)], raises=True)
    outlet.open_for([], Path("unused"))
    with pytest.raises(OSError, match="No space left"):
        outlet.show(REPORT, STEP)
    with pytest.raises(OSError, match="No space left"):
        outlet.close()


def test_nobody_is_written_to_before_open_and_after_close() -> None:
    memory = MemorySink()
    outlet = Outlet("Who", [memory])
    outlet.show(REPORT, STEP)
    outlet.open_for([], Path("unused"))
    assert outlet.is_open
    outlet.close()
    outlet.show(REPORT, STEP)
    outlet.close()
    assert memory.reports == []
    assert not outlet.is_open


def test_a_sink_that_was_given_up_is_tried_again_in_the_next_stage() -> None:
    full = Broken()
    outlet = Outlet("Who", [full])
    for _ in range(2):
        outlet.open_for([], Path("unused"))
        outlet.show(REPORT, STEP)
        outlet.close()
    assert len(full.reports) == 2


def test_nowhere_to_show_names_every_kind_of_sink() -> None:
    choices = r"leave sinks out for PageSink, or give some of MemorySink\(\), PageSink\(\), WandbSink\(\)"
    with pytest.raises(ValueError, match=rf"Who\(sinks=\[\]\) would show nothing anywhere: {choices}"):
        Outlet("Who", []).open_for([], Path("unused"))


def fitted(folder: Path, *monitors: Any) -> None:
    trainer = quiet_trainer(callbacks=list(monitors), default_root_dir=folder)
    trainer.fit(LittleNet(), train_loader(), val_loader())


def test_monitors_of_a_trainer_share_one_page_and_it_is_announced_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch")  # explore and the demo make it quiet
    fitted(tmp_path, FilterMonitor(), ActivationMapMonitor(images=2))
    (page,) = tmp_path.rglob("index.html")
    assert all(view in page_text(page) for view in ('"view":"filters"', '"view":"activation_maps"'))
    announced = [record.message for record in caplog.records if "in a browser" in record.message]
    assert announced == [f"FilterMonitor: open {page} in a browser"]


def test_a_page_that_shows_nothing_is_not_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    page = PageSink(tmp_path)
    outlet = Outlet("Who", [page])
    outlet.open_for([], tmp_path)
    outlet.close()
    assert "in a browser" not in caplog.text


class Unencodable(MemorySink):
    """Of which `encode` fails."""

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        raise OSError("no such codec")


def test_a_sink_that_cannot_encode_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    good = MemorySink()
    show_once("Who", REPORT, STEP, [Unencodable(), good], folder=Path("unused"))
    assert len(good.reports) == 1
    assert given_up(caplog) == ["Who: Unencodable is given up, the run goes on: it could not be encoded: no such codec"]


def test_a_run_draws_beside_training_also_for_sinks_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CNNVIZ_DRAWING", "inline")
    expected = MemorySink()
    fitted(tmp_path / "inline", ActivationMapMonitor(images=2, sinks=[expected]))
    monkeypatch.setenv("CNNVIZ_DRAWING", "beside")
    own, bad = Faulty(writes=True), Unencodable()
    fitted(tmp_path / "beside", ActivationMapMonitor(images=2, sinks=[own, bad, PageSink(tmp_path / "page")]))
    assert given_up(caplog) == [
        "ActivationMapMonitor: Unencodable is given up, the run goes on: it could not be encoded: no such codec"
    ]
    assert [step for step, _ in own.reports] == [step for step, _ in expected.reports]
    assert [len(report.items) for _, report in own.reports] == [len(report.items) for _, report in expected.reports]
    assert (tmp_path / "page" / "index.html").is_file()
    assert (tmp_path / "page" / "record" / "record.json").is_file()
