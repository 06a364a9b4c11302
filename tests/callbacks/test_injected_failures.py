"""Whatever of ours fails on one of two ranks, training ends on both, with the weights of a training without us."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
from callbacks.injection_run import main

# What once left the other rank waiting: each is among what these monitors' fits call.
ONCE_WAITED_FOR = {
    "DeconvnetMonitor.part",
    "FeatureTap.batch",
    "Look.finish",
    "OnlineProbeMonitor.running",
    "OnlineProbes.average",
    "PatchMiner.merge",
    "PatchStore.merge",
    "RunningCorrelation.merge",
}
QUICK = "(Deconvnet|OnlineProbe|LayerProbe|Correlation)Monitor$"
PARTS = 12  # of the failures of every monitor: each part is a test that takes minutes


def injected(
    folder: Path, part: int, parts: int, *, only: str = "", ranks: int = 2, timeout: float = 7200
) -> list[dict[str, Any]]:
    """Which failures were injected, one in so many, and whether each rank has ended as without us."""
    calls = [(rank, ranks, folder, part, parts, only) for rank in range(ranks)]
    processes.run(main, *calls, timeout=timeout)
    return [json.loads(line) for line in (folder / "0.jsonl").read_text().splitlines()]


def assert_undisturbed(found: list[dict[str, Any]], ranks: int = 2) -> None:
    assert {each["rank"] for each in found} == set(range(ranks))
    assert [each for each in found if not each["same"]] == []


def test_some_failures_on_one_rank(tmp_path: Path) -> None:
    found = injected(tmp_path, 0, 61, only=QUICK, timeout=600)
    assert len(found) > 10
    assert_undisturbed(found)
    if sys.version_info >= (3, 11):  # before, code does not tell its class
        assert {*(tmp_path / "stages.txt").read_text().splitlines()} >= ONCE_WAITED_FOR


@pytest.mark.slow
def test_failures_in_a_single_process(tmp_path: Path) -> None:
    found = injected(tmp_path, 0, 29, ranks=1)
    assert len(found) > 42
    assert_undisturbed(found, ranks=1)


@pytest.mark.fault(
    "processes",
    "any function of ours fails on one of two ranks while training goes on",
    "training ends on both, with weights, optimizer and random state as without us",
)
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_failure_on_one_rank(part: int, tmp_path: Path) -> None:
    assert_undisturbed(injected(tmp_path, part, PARTS))
