"""Monitors that mine at the same times mine once, each with the result that it would have alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader

from lightning_cnnviz import DeconvnetMonitor, MemorySink, TopPatchesMonitor
from lightning_cnnviz.callbacks._base.mining import MiningMonitor
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.report import Gallery, Report


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Batch by batch, what was wanted of the miner that took it."""
    batches: list[str] = []
    batch = PatchMiner.batch

    def counted(miner: PatchMiner, *arguments: Any) -> Any:
        batches.append(repr(miner._wanted))
        return batch(miner, *arguments)

    monkeypatch.setattr(PatchMiner, "batch", counted)
    return batches


def fit(*monitors: MiningMonitor, **options: Any) -> None:
    pl.seed_everything(3, verbose=False)
    quiet_trainer(callbacks=list(monitors), **options).fit(LittleNet(), train_loader(), val_loader())


def patches(**options: Any) -> TopPatchesMonitor:
    return TopPatchesMonitor(sinks=[MemorySink()], **{"on_error": "raise", **options})


def projections(**options: Any) -> DeconvnetMonitor:
    return DeconvnetMonitor(sinks=[MemorySink()], **{"on_error": "raise", **options})


def reports_of(monitor: MiningMonitor) -> list[Report]:
    assert monitor.sinks is not None
    sink = monitor.sinks[0]
    assert isinstance(sink, MemorySink)
    return [report for _, report in sink.reports]


def assert_same(first: MiningMonitor, second: MiningMonitor) -> None:
    mine, theirs = reports_of(first), reports_of(second)
    assert len(mine) == len(theirs) >= 2
    for one, other in zip(mine, theirs, strict=True):
        assert [item.name for item in one.items] == [item.name for item in other.items]
        for item, twin in zip(one.items, other.items, strict=True):
            if not isinstance(item, Gallery):
                continue
            assert isinstance(twin, Gallery)
            assert (item.caption, len(item.rows)) == (twin.caption, len(twin.rows))
            for row, row_twin in zip(item.rows, twin.rows, strict=True):
                assert row.caption == row_twin.caption
                assert len(row.tiles) == len(row_twin.tiles)
                for tile, tile_twin in zip(row.tiles, row_twin.tiles, strict=True):
                    assert torch.equal(tile.pixels, tile_twin.pixels)
                    assert tile.numbers == tile_twin.numbers


@pytest.mark.parametrize("patches_first", [True, False])
def test_one_mining_and_the_results_of_each_alone(mined: list[str], patches_first: bool) -> None:
    asked: list[dict[str, Any]] = [
        {"k": 5, "layers": "conv", "features": 6},
        {"k": 2, "layers": "features.4", "features": 3},
        {"k": 7, "layers": ["features.4"], "features": 4},
    ]
    alone = [patches(**asked[0]), projections(**asked[1]), projections(**asked[2])]
    for monitor in alone:
        mined.clear()
        fit(monitor)
        assert len(set(mined)) == 1
    batches = len(mined)
    mined.clear()
    together = [patches(**asked[0]), projections(**asked[1]), projections(**asked[2])]
    fit(*(together if patches_first else together[::-1]))
    # "features.4" is meant literally by two of them, and by the first as any convolution is.
    assert len(set(mined)) == 2
    assert len(mined) == 2 * batches
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_monitors_without_arguments_share(mined: list[str]) -> None:
    first, second = patches(), projections()
    fit(first, second)
    assert len(set(mined)) == 1
    for shared, alone in ((first, patches()), (second, projections())):
        fit(alone)
        assert_same(shared, alone)


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_epochs": 2},
        {"epochs": [1, 2]},
        {"epochs": "last"},
        {"data": val_loader()},
        {"batch_fn": tuple},
        {"features": [0, 1]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_others_mine_by_themselves(mined: list[str], options: dict[str, Any]) -> None:
    first, second = patches(), projections(**options)
    fit(first, second)
    assert len(set(mined)) == 2
    assert reports_of(first)
    assert reports_of(second)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_to_draw_leaves_the_other_alone(failing: int) -> None:
    monitors = [patches(on_error="report"), projections(on_error="report")]

    def fails(*_: Any) -> Report:
        raise RuntimeError("no ink")

    monitors[failing].render = fails  # type: ignore[method-assign]
    fit(*monitors, max_epochs=3)
    assert len(reports_of(monitors[1 - failing])) >= 3
    assert reports_of(monitors[failing]) == []


def test_mining_that_fails_is_reported_by_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitors = [patches(on_error="report"), projections(on_error="report")]
    read = PatchMiner._read
    looks = []

    def fails_later(miner: PatchMiner, *arguments: Any) -> Any:
        looks.append(miner)
        if len(looks) > 30:
            raise RuntimeError("a hook's own failure")
        return read(miner, *arguments)

    monkeypatch.setattr(PatchMiner, "_read", fails_later)
    fit(*monitors, max_epochs=4)
    failed = [record.message for record in caplog.records if "has failed and is switched off" in record.message]
    assert sorted(message.split()[0] for message in failed) == ["DeconvnetMonitor", "TopPatchesMonitor"]
    assert reports_of(monitors[0])
