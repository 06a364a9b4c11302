"""A run that is resumed goes on in its record; a new one stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.loggers import CSVLogger
from record.looks import tree_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_cnnviz import (
    DeconvnetMonitor,
    FilterMonitor,
    LayerProbeMonitor,
    OcclusionMonitor,
    PageSink,
    TopPatchesMonitor,
)
from lightning_cnnviz.record.data import plain
from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.report import Gallery, Scalar, Step
from lightning_cnnviz.sinks._page_folder import PageFolder


def monitors() -> list[Any]:
    return [
        TopPatchesMonitor(),
        DeconvnetMonitor(k=1, features=2),
        FilterMonitor(),
        LayerProbeMonitor(control="random", every_n_epochs=1),
    ]


def fitted(folder: Path, epochs: int, ckpt: Path | None = None, **options: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    options = {"default_root_dir": folder, "logger": False, "callbacks": monitors()} | options
    trainer = quiet_trainer(max_epochs=epochs, **options)
    # Lightning restores no random state: neither the order of a shuffled loader nor that of dropout.
    loader, model = DataLoader(train_loader().dataset, batch_size=8), LittleNet()
    model.features[6].p = 0.0  # type: ignore[assignment]
    resumed = {} if ckpt is None else {"ckpt_path": ckpt, "weights_only": False}
    trainer.fit(model, loader, val_loader(), **resumed)
    return trainer


def looks(folder: Path) -> list[RecordedLook]:
    (record,) = folder.rglob("record.json")
    return Record(record.parent).looks()


def shown(look: RecordedLook) -> dict[str, Any]:
    """What a look's report says, by item."""
    report = look.report()
    scalars = {item.name: repr(item.value) for item in report.items if isinstance(item, Scalar)}
    strips = {item.name: item for item in report.items if isinstance(item, Gallery)}
    return scalars | {
        name: [[(tile.caption, tile.pixels.numpy().tobytes()) for tile in row.tiles] for row in gallery.rows]
        for name, gallery in strips.items()
    }


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.fault(
    "processes",
    "a training is interrupted and resumed in another process",
    "page and record have the looks of a training that was not, each once",
)
def test_a_resumed_run_has_the_looks_of_one_that_was_not_interrupted(tmp_path: Path, logs: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def logger(folder: Path) -> Any:
        return CSVLogger(folder) if logs else False  # which has a new folder for each run

    fitted(whole, 4, logger=logger(whole))
    fitted(parts, 2, logger=logger(parts)).save_checkpoint(tmp_path / "last.ckpt")
    fitted(parts, 4, tmp_path / "last.ckpt", logger=logger(parts))
    expected, found = looks(whole), looks(parts)
    assert len({look.identity.run for look in found}) == 1
    key = [(look.identity.view, look.epoch, look.identity.global_step) for look in expected]
    assert [(look.identity.view, look.epoch, look.identity.global_step) for look in found] == key
    for one, other in zip(expected, found, strict=True):
        assert one.identity.network == other.identity.network
        assert tree_of(one.result) == tree_of(other.result)
        said, theirs = shown(one), shown(other)
        assert [name for name in said if said[name] != theirs[name]] == []
    assert Record(found[0].record.folder).check() == []
    assert len(list(parts.rglob("index.html"))) == 1  # the page goes on, too


def test_looks_that_a_resumed_run_takes_again_count_once(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    fitted(tmp_path, 4, tmp_path / "second.ckpt")  # is killed, say, after its last look
    fitted(tmp_path, 4, tmp_path / "second.ckpt")
    last = [look for look in looks(tmp_path) if look.identity.view == "top_patches"]
    assert [look.epoch for look in last] == [1, 2, 3, 4, 3, 4]
    assert [look.epoch for look in last[-1].earlier()] == [1, 2, 3]
    assert last[-1].earlier()[-1] is last[4]


@pytest.mark.fault(
    "processes",
    "a training ends, with SIGKILL say, before its last looks are drawn, and is resumed",
    "they are drawn then: the page has every look that the record has",
)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_looks_that_were_not_drawn_when_a_run_ended_are_drawn_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    write, dead = PageSink.write_encoded, False

    def until_the_end(self: PageSink, content: Any, step: Step) -> None:
        if not (dead and step.epoch > kept):
            write(self, content, step)

    monkeypatch.setattr(PageSink, "write_encoded", until_the_end)
    dead = True
    fitted(tmp_path, 3).save_checkpoint(tmp_path / "last.ckpt")
    dead = False
    fitted(tmp_path, 4, tmp_path / "last.ckpt")
    (page,) = tmp_path.rglob("index.html")
    folder = PageFolder(page.parent)
    folder.scan()
    there = sorted({(head.source, head.epoch) for head in folder.heads.values()})
    assert there == sorted((look.identity.source, look.epoch) for look in looks(tmp_path))


@pytest.mark.fault(
    "processes",
    "another training begins in the folder of an earlier one",
    "its looks stand beside the earlier ones, as a series of their own: nothing is overwritten",
)
def test_a_new_run_in_an_old_folder_is_another_series(tmp_path: Path) -> None:
    fitted(tmp_path, 2)
    fitted(tmp_path, 2)
    found = looks(tmp_path)
    runs = list(dict.fromkeys(look.identity.run for look in found))
    assert len(runs) == 2
    first_of_second = next(
        look for look in found if look.identity.run == runs[1] and look.identity.view == "top_patches"
    )
    assert first_of_second.earlier() == []
    assert next(value for name, value in shown(first_of_second).items() if name.endswith("/stability")) == "nan"


def test_training_on_with_the_same_trainer_goes_on(tmp_path: Path) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path, logger=False, callbacks=[FilterMonitor()], max_epochs=2)
    model = LittleNet()
    trainer.fit(model, train_loader(), val_loader())
    trainer.fit_loop.max_epochs = 3
    model.train()
    trainer.fit(model, train_loader(), val_loader())
    trainer.validate(model, val_loader(), verbose=False)
    found = looks(tmp_path)
    assert len({look.identity.run for look in found}) == 1
    assert [(look.identity.stage, look.epoch) for look in found] == [
        ("fit", 1), ("fit", 2), ("fit", 3), ("validate", 3)
    ]  # fmt: skip


def test_the_state_of_every_monitor_is_plain(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    states = torch.load(tmp_path / "plain.ckpt", weights_only=True)["callbacks"]
    ours = [state for key, state in states.items() if "Monitor" in key]
    assert len(ours) == len(monitors())
    assert {state["run"] for state in ours} == {looks(tmp_path)[0].identity.run}


def test_a_record_that_is_gone_begins_anew(tmp_path: Path) -> None:
    trainer = fitted(tmp_path / "old", 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "old").rename(tmp_path / "moved")
    fitted(tmp_path / "new", 2, tmp_path / "last.ckpt")
    assert {look.epoch for look in looks(tmp_path / "new")} == {2}


class Scaled(Dataset[tuple[Tensor, int]]):
    """Images of values that no network's normalization explains."""

    def __init__(self, scale: float) -> None:
        self.inner, self.scale = val_loader().dataset, scale

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.inner[index]
        return image * self.scale - 1, label


@pytest.mark.parametrize("kind", [TopPatchesMonitor, DeconvnetMonitor])
def test_patches_are_shown_on_the_scale_that_the_run_began_with(tmp_path: Path, kind: Any) -> None:
    def train(epochs: int, scale: float, ckpt: Path | None = None) -> pl.Trainer:
        # What drives a network most changes from look to look, and with it the range of the patches.
        trainer = quiet_trainer(
            default_root_dir=tmp_path, logger=False, max_epochs=epochs, callbacks=[kind(k=2, features=2)]
        )
        trainer.fit(LittleNet(), train_loader(), DataLoader(Scaled(scale), batch_size=8), ckpt_path=ckpt)
        return trainer

    train(1, 4.0).save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert sum("normalization" in each for each in state.values() if "run" in each) == 1
    train(2, 40.0, tmp_path / "last.ckpt")
    first, second = (look.display.normalization for look in looks(tmp_path))
    assert first.source.startswith("no normalization found; scaled from their range")
    assert (second.mean, second.std, second.source) == (first.mean, first.std, first.source)


def test_arguments_are_what_a_monitor_was_made_with_at_every_look(tmp_path: Path) -> None:
    callbacks = [TopPatchesMonitor(k=3), OcclusionMonitor(images=2, seed=5)]
    before = [plain(monitor.arguments) for monitor in callbacks]
    fitted(tmp_path, 2, callbacks=callbacks)
    assert (before[0]["k"], before[0]["data"], before[1]["images"], before[1]["seed"]) == (3, None, 2, 5)
    views = {"top_patches": before[0], "occlusion": before[1]}
    found = looks(tmp_path)
    assert len(found) == 4
    assert [look.identity.view for look in found if plain(look.arguments) != views[look.identity.view]] == []
