"""A W&B service that hangs or is gone holds no training, and what it missed is sent later from the record."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import CorrelationMonitor, FilterMonitor, MemorySink, PageSink, TopPatchesMonitor
from lightning_cnnviz.cli import main
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.sinks import _handover
from lightning_cnnviz.sinks.wandb import WandbSink
from lightning_cnnviz.sync import sync_record

REPORT = Report("view", title="Title", items=())


class Config(dict[str, Any]):
    """As W&B has it."""

    def update(self, entry: Any, *, allow_val_change: bool = False) -> None:  # type: ignore[override]
        super().update(entry)


class Run:
    """A W&B run, of which the service may hang, or be gone."""

    id, project, entity = "r1", "flowers", ""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.config = Config()
        self.answers, self.is_gone = threading.Event(), False
        self.answers.set()

    def log(self, row: dict[str, Any]) -> None:
        self.answers.wait(60)
        if self.is_gone:
            raise ConnectionResetError("the service is gone")
        self.rows.append(row)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None: ...

    def finish(self) -> None: ...


class WandbLogger:
    """Known by its name."""

    def __init__(self, run: Run) -> None:
        self.experiment = run


def fitted(folder: Path, run: Run, fault: str) -> LittleNet:
    class Fault(LittleNet):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1 and fault == "hangs":
                run.answers.clear()
            elif self.current_epoch == 1:
                run.is_gone = True

    sink = WandbSink()
    sink.open([WandbLogger(run)], folder)
    sink.open = lambda loggers, folder: None  # type: ignore[method-assign]
    model = Fault()
    trainer = quiet_trainer(callbacks=[FilterMonitor(sinks=[sink, PageSink(folder)])], max_epochs=4)
    trainer.fit(model, train_loader(), val_loader())
    return model


@pytest.mark.fault(
    "services",
    "W&B hangs when it is logged to, or raises, from the middle of a run on",
    "training goes on without it; the record has every look, and `cnnviz sync` sends those that were not sent, once",
)
@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_a_service_that_fails_holds_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    pytest.importorskip("wandb")  # loaded by now: that takes longer than anyone waits
    monkeypatch.setattr(_handover, "_PATIENCE", 2.0)
    monkeypatch.setattr(_handover, "_LAST_PATIENCE", 0.1)
    run = Run()
    assert fitted(tmp_path, run, fault).trainer.global_step == 20
    assert [row["cnnviz/epoch"] for row in run.rows] == [1]  # a look is sent when all of its moment is there
    record = Record(tmp_path / "record")
    assert [look.epoch for look in record.looks()] == [1, 2, 3, 4]
    lost = [entry.message for entry in caplog.records if "cnnviz sync" in entry.message]
    assert len(lost) == 1
    assert f"cnnviz sync {tmp_path / 'record'} --to-wandb flowers/r1" in lost[0]

    later = Run()
    monkeypatch.setattr("wandb.init", lambda **_: later)
    for expected in ([2, 3, 4], [2, 3, 4]):
        assert main(["sync", str(tmp_path), "--to-wandb", "me/project/r1"]) == 0
        assert [row["cnnviz/epoch"] for row in later.rows] == expected
    run.answers.set()


def test_a_service_that_answers_again_gets_all_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(_handover, "_PATIENCE", 0.1)
    done: list[int] = []
    answers, handover = threading.Event(), _handover.Handover("W&B")

    def work(number: int) -> None:
        answers.wait(60)
        done.append(number)

    for number in range(5):
        handover.put(lambda number=number: work(number))  # type: ignore[misc]
    assert done == []
    answers.set()
    assert handover.drain() == 0
    assert done == [0, 1, 2, 3, 4]
    said = [entry.message for entry in caplog.records]
    assert said == ["W&B has not taken a report within 0.1 s: the run goes on, and reports wait for it"]
    # Caught up: it is waited for again, and its errors are raised.
    with pytest.raises(KeyError, match="nonsense"):
        handover.put(lambda: {}["nonsense"])
    assert handover.drain() == 0


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handover, "_PATIENCE", 0.01)
    monkeypatch.setattr(_handover, "_LAST_PATIENCE", 0.01)
    answers, handover = threading.Event(), _handover.Handover("W&B")
    for _ in range(_handover._MOST_WAITING):
        handover.put(lambda: answers.wait(60) and None)
    with pytest.raises(OSError, match="W&B does not answer"):
        handover.put(lambda: None)
    assert handover.drain() == _handover._MOST_WAITING
    answers.set()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nowhere", "--to-wandb", "project/r1"], "there is no record in"),
        (["page", "--to-wandb", "r1"], "names no W&B run"),
        (["page", "--to-wandb", " / "], "names no W&B run"),
        (["page", "--to-wandb", "project/r1", "--run", "other"], "no look of run other"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = FilterMonitor(epochs="last", sinks=[MemorySink(), PageSink(tmp_path / "page")])
    quiet_trainer(callbacks=[monitor], max_epochs=1).fit(LittleNet(), train_loader(), val_loader())
    with pytest.raises(SystemExit, match="2"):
        main(["sync", *arguments])
    assert match in capsys.readouterr().err


def lines(row: dict[str, Any], key: str) -> list[str]:
    """The names of a chart's lines."""
    return list(dict.fromkeys(line for _, line, _ in row[key].table.data))


@pytest.fixture
def recorded(tmp_path: Path) -> Record:
    """Three looks at two views: one of them has a number by depth, and a table at the end of the run."""
    page = PageSink(tmp_path / "page")
    monitors = [TopPatchesMonitor(sinks=[page], k=2), FilterMonitor(sinks=[page], every_n_epochs=2)]
    quiet_trainer(callbacks=monitors, max_epochs=3).fit(LittleNet(), train_loader(), val_loader())
    return Record.within(tmp_path / "page")


def test_all_that_a_run_has_is_sent(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    monkeypatch.setattr("wandb.init", lambda **_: run)
    assert sync_record(recorded, "flowers/r1") == (5, 0)
    assert [row["cnnviz/epoch"] for row in run.rows] == [1, 2, 3]
    assert ["top_patches/table" in row for row in run.rows] == [False, False, True]
    key, names = "top_patches/dead_fraction_by_depth", ["epoch 1", "epoch 2", "epoch 3"]
    assert [lines(row, key) for row in run.rows] == [names[:1], names[:2], names]
    assert run.config["cnnviz/TopPatchesMonitor"]["k"] == 2
    assert run.config["cnnviz/FilterMonitor"]["looked at"]["layers"] == ["features.0"]


def test_an_early_look_is_sent_as_the_run_would_have_and_the_newest_stands_last(
    recorded: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    monkeypatch.setattr("wandb.init", lambda **_: run)
    sync_record(recorded, "flowers/r1")
    account = recorded.folder / "sent-to-wandb.jsonl"
    # As if the service had not taken the second look: both views of it.
    (_, *second, _, _, _) = account.read_text().splitlines()
    assert len(second) == 2
    account.write_text("\n".join(line for line in account.read_text().splitlines() if line not in second) + "\n")

    last, later = run.rows[-1], Run()
    monkeypatch.setattr("wandb.init", lambda **_: later)
    assert sync_record(recorded, "flowers/r1") == (2, 3)
    key = "top_patches/dead_fraction_by_depth"
    assert [lines(row, key) for row in later.rows] == [["epoch 1", "epoch 2"], ["epoch 1", "epoch 2", "epoch 3"]]
    assert [row["cnnviz/epoch"] for row in later.rows] == [2, 3]
    numbers = {name: value for name, value in last.items() if isinstance(value, (int, float))}
    assert {name: later.rows[-1][name] for name in numbers} == numbers
    assert later.rows[-1]["top_patches/table"].data == last["top_patches/table"].data
    assert sync_record(recorded, "flowers/r1") == (0, 5)
    assert len(later.rows) == 2


def test_a_service_that_is_slow_is_waited_for(
    recorded: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No training is held up: nothing is left out, nor said to be sent that is not."""
    monkeypatch.setattr(_handover, "_PATIENCE", 0.01)
    monkeypatch.setattr(_handover, "_LAST_PATIENCE", 0.01)
    run = Run()
    log = run.log
    run.log = lambda row: (time.sleep(0.1), log(row))[-1]  # type: ignore[method-assign]
    monkeypatch.setattr("wandb.init", lambda **_: run)
    assert sync_record(recorded, "flowers/r1") == (5, 0)
    assert [row["cnnviz/epoch"] for row in run.rows] == [1, 2, 3]
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []


def test_a_service_that_is_gone_is_said_and_the_rest_is_sent_later(
    recorded: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    run.is_gone = True
    monkeypatch.setattr("wandb.init", lambda **_: run)
    with pytest.raises(SystemExit, match="1"):
        main(["sync", str(recorded.folder), "--to-wandb", "flowers/r1"])
    assert "not all is sent: the service is gone. Called again, it sends the rest" in capsys.readouterr().err
    run.is_gone = False
    assert sync_record(recorded, "flowers/r1") == (5, 0)


def test_a_run_that_is_resumed_keeps_the_lines_of_all_looks(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    rows = []
    for epochs, checkpoint in ((2, None), (4, tmp_path / "last.ckpt")):
        run, sink = Run(), WandbSink(record="never", page_megabytes=0)
        sink.open([WandbLogger(run)], tmp_path)
        sink.open = lambda loggers, folder: None  # type: ignore[method-assign]
        monitor = CorrelationMonitor(sinks=[sink, PageSink(tmp_path / "page")])
        trainer = quiet_trainer(callbacks=[monitor], max_epochs=epochs)
        trainer.fit(LittleNet(), train_loader(), val_loader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        rows += run.rows
    found = [lines(row, "correlation/redundant_by_depth") for row in rows]
    assert found == [[f"epoch {at}" for at in range(1, now + 1)] for now in range(1, 5)]


def test_another_training_has_lines_of_its_own() -> None:
    sink, run = WandbSink(), Run()
    sink.open([WandbLogger(run)], Path("unused"))
    items = tuple(Scalar(f"{layer}/redundant", 0.5, layer=layer) for layer in ("a", "b"))
    report = Report("correlation", title="Correlation", items=items)
    for epoch, name in ((1, "first"), (2, "first"), (1, "second")):
        sink.write(report, Step(epoch=epoch, global_step=epoch, run=name))
    found = [lines(row, "correlation/redundant_by_depth") for row in run.rows]
    assert found == [["epoch 1"], ["epoch 1", "epoch 2"], ["epoch 1"]]


def test_an_offline_run_that_is_slow_is_not_taken_for_a_service_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(_handover, "_PATIENCE", 0.1)
    monkeypatch.setattr(_handover, "_LAST_PATIENCE", 0.1)
    run, sink = Run(), WandbSink()
    run.offline, run.dir = True, "wandb/offline-run-1/files"  # type: ignore[attr-defined]
    sink.open([WandbLogger(run)], tmp_path)
    sink.keep_account(tmp_path)
    run.answers.clear()
    sink.write(Report("view", title="Title", items=(Scalar("accuracy", 0.5),)), Step(epoch=1, global_step=1))
    sink.close()
    run.answers.set()
    slow, missing = (entry.message for entry in caplog.records if entry.levelno >= logging.WARNING)
    assert slow.startswith("wandb's process that writes the offline run has not taken a report within 0.1 s")
    assert missing.endswith(
        f"To send them later: wandb sync wandb/offline-run-1, then cnnviz sync {tmp_path} --to-wandb flowers/r1"
    )
