"""An outlet shows in every sink that works, gives one up that does not, and says where things are once."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from sinks.harness import page_text

from lightning_cnnviz import ActivationMapMonitor, FilterMonitor, LayerProbeMonitor, MemorySink, PageSink
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks._page_folder import FOLDERS
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


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.fault(
    "disk",
    "a sink fails with every report, by a fault of its own",
    "one line when it begins and one at the end, whoever shows there; other sinks get everything, and the run goes on",
)
def test_a_sink_that_fails_costs_nobody_else_anything(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    broken, good = Broken(), MemorySink()
    fitted(tmp_path, *(FilterMonitor(name=str(each), sinks=[broken, good]) for each in range(3)))
    assert len(good.reports) == 3 * 2
    first, last = said(caplog)
    assert first.startswith('FilterMonitor "0": Broken cannot be written to, the run goes on: a picture is no number.')
    assert last == 'FilterMonitor "2": 6 reports are lost to Broken: a picture is no number'
    assert not any(record.exc_info for record in caplog.records if record.levelno >= logging.ERROR)


@pytest.mark.fault(
    "services",
    "a sink fails once, with an error of its own, in the middle of a run",
    "the report is tried again with the next one: nothing is lost, and one line says so",
)
def test_one_error_that_passes_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Hiccups(MemorySink):
        calls = 0

        def write(self, report: Report, step: Step) -> None:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("the service answered nonsense")
            super().write(report, step)

    sink = Hiccups()
    outlet = Outlet("Who", [sink])
    outlet.open_for([], Path("unused"))
    for epoch in (1, 2, 3):
        outlet.show(REPORT, Step(epoch=epoch, global_step=epoch))
    outlet.close()
    assert [step.epoch for step, _ in sink.reports] == [1, 2, 3]
    assert len(said(caplog)) == 1


@pytest.mark.fault(
    "disk",
    "the disk is full for some epochs",
    "one line; what was not taken is written, in order, when there is room",
)
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
    assert len([message for message in said(caplog) if "Faulty cannot be written to" in message]) == 1
    assert not [message for message in said(caplog) if "lost" in message]


def test_what_is_never_written_is_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    full = Faulty()
    outlet = Outlet("Who", [full])
    outlet.open_for([], Path("unused"))
    for epoch in range(30):
        outlet.show(REPORT, Step(epoch=epoch, global_step=epoch))
    outlet.close()
    assert full.closed == 1
    assert "Who: 30 reports are lost to Faulty: No space left on device" in caplog.text


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


def test_nowhere_to_show_names_every_kind_of_sink_that_could_serve() -> None:
    choices = r"leave sinks out for PageSink, or give some of MemorySink\(\), PageSink\(\)"
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
    assert all(view in page_text(page) for view in ('"source":"filters"', '"source":"activation_maps"'))
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


def test_what_cannot_be_encoded_is_lost_to_that_sink(caplog: pytest.LogCaptureFixture) -> None:
    good = MemorySink()
    show_once("Who", REPORT, STEP, [Unencodable(), good], folder=Path("unused"))
    assert len(good.reports) == 1
    assert "Unencodable cannot be written to, the run goes on: a report could not be encoded" in said(caplog)[0]
    assert said(caplog)[1] == "Who: 1 report is lost to Unencodable: a report could not be encoded: no such codec"


def test_a_run_draws_beside_training_also_for_sinks_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CNNVIZ_DRAWING", "inline")
    expected = MemorySink()
    fitted(tmp_path / "inline", ActivationMapMonitor(images=2, sinks=[expected]))
    monkeypatch.setenv("CNNVIZ_DRAWING", "beside")
    own, bad = Faulty(writes=True), Unencodable()
    fitted(tmp_path / "beside", ActivationMapMonitor(images=2, sinks=[own, bad, PageSink(tmp_path / "page")]))
    assert len([message for message in said(caplog) if "Unencodable" in message]) == 2
    assert [step for step, _ in own.reports] == [step for step, _ in expected.reports]
    assert [len(report.items) for _, report in own.reports] == [len(report.items) for _, report in expected.reports]
    assert (tmp_path / "page" / "index.html").is_file()
    assert (tmp_path / "page" / "record" / "record.json").is_file()


@pytest.mark.fault(
    "disk",
    "the page's folder cannot be written to, and looks are due when training has ended",
    "set-up refuses it, before the first step",
)
def test_a_folder_that_cannot_be_written_to_is_refused_at_set_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monitor = FilterMonitor(epochs="last", sinks=[PageSink(tmp_path / "file" / "page")])
    model = LittleNet()
    with pytest.raises(ValueError, match=r"PageSink cannot write to .*page: .*Give another folder"):
        quiet_trainer(callbacks=[monitor]).fit(model, train_loader(), val_loader())
    assert model.trainer.global_step == 0


@pytest.mark.fault(
    "disk",
    "the page's folder holds an `index.html`, a `looks.js`, or a file in the place of a folder, of somebody else: "
    "readable or not, a link, a folder, a pipe",
    "set-up refuses the folder, and the file stays as it was",
)
@pytest.mark.parametrize("name", ["index.html", "looks.js", "looks", "pictures"])
@pytest.mark.parametrize("what", ["page", "folder", "link", "pipe"])
def test_what_stands_in_the_pages_place_stays(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    if what == "folder":
        if path.suffix == "":
            pytest.skip("one of ours")
        path.mkdir()
    elif what == "link":
        (tmp_path / "mine.html").write_text("<h1>mine</h1>")
        path.symlink_to(tmp_path / "mine.html")
    elif what == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with names")
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\xfe<h1>mine</h1>")
    before = path.stat()
    with pytest.raises(ValueError, match=r"not written by lightning_cnnviz|cannot write to"):
        PageSink(tmp_path).open([], tmp_path)
    with pytest.raises((ValueError, OSError), match=r"not written by lightning_cnnviz|Is a directory"):
        PageSink(tmp_path).write(REPORT, STEP)
    assert path.stat() == before
    assert path.is_symlink() == (what == "link")


@pytest.mark.fault(
    "disk",
    "the page's folder holds old scripts of somebody else, beside ours that nothing uses",
    "theirs stay; what a process of ours left there goes",
)
def test_old_scripts_of_others_stay(tmp_path: Path) -> None:
    theirs = [tmp_path / folder / name for folder in FOLDERS for name in ("mine.js", "1a-2b-3.js", "mine.gone")]
    ours = [tmp_path / "pictures" / "1a-2b-4.js", tmp_path / "parts" / "1a-2b-4.gone"]
    for path in (*theirs, *ours):
        path.parent.mkdir(exist_ok=True)
        path.write_text('cnnviz.part("1a-2b-4",\n{});\n' if path in ours else "let mine;")
        os.utime(path, (0, 0))
    sink = PageSink(tmp_path)
    sink.open([], tmp_path)
    sink.write(REPORT, STEP)
    assert [path for path in theirs if not path.exists()] == []
    assert [path for path in ours if path.exists()] == []


class Splits(MemorySink):
    """Keeps what it is told of splits."""

    def __init__(self) -> None:
        super().__init__()
        self.splits: list[tuple[str, Any]] = []

    def keep_split(self, name: str, split: Any) -> None:
        self.splits.append((name, split))


def test_sinks_are_told_each_split_once(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return val_loader()

        def split_manifest(self) -> dict[str, Any]:
            return {"train": [0, 1]}

    sink = Splits()
    monitors = [FilterMonitor(sinks=[sink]), LayerProbeMonitor(["features.0"], sinks=[sink], heads=["knn"])]
    trainer = quiet_trainer(callbacks=monitors, default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(LittleNet(), datamodule=Data())
    assert [name for name, _ in sink.splits][:1] == ["data"]
    assert sink.splits[0][1] == {"train": [0, 1]}
    assert len(sink.splits) == len(dict(sink.splits))
