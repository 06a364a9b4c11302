"""Two processes find bit for bit what one finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from callbacks.ddp_run import main


def run(ranks: int, where: str, out: Path) -> Any:
    processes.run(main, (ranks, where, out))
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("where", ["validation", "data"])
def test_two_processes_give_the_answer_of_one(where: str, tmp_path: Path) -> None:
    one, two = run(1, where, tmp_path / "one.pt"), run(2, where, tmp_path / "two.pt")
    assert one.indices_known
    assert two.indices_known
    assert [layer.layer for layer in one] == ["features.0", "features.4"]
    for mine, theirs in zip(one, two, strict=True):
        for name in ("activations", "images", "labels", "rows", "columns", "boxes"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), (mine.layer, name)
        for first, second in zip(mine.patches, theirs.patches, strict=True):
            assert len(first) == 4
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (found, pixels), (other, shared) = (
        torch.load(tmp_path / f"{ranks}.projections", weights_only=False) for ranks in ("one", "two")
    )
    assert len(pixels) == len(shared) == sum(len(line) for layer in found for line in layer.patches) > 0
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, other, strict=True))
    # Each process projects its own images' units: other batches, and so other roundings.
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(pixels, shared, strict=True))
    assert any(bool(part.any()) for part in pixels)
    # The ties are there: else this would test less than it says.
    assert any(bool((layer.activations[:, 1:] == layer.activations[:, :-1]).any()) for layer in one)


def test_training_on_two_processes_goes_through(tmp_path: Path) -> None:
    result = run(2, "fit", tmp_path / "fit.pt")
    images = result["features.0"].images
    assert sorted(set(images.flatten().tolist())) == sorted(set(images.flatten().tolist()) & set(range(23)))
    for line in images.tolist():
        assert len(set(line)) == 4
