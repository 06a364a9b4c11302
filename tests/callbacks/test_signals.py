"""SIGINT and SIGTERM that come during a look end the run as without us, and leave the record and the page whole."""

from __future__ import annotations

import re
import signal
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from callbacks.signalled_run import POINTS, main
from sinks.harness import listed

from lightning_cnnviz.record.store import Record

BESIDE = "handing over to the process that draws"
QUICK = [(signal.SIGINT, "adding to the record"), (signal.SIGTERM, "writing the page's list")]
CASES = [
    pytest.param(*case, id=f"{case[0].name}, {case[1]}", marks=() if case in QUICK else pytest.mark.slow)
    for case in product([signal.SIGINT, signal.SIGTERM], POINTS)
]


def ended(folder: Path, *arguments: Any) -> tuple[int | None, dict[str, Any], str]:
    """How a run's process ended, what has become of the run, and what was said."""
    folder.mkdir()
    process, log = processes.start(main, folder, *arguments)
    process.join(timeout=200)
    said = log.read_text(errors="replace")
    log.unlink()
    assert process.exitcode is not None, said[-2000:]
    return process.exitcode, torch.load(folder / "found.pt", weights_only=False), said


@cache
def ended_alone(number: int, hook: str) -> tuple[int | None, dict[str, Any]]:
    """The same without us, where the signal comes in a hook."""
    point = next(name for name, point in POINTS.items() if point[2] == hook)
    with tempfile.TemporaryDirectory() as folder:
        return ended(Path(folder, "alone"), number, point, False)[:2]


def check_page(folder: Path) -> set[tuple[int, str]]:
    """Every file of the page is whole, and there; return epoch and view of the looks in its list."""
    for file in folder.rglob("*.js"):
        assert re.fullmatch(r"cnnviz\.\w+\(.*\);\n", file.read_text("ascii"), flags=re.DOTALL), file.name
    if not (folder / "looks.js").exists():
        return set()
    looks = [(look, view) for view, series in listed(folder).items() for looks in series.values() for look in looks]
    missing = [
        chunk for look, _ in looks for chunk in look["chunks"] if not (folder / "parts" / f"{chunk}.js").exists()
    ]
    assert missing == []
    return {(look["epoch"], view) for look, view in looks}


@pytest.mark.fault(
    "processes",
    "SIGINT (Ctrl-C) or SIGTERM comes while a look is computed, drawn or written, to the process that draws, too",
    "the run ends with the exit status, the step, the weights and the random state that it ends with without us, no "
    "hook is left, and record and page are whole",
)
@pytest.mark.parametrize(("number", "point"), CASES)
def test_a_signal_during_a_look(
    number: signal.Signals, point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNVIZ_DRAWING", "beside" if point == BESIDE else "inline")
    exitcode, found, said = ended(tmp_path / "watched", int(number), point, True)
    expected_exitcode, expected = ended_alone(int(number), POINTS[point][2])
    assert exitcode == expected_exitcode, said[-2000:]
    for name in ("moment", "flags", "hooks", "handlers"):
        assert found[name] == expected[name], name
    assert found["moment"][2].endswith("INTERRUPTED")
    pairs = zip(found["tensors"], expected["tensors"], strict=True)
    assert [place for place, (one, other) in enumerate(pairs) if not torch.equal(one, other)] == []
    assert "Traceback" not in said
    page = tmp_path / "watched" / "cnnviz"
    record = Record(page / "record")
    assert record.check() == []
    assert list(page.rglob(".cnnviz-*")) == []
    views = {"online_probe", "top_patches", "filters", "occlusion"}
    seen = {(look.epoch, look.identity.view) for look in record.looks()}
    assert seen >= {(1, view) for view in views}
    shown = check_page(page)
    assert shown <= seen
    if point != BESIDE:
        assert shown >= {(1, view) for view in views}
    if number == signal.SIGINT:  # the last look, at the network that training ended with
        assert seen >= {(2, view) for view in views}
