"""Whatever of ours fails on one of two ranks, training ends on both, with the weights of a training without us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("injection_run.py")


QUICK = 97  # one failure in so many is in the default run


def injected(folder: Path, parts: int, timeout: float, ranks: int = 2) -> list[dict[str, Any]]:
    """Which failures were injected, one in so many, and whether each rank has ended as without us."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(ranks), str(folder), "0", str(parts)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=timeout)[0].decode() for process in processes]
    lines = (folder / "0.jsonl").read_text().splitlines()
    last = lines[-1] if lines else "nothing"
    assert [process.returncode for process in processes] == [0] * ranks, f"after {last}:\n" + "\n".join(said)[-3000:]
    return [json.loads(line) for line in lines]


def assert_undisturbed(found: list[dict[str, Any]], ranks: int = 2) -> None:
    assert {each["rank"] for each in found} == set(range(ranks))
    assert [each for each in found if not each["same"]] == []


def test_some_failures_on_one_rank(tmp_path: Path) -> None:
    found = injected(tmp_path, QUICK, timeout=600)
    assert len(found) > 20
    assert_undisturbed(found)


@pytest.mark.slow
def test_failures_in_a_single_process(tmp_path: Path) -> None:
    found = injected(tmp_path, 4, timeout=7200, ranks=1)
    assert len(found) > 42
    assert_undisturbed(found, ranks=1)


@pytest.mark.fault(
    "processes",
    "any function of ours fails on one of two ranks while training goes on",
    "training ends on both, with weights, optimizer and random state as without us",
)
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="code does not tell its class")
def test_every_failure_on_one_rank(tmp_path: Path) -> None:
    found = injected(tmp_path, 1, timeout=7200)
    assert_undisturbed(found)
    names = {each["stage"] for each in found}
    # Among them are those that once left the other rank waiting.
    assert names >= {
        "DeconvnetMonitor.part",
        "FeatureTap.batch",
        "Look.finish",
        "OnlineProbeMonitor.running",
        "OnlineProbes.average",
        "PatchMiner.merge",
        "PatchStore.merge",
        "RunningCorrelation.merge",
    }
