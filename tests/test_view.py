"""A page made of records: all looks, runs side by side, and again only what is new."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from sinks.harness import listed, page_text
from torch import nn

from lightning_cnnviz import PageSink, TopPatchesMonitor
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.record.identity import LookIdentity, NetworkIdentity
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.views import Seen
from lightning_cnnviz.report import Gallery, Report, Row, Scalar, Tile
from lightning_cnnviz.view import bundle_main, view_main


def add(record: Record, *, run: str, epoch: int) -> None:
    table = layer_table(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 8, 8))
    identity = LookIdentity(
        view="layer_table", epoch=epoch, global_step=epoch, run=run, network=NetworkIdentity(type="Sequential")
    )
    record.add(identity, Seen(result=table))


def test_records_become_one_page_and_later_only_what_is_new_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = Record(tmp_path / "one" / "record"), Record(tmp_path / "two")
    add(one, run="a", epoch=1)
    add(two, run="b", epoch=1)
    two.add(LookIdentity(view="study", run="b"), Report("study", title="A study", items=(Scalar("best", 0.5),)))
    out = tmp_path / "page"
    command = [str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out)]
    assert view_main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == ["layer_table, fit, epoch 1"] * 2 + ["study, fit, epoch 0"]
    assert printed[-1] == f"Page, to open in a browser: {(out / 'index.html').resolve()}"
    text = page_text(out / "index.html")
    series = [key for series in listed(out).values() for key in series]
    assert [run for _, run, _ in series] == [1, 2, 2]  # the second record's two
    assert '"network":"Sequential"' in text
    add(one, run="a", epoch=2)
    assert view_main(command) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == ["layer_table, fit, epoch 2"]
    assert len(list((out / "looks").iterdir())) == 4


def test_a_page_of_a_record_has_what_the_runs_own_page_has(tmp_path: Path) -> None:
    monitor = TopPatchesMonitor(k=2, every_n_epochs=1, sinks=[PageSink(tmp_path / "run")])
    trainer = quiet_trainer(callbacks=[monitor], max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    assert view_main([str(tmp_path / "run"), "--out", str(tmp_path / "view")]) == 0

    def shown(folder: Path) -> dict[str, list[set[tuple[str, str]]]]:
        series = [(view, key, looks) for view, found in listed(folder).items() for key, looks in found.items()]
        return {f"{view} {key}": [{*map(tuple, look["names"])} for look in looks] for view, key, looks in series}

    assert shown(tmp_path / "view") == shown(tmp_path / "run")
    assert "Table" in {kind for looks in shown(tmp_path / "view").values() for kind, _ in looks[-1]}


def test_a_damaged_look_is_said_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path / "record")
    weights = torch.zeros(2, 1, 3, 3)
    record.add(LookIdentity(view="filters", global_step=1), Seen(result=[weights]))
    for pack in (tmp_path / "record" / "packs").iterdir():
        pack.unlink()
    add(record, run="a", epoch=1)
    assert view_main([str(tmp_path), "--out", str(tmp_path / "page")]) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("filters, fit, epoch 0: look ")
    assert "is damaged" in first
    assert second == "layer_table, fit, epoch 1"


def test_a_folder_without_a_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "looks").mkdir()  # as a page has one, too
    with pytest.raises(SystemExit):
        view_main([str(tmp_path)])
    assert f"there is no record in {tmp_path}" in capsys.readouterr().err


def test_one_file_holds_the_looks_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, file = Record(tmp_path / "record"), tmp_path / "sent" / "one.html"
    for epoch in (1, 2):
        add(record, run="a", epoch=epoch)
    tile = Tile(torch.zeros(3, 4, 4, dtype=torch.uint8))
    galleries = tuple(Gallery(name, (Row("", (tile,), channel=0),), layer=name) for name in ("conv1", "conv2"))
    record.add(LookIdentity(view="study", run="a"), Report("study", title="A study", items=galleries))
    assert bundle_main([str(tmp_path), "--out", str(file), "--layer", "conv2"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == ["layer_table, fit, epoch 2", "study, fit, epoch 0"]
    text = file.read_text(encoding="utf-8")
    assert '"name":"conv2"' in text
    assert '"name":"conv1"' not in text
    assert "strict-dynamic" not in text
    assert "'self'" not in text
    assert bundle_main([str(tmp_path), "--out", str(file), "--view", "layer_table", "--epoch", "1", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit):
        bundle_main([str(tmp_path), "--view", "nothing"])
    assert "no look is of {'view': ['nothing']}; there are {'view': ['layer_table', 'study']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bundle_main([str(tmp_path), "--out", str(file), "--layer", "conv3"])
    assert "no look is of a layer 'conv3'. Did you mean 'conv2' or 'conv1'" in capsys.readouterr().err
    (tmp_path / "a_file").touch()
    for out, message in ((tmp_path, "is a folder; give a file"), (tmp_path / "a_file" / "x.html", "cannot be written")):
        with pytest.raises(SystemExit):
            bundle_main([str(tmp_path), "--out", str(out)])
        assert message in capsys.readouterr().err
