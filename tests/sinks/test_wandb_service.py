"""W&B's own service, stopped or killed for real while a network trains: we hold no training, and send the rest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from sinks import wandb_service_run
from sinks.offline_run import keep_wandb_inside

from lightning_cnnviz.cli import main
from lightning_cnnviz.record import Record
from lightning_cnnviz.sinks._wandb_runs import wait_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the service in /proc")


class Run:
    """A W&B run that goes on."""

    def __init__(self, name: str) -> None:
        self.id, self.rows = name, list[dict[str, Any]]()

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("wandb")
    keep_wandb_inside(tmp_path, monkeypatch)
    return tmp_path


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.fault(
    "services",
    "W&B's service is stopped (SIGSTOP) in the second of four epochs, where Lightning logs a row an epoch",
    "training ends with the weights that it has without us; the record has every look, and `cnnviz sync` sends those "
    "that the service had not taken",
)
@pytest.mark.parametrize(("fault", "lightning_logs"), [("SIGSTOP", True), ("SIGSTOP", False), ("SIGKILL", False)])
def test_a_service_that_is_stopped_or_killed_holds_no_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, lightning_logs: bool
) -> None:
    (log,) = processes.run(_train, (str(folder), fault, lightning_logs, True), timeout=400)
    assert (said(folder)["raised"], said(folder)["steps"]) == ("", 20)
    wandb_service_run.train_alone(str(folder))
    expected, found = (torch.load(folder / name, weights_only=True) for name in ("alone.pt", "weights.pt"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [look.epoch for look in Record(folder / "page" / "record").looks()] == [1, 2, 3, 4]
    assert "cnnviz sync" in log

    later = Run(said(folder)["run"])
    monkeypatch.setattr("wandb.init", lambda **_: later)
    assert main(["sync", str(folder / "page"), "--to-wandb", f"me/project/{later.id}"]) == 0
    assert [row["cnnviz/epoch"] for row in later.rows] in ([2, 3, 4], [3, 4])


@pytest.mark.slow
@pytest.mark.fault(
    "services",
    "W&B's service is killed (SIGKILL), and Lightning's own WandbLogger logs after that",
    "WandbLogger ends the fit with ConnectionResetError, with monitors and without; where only monitors log, the fit "
    "goes on to its end as above",
)
def test_lightnings_own_logger_ends_the_fit_without_us(folder: Path) -> None:
    processes.run(_train, (str(folder), "SIGKILL", True, False), timeout=400)
    assert said(folder)["raised"] == "ConnectionResetError"


@pytest.mark.slow
@pytest.mark.fault(
    "services",
    "W&B's service is stopped (SIGSTOP), and Lightning's own WandbLogger logs thousands of rows",
    "W&B's client holds the training from some 700 rows on, without monitors too; and when Python exits, it waits for "
    "its service to end: kill `wandb-core`, or let it go on (SIGCONT)",
)
def test_lightnings_own_logger_is_held_without_us(folder: Path) -> None:
    processes.run(wandb_service_run.log_to_a_stopped_service, (str(folder), 5000), timeout=400)
    assert said(folder)["held"]


def test_what_the_service_has_not_taken_is_not_taken_for_sent() -> None:
    class Service:
        def __init__(self, disabled: bool, *keys: str) -> None:
            self.summary, self.disabled = dict.fromkeys(keys, 1), disabled

    wait_for(Service(False, "cnnviz/epoch"))
    wait_for(Service(True))
    wait_for(object())
    with pytest.raises(TimeoutError, match="W&B does not answer"):
        wait_for(Service(False))  # what wandb gives when it has waited long enough


def _train(folder: str, fault: str, lightning_logs: bool, monitored: bool) -> None:
    wandb_service_run.train(folder, fault, lightning_logs=lightning_logs, monitored=monitored)
