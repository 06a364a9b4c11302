"""One reading of the passes for all monitors of a trainer, each with the result that it would have alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz import DeconvnetMonitor, MemorySink, TopPatchesMonitor
from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor
from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.report import Gallery, Report, Scalar


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[PatchMiner]:
    """Which miner took a batch, batch by batch."""
    batches: list[PatchMiner] = []
    batch = PatchMiner.batch

    def counted(miner: PatchMiner, *arguments: Any) -> Any:
        batches.append(miner)
        return batch(miner, *arguments)

    monkeypatch.setattr(PatchMiner, "batch", counted)
    return batches


def fit(*monitors: Any, **options: Any) -> LittleNet:
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=list(monitors), **options).fit(model, train_loader(), val_loader())
    return model


def patches(**options: Any) -> TopPatchesMonitor:
    return TopPatchesMonitor(sinks=[MemorySink()], **{"on_error": "raise", **options})


def projections(**options: Any) -> DeconvnetMonitor:
    return DeconvnetMonitor(sinks=[MemorySink()], **{"on_error": "raise", **options})


def reports_of(monitor: Any) -> list[Report]:
    sink = monitor.sinks[0]
    assert isinstance(sink, MemorySink)
    return [report for _, report in sink.reports]


def assert_same(first: Any, second: Any) -> None:
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
def test_one_mining_and_the_results_of_each_alone(mined: list[PatchMiner], patches_first: bool) -> None:
    asked: list[dict[str, Any]] = [
        {"k": 5, "layers": "conv", "features": 6},
        {"k": 2, "layers": "features.4", "features": 3},
        {"k": 7, "layers": ["features.4"], "features": 4, "name": "more"},
    ]
    alone = [patches(**asked[0]), projections(**asked[1]), projections(**asked[2])]
    for monitor in alone:
        mined.clear()
        fit(monitor)
    batches, looks = len(mined), len(set(mined))
    mined.clear()
    together = [patches(**asked[0]), projections(**asked[1]), projections(**asked[2])]
    fit(*(together if patches_first else together[::-1]))
    # "features.4" is meant literally by two of them, and by the first as any convolution is.
    assert len(set(mined)) == 2 * looks
    assert len(mined) == 2 * batches
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_monitors_without_arguments_share(mined: list[PatchMiner]) -> None:
    alone = [patches(), projections()]
    for monitor in alone:
        mined.clear()
        fit(monitor)
    batches = len(mined)
    mined.clear()
    together = [patches(), projections()]
    fit(*together)
    assert len(mined) == batches
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "options",
    [{"data": val_loader()}, {"batch_fn": tuple}, {"epochs": "last"}, {"rank_by": "mean"}, {"per_image": 2}],
    ids=lambda options: next(iter(options)),
)
def test_others_mine_by_themselves(mined: list[PatchMiner], options: dict[str, Any]) -> None:
    first, second = patches(**options), projections()
    fit(first, second)
    together = len(mined)
    mined.clear()
    fit(patches(), projections())
    assert together > len(mined)
    assert reports_of(first)
    assert reports_of(second)


def test_they_share_where_both_are_due(mined: list[PatchMiner]) -> None:
    first, second = patches(), projections(epochs=[2])
    fit(first, second, num_sanity_val_steps=0)
    assert len(mined) == 2 * 4  # two epochs of four batches
    assert len(reports_of(second)) == 1
    alone = projections(epochs=[2])
    fit(alone, num_sanity_val_steps=0)
    one, other = (reports_of(monitor)[0].items[0] for monitor in (second, alone))
    assert isinstance(one, Gallery)
    assert isinstance(other, Gallery)
    pairs = zip(one.rows, other.rows, strict=True)
    assert all(
        torch.equal(a.pixels, b.pixels) for row, twin in pairs for a, b in zip(row.tiles, twin.tiles, strict=True)
    )


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_to_draw_leaves_the_other_alone(failing: int) -> None:
    monitors = [patches(on_error="report"), projections(on_error="report")]

    def fails(*_: Any) -> Report:
        raise RuntimeError("no ink")

    monitors[failing].render = fails  # type: ignore[method-assign]
    fit(*monitors, max_epochs=3)
    assert len(reports_of(monitors[1 - failing])) >= 3
    assert reports_of(monitors[failing]) == []


class Sum(FeedMonitor):
    """Adds up the images that it sees; can be made to fail at any stage."""

    fails: str = ""

    def prepare(self, network: nn.Module) -> None:
        self.stages: list[str] = []

    def at(self, stage: str) -> None:
        self.stages.append(stage)
        # Before training nothing fails: that would stop the run.
        if stage == self.fails and self.trained:
            raise RuntimeError(f"it failed at {stage}")

    trained = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.trained = True

    def running(self, network: nn.Module, look: Look) -> Any:
        self.at("running")
        return _Sum(self, network)

    def part(self, look: Look, running: Any) -> float:
        self.at("part")
        return running.compute()  # type: ignore[no-any-return]

    def render(self, result: float) -> Report:
        self.at("render")
        return Report("sum", title="Sum", items=(Scalar("sum", result),))


class _Sum:
    def __init__(self, monitor: Sum, network: nn.Module) -> None:
        self.monitor, self.network, self.sum, self.passes = monitor, network, 0.0, 0

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> Iterator[None]:
        self.monitor.at("before the pass")
        handle = self.network.register_forward_hook(lambda *_: self._count())
        try:
            yield
        finally:
            handle.remove()
        self.monitor.at("after the pass")
        self.sum += float(images.sum())

    def _count(self) -> None:
        self.passes += 1

    def merge(self) -> None:
        self.monitor.at("merge")

    def compute(self) -> float:
        return self.sum


STAGES = ["running", "before the pass", "after the pass", "merge", "part", "render"]


@pytest.mark.parametrize("own_data", [False, True], ids=["validation", "own data"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_at_any_stage_is_reported_once_and_the_others_go_on(
    stage: str, own_data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"data": val_loader()} if own_data else {}
    failing, good = Sum(name="failing", sinks=[MemorySink()], **options), Sum(sinks=[MemorySink()], **options)
    failing.fails = stage
    model = fit(failing, good, max_epochs=3)
    reported = [record.message for record in caplog.records if "has failed and is switched off" in record.message]
    assert len(reported) == 1
    assert 'Sum "failing"' in reported[0]
    assert reports_of(failing) == []
    expected = float(dataset(23, seed=1).tensors[0].sum())
    values = [item.value for report in reports_of(good) for item in report.items if isinstance(item, Scalar)]
    assert values == pytest.approx([expected] * 3)
    assert all(not module._forward_hooks for module in model.modules())
    assert failing.stages.count("render") == (1 if stage == "render" else 0)


@pytest.mark.parametrize("stage", STAGES)
def test_outside_of_training_a_failure_before_the_result_is_raised_where_that_is_asked_for(stage: str) -> None:
    failing = Sum(sinks=[MemorySink()], on_error="raise" if stage in STAGES[:3] else "report")
    failing.fails, failing.trained = stage, True
    trainer = quiet_trainer(callbacks=[failing])
    if stage in STAGES[:3]:
        with pytest.raises(RuntimeError, match=f"it failed at {stage}"):
            trainer.validate(LittleNet(), val_loader(), verbose=False)
    else:
        trainer.validate(LittleNet(), val_loader(), verbose=False)
        assert reports_of(failing) == []


def test_equal_loaders_are_read_once_and_different_ones_apart() -> None:
    class Counts(DataLoader[Any]):
        read = 0

        def __iter__(self) -> Any:
            Counts.read += 1
            return super().__iter__()

    one, other = Counts(dataset(5), batch_size=2), Counts(dataset(7), batch_size=2)
    pair = [Sum(name=name, data=one, sinks=[MemorySink()], on_error="raise") for name in "ab"]
    lone = Sum(name="c", data=other, sinks=[MemorySink()], on_error="raise")
    fit(*pair, lone, max_epochs=1, num_sanity_val_steps=0)
    # A dry run and a look, of each loader.
    assert Counts.read == 4
    sums = [item.value for each in (*pair, lone) for report in reports_of(each) for item in report.items]  # type: ignore[union-attr]
    first, second = (float(loader.dataset.tensors[0].sum()) for loader in (one, other))  # type: ignore[attr-defined]
    assert sums == pytest.approx([first, first, second])


def test_nothing_of_an_interrupted_look_is_left() -> None:
    class Breaks(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if not trainer.sanity_checking and trainer.current_epoch == 0:
                raise RuntimeError("the user's own mistake")

    monitor, breaks = Sum(sinks=[MemorySink()], on_error="raise"), Breaks()
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        fit(monitor, breaks)
    assert "after the pass" not in monitor.stages[monitor.stages.index("before the pass") + 4 :]
    assert monitor.stages.count("merge") == 0
    model = fit(monitor)
    assert len(reports_of(monitor)) == 2
    assert all(not module._forward_hooks for module in model.modules())
