"""Drawing in another process: what it makes, and what its end costs."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from record.looks import NET, patches_seen

from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.record import drawing
from lightning_cnnviz.record.drawing import Drawer, DrawingJob, receive, send
from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.views import Seen
from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.sinks.base import Sink

STEP = Step(epoch=1, global_step=5)
REPORT = Report("view", title="Title", items=(Scalar("accuracy", 0.5),))


@pytest.fixture
def drawer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawer]:
    monkeypatch.setenv("CNNVIZ_DRAWING", "beside")
    made = Drawer("Test")
    yield made
    made.close()


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Functions that another process can import."""
    source = "import os, signal, time\n\n"
    source += "def hang(report, step):\n    time.sleep(600)\n\n"
    source += "def die(report, step):\n    os.kill(os.getpid(), signal.SIGKILL)\n\n"
    source += "def shout(report, step):\n    print('no answer')\n    return os.getpid()\n\n"
    source += "def refuse(report, step):\n    raise ValueError('cannot be drawn')\n"
    (tmp_path / "encoders_of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delitem(sys.modules, "encoders_of_a_test", raising=False)
    module = importlib.import_module("encoders_of_a_test")
    return lambda name: getattr(module, name)


def job(*encoders: Any, **fields: Any) -> DrawingJob:
    return DrawingJob(step=STEP, encoders=encoders, **({"report": REPORT} | fields))


def test_looks_and_reports_are_drawn_in_order_in_another_process(
    drawer: Drawer, tmp_path: Path, importable: Callable[[str], Any]
) -> None:
    record = Record(tmp_path / "record")
    look = record.add(LookIdentity(view="top_patches"), patches_seen(side=24))
    table = record.add(LookIdentity(view="layer_table"), Seen(result=layer_table(NET, (3, 24, 24))))
    made: list[Any] = []
    for each, last in ((look, False), (table, False), (look, True), (table, True)):
        where = {"folder": record.folder, "look": each.id, "last": last, "report": None}
        drawer.submit(job(Sink.encode, **where), made.extend)
    drawer.submit(job(importable("shout"), Sink.encode), made.extend)
    assert drawer.unfinished == 5
    drawer.drain()
    assert drawer.unfinished == 0
    patches, layers, last_table, pid, report = made  # the layer table has nothing to say at the end
    assert [each.view for each in (patches, layers, last_table)] == ["top_patches", "layer_table", "top_patches"]
    assert [type(item).__name__ for item in last_table.items] == ["Table"]
    assert pid != os.getpid()
    assert report.items[0].value == 0.5


def test_a_picture_that_cannot_be_drawn_costs_that_picture(
    drawer: Drawer, importable: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []
    for encode in (importable("refuse"), Sink.encode):
        drawer.submit(job(encode), made.extend)
    drawer.drain()
    assert len(made) == 1
    assert "its look is in the record" in caplog.text
    assert "ValueError: cannot be drawn" in caplog.text


def test_a_process_that_dies_is_replaced(
    drawer: Drawer, importable: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []
    for encode in (Sink.encode, importable("die"), Sink.encode):
        drawer.submit(job(encode), made.extend)
    drawer.drain()
    assert len(made) == 2
    assert len([each for each in caplog.records if "the process that draws has ended" in each.message]) == 1


def test_one_that_dies_again_and_again_is_given_up(
    drawer: Drawer, importable: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        drawer.submit(job(importable("die")), pytest.fail)
    drawer.drain()
    assert len([each for each in caplog.records if "could not be kept running" in each.message]) == 2


def test_one_that_hangs_is_ended(
    drawer: Drawer, importable: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drawing, "_PATIENCE", 1.0)
    drawer.submit(job(importable("hang")), pytest.fail)
    drawer.drain()
    assert "the process that draws has ended" in caplog.text


def test_what_cannot_be_sent_is_said(drawer: Drawer, caplog: pytest.LogCaptureFixture) -> None:
    drawer.submit(job(lambda report, step: None), pytest.fail)
    drawer.drain()
    assert "could not be drawn" in caplog.text


def test_ctrl_c_is_not_for_the_drawing_process(drawer: Drawer, importable: Callable[[str], Any]) -> None:
    made: list[Any] = []
    drawer.submit(job(importable("shout")), made.extend)
    drawer.drain()
    os.kill(made[0], signal.SIGINT)
    drawer.submit(job(importable("shout")), made.extend)
    drawer.drain()
    assert made[0] == made[1]


def test_closing_leaves_no_process(drawer: Drawer, importable: Callable[[str], Any]) -> None:
    made: list[int] = []
    drawer.submit(job(importable("shout")), made.extend)
    drawer.drain()
    drawer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(made[0], 0)


def test_the_environment_may_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNVIZ_DRAWING", "inline")
    assert not Drawer().is_beside
    monkeypatch.delenv("CNNVIZ_DRAWING")
    assert Drawer().is_beside


def test_nothing_is_printed_where_all_is_well(
    drawer: Drawer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    importable: Callable[[str], Any],
) -> None:
    caplog.set_level(logging.DEBUG, logger="lightning_cnnviz")
    drawer.submit(job(importable("shout")), lambda contents: None)
    drawer.drain()
    drawer.close()
    assert capfd.readouterr() == ("", "")
    assert [each for each in caplog.records if each.name == "lightning_cnnviz"] == []


def test_of_a_view_what_it_shows_is_sent() -> None:
    whole = torch.arange(3_000_000, dtype=torch.uint8).reshape(3, 1000, 1000)
    views = [whole[:, at : at + 5, :5] for at in range(100)]
    stream = io.BytesIO()
    send(stream, (views, whole, whole))
    assert len(stream.getvalue()) < 3_200_000  # the whole is there once, for it is sent as it is
    stream.seek(0)
    again, first, second = receive(stream)
    assert first is second
    assert all(torch.equal(one, other) for one, other in zip([*views, whole], [*again, first], strict=True))
