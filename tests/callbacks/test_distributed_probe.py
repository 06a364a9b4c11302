"""Two processes give the table of one, and online probes that are the same on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from callbacks.ddp_heads_run import main as heads
from callbacks.ddp_probe_run import main


def run(ranks: int, out: Path) -> Any:
    processes.run(main, (ranks, out))
    return torch.load(out, weights_only=False)


def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    one, two = run(1, tmp_path / "one.pt"), run(2, tmp_path / "two.pt")
    for mine, theirs in zip(one["probes"], two["probes"], strict=True):
        # No image is lost, none comes twice; one of the 37 is in no split.
        assert mine.images == theirs.images == (36, 23)
        assert mine.control is not None
        for first, second in zip((*mine, *mine.control), (*theirs, *theirs.control), strict=True):
            assert first.layer == second.layer
            assert first.digest == second.digest
            assert torch.equal(first.accuracy, second.accuracy), first.layer
            assert torch.equal(first.C.nan_to_num(), second.C.nan_to_num())
    assert len(one["probes"]) == 1
    assert two["same"] == [True, True]
    assert one["online"] == [f"Learned from {count} training batches, tested on 23 images." for count in (5, 10)]
    # Each process has half of the batches, and of the padded validation set no image counts twice.
    assert two["online"] == [f"Learned from {count} training batches, tested on 23 images." for count in (3, 6)]
    # Who follows the numbers finds the same ones on every rank.
    first, second = two["numbers"]
    ours = {key for key in first if "probe/" in key}
    assert {"layer_probe/features_0/svm", "online_probe/accuracy"} <= ours
    assert {key: first[key] for key in ours} == {key: second.get(key) for key in ours}
    assert first["layer_probe/features_0/svm"] == one["numbers"][0]["layer_probe/features_0/svm"]


@pytest.mark.slow
def test_online_probes_of_each_head_are_those_of_one_process_that_has_the_same_images(tmp_path: Path) -> None:
    found: dict[int, Any] = {}
    for ranks in (1, 2):
        processes.run(heads, (ranks, tmp_path / f"{ranks}.pt"))
        found[ranks] = torch.load(tmp_path / f"{ranks}.pt", weights_only=False)
    ((weights, numbers),) = found[1]
    assert weights.keys() == {"species", "sex"}
    assert {key.split("/")[1] for key in numbers} >= {"species", "sex"}
    assert len(found[2]) == 2
    for own_weights, own_numbers in found[2]:
        assert own_numbers == pytest.approx(numbers)
        for head, expected in weights.items():
            assert bool(expected.any())
            torch.testing.assert_close(own_weights[head], expected)
