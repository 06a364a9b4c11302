"""A W&B service that hangs or is gone holds no training, and what it missed is sent later from the record."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import FilterMonitor, MemorySink, PageSink
from lightning_cnnviz.cli import main
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Report
from lightning_cnnviz.sinks import _handover
from lightning_cnnviz.sinks.wandb import WandbSink

REPORT = Report("view", title="Title", items=())


class Run:
    """A W&B run, of which the service may hang, or be gone."""

    id = "r1"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
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
    assert f"cnnviz sync {tmp_path / 'record'} --to-wandb PROJECT/RUN" in lost[0]

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
    assert len([entry for entry in caplog.records if "does not answer" in entry.message]) == 1
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
