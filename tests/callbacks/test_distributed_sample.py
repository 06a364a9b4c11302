"""Two processes share the images of a sample, and show what one process shows."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from callbacks.ddp_sample_run import main

from lightning_cnnviz.report import Gallery, Picture, Scalar


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_show_what_one_shows(tmp_path: Path, several: bool) -> None:
    main(1, tmp_path / "one", several)
    processes.run(main, (2, tmp_path / "two", several))
    one, first, second = (torch.load(tmp_path / name, weights_only=False) for name in ("one.0", "two.0", "two.1"))
    assert second["reports"] == []
    for ours, theirs in zip(one["indices"], first["indices"], strict=True):
        assert torch.equal(ours, theirs)
    views = ["invariance", "occlusion", "attribution", "occlusion"]
    assert [report.view for report in first["reports"]] == [report.view for report in one["reports"]] == views
    task = "multilabel" if several else "multiclass"
    for report in first["reports"][:3]:  # the last has one image, which tells little
        assert f"({task}, as found;" in " ".join(report.notes)
    compared = 0
    for alone, shared in zip(one["reports"], first["reports"], strict=True):
        assert [item.name for item in alone.items] == [item.name for item in shared.items]
        for expected, found in zip(alone.items, shared.items, strict=True):
            if isinstance(expected, Scalar):
                assert found.value == pytest.approx(expected.value, rel=1e-4, abs=1e-5)
            elif isinstance(expected, Picture):
                assert alike(found.pixels, expected.pixels)
            elif isinstance(expected, Gallery):
                for row, other in zip(found.rows, expected.rows, strict=True):
                    assert row.caption == other.caption
                    assert all(alike(a.pixels, b.pixels) for a, b in zip(row.tiles, other.tiles, strict=True))
            compared += 1
    assert compared > 15


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """But for the last bit of a sum, which may move a line by a shade."""
    different = (found.int() - expected.int()).abs() > 8
    return found.shape == expected.shape and float(different.float().mean()) < 1e-3
