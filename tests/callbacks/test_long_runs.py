"""However long a training is, what a look after an epoch costs in memory and on the disk stays what it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import processes
import pytest
from callbacks.long_run import main

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's account of a process")


def looked(folder: Path, epochs: int, *names: str) -> dict[str, Any]:
    """What a fit with looks after every epoch has cost."""
    processes.run(main, (folder, epochs, names), timeout=3500)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert found["failures"] == {}
    assert [len(found[name]) for name in ("written", "resident")] == [epochs] * 2
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def check_bytes(found: dict[str, Any], part: int) -> None:
    """Late epochs write what early ones did."""
    per_epoch = [after - before for before, after in pairwise(found["written"])]
    assert min(per_epoch) > 0
    # The first epoch brings the images that patches are cut from.
    early, late = mean(per_epoch[1 : 1 + part]), mean(per_epoch[-part:])
    print(
        f"bytes an epoch: {early:.0f} at first, {late:.0f} at last; the list of {found['looks']} looks {found['list']}"
    )
    assert late < 1.1 * early
    assert found["list"] < 3_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_epochs_of_looks_with_all_monitors(tmp_path: Path) -> None:
    found = looked(tmp_path, 200)
    check_bytes(found, 20)
    resident = found["resident"]
    growth = (mean(resident[-5:]) - mean(resident[:5])) / (len(resident) - 5)
    print(f"resident memory: {resident[0]:.0f} MB at first, {resident[-1]:.0f} MB at last, {growth:.3f} MB an epoch")
    assert growth < 1


def test_a_few_epochs_of_looks(tmp_path: Path) -> None:
    check_bytes(looked(tmp_path, 8, "TopPatchesMonitor", "DeconvnetMonitor", "FilterMonitor"), 2)
