"""Four processes with uneven data, and two, find what one finds, in every view."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from callbacks.ddp_everything_run import main
from torch import Tensor


def run(ranks: int, out: Path) -> dict[str, Any]:
    processes.run(main, (ranks, out), timeout=600)
    found: dict[str, Any] = torch.load(out, weights_only=False)
    return found


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two results differ by more than the rounding of other batches."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__}, {type(other).__name__}"
    elif isinstance(one, Tensor):
        same = one.shape == other.shape
        if same and one.is_floating_point():
            same = torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
        elif same:
            same = torch.equal(one, other)
        if not same:
            yield where
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            yield from differences(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, Mapping):
        yield from differences(list(one.items()), list(other.items()), where)
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)}, {len(other)}"
        for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{where}[{place}]")
    elif isinstance(one, float):
        if one != pytest.approx(other, rel=1e-4, abs=1e-4, nan_ok=True):
            yield f"{where}: {one}, {other}"
    elif one != other and type(one).__eq__ is not object.__eq__:
        yield f"{where}: {one}, {other}"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_processes_find_what_one_finds(ranks: int, tmp_path: Path) -> None:
    one, several = run(1, tmp_path / "one.pt"), run(ranks, tmp_path / "several.pt")
    assert len(one) >= 11
    assert several.keys() == one.keys()
    for name, result in one.items():
        assert list(differences(result, several[name], name)) == []


def test_a_difference_is_found() -> None:
    one = {"a": (torch.tensor([1.0, float("nan")]), 2)}
    assert list(differences(one, one)) == []
    assert list(differences(one, {"a": (torch.tensor([1.1, float("nan")]), 3)})) == ["[0][1][0]", "[0][1][1]: 2, 3"]
