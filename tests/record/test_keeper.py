"""A full disk, a read-only disk: looks wait for room, in order and within bounds."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from record.looks import identity, patches_seen, tree_of

from lightning_cnnviz.record import _files, keeper
from lightning_cnnviz.record.keeper import Keeper
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.views import Seen


class Disk:
    """A disk of so many bytes for one folder, on which files are cut off when it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        real, one_by_one = _files.write_file, threading.Lock()

        def write_file(path: Path, content: bytes, **options: Any) -> None:
            with one_by_one:
                write_one(path, content, **options)

        def write_one(path: Path, content: bytes, **options: Any) -> None:
            room = self.size - sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if len(content) > room:
                scratch = path.with_name(".cnnviz-0123456789abcdef.tmp")
                scratch.write_bytes(content[: max(0, room)])
                scratch.unlink()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, content, **options)

        monkeypatch.setattr("lightning_cnnviz.record._files.write_file", write_file)
        monkeypatch.setattr("lightning_cnnviz.record.store.write_file", write_file)


def test_a_disk_that_fills_and_is_emptied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(monkeypatch, tmp_path, size=120_000)
    kept, looks = Keeper(tmp_path), [patches_seen(seed=seed) for seed in range(8)]
    written = [kept.keep(identity(epoch=epoch), seen) is not None for epoch, seen in enumerate(looks[:6])]
    assert written[0]
    assert not written[-1]
    assert Record(tmp_path).check() == []
    # What is written for nothing would take the room of what could be.
    assert {file.stem for file in (tmp_path / "packs").iterdir()} <= {
        file.stem for file in (tmp_path / "looks").iterdir()
    }
    disk.size = 3_000_000
    assert kept.keep(identity(epoch=6), looks[6]) is not None
    assert [look.epoch for look in Record(tmp_path).looks()] == list(range(7))
    assert Record(tmp_path).check() == []
    for look, seen in zip(Record(tmp_path).looks(), looks, strict=False):
        assert tree_of(look.result["0"]) == tree_of(seen.result["0"])
    kept.close()
    said = [record.message for record in caplog.records]
    assert len([message for message in said if "No space left" in message]) == 1
    assert len([message for message in said if "can be written again" in message]) == 1
    assert not [message for message in said if "lost" in message]


def test_what_is_held_is_bounded_and_its_loss_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(monkeypatch, tmp_path, size=0)
    one = patches_seen()
    monkeypatch.setattr(keeper, "_MOST_HELD", 2 * keeper._size_of(one) + 1)
    kept = Keeper(tmp_path)
    for epoch in range(5):
        assert kept.keep(identity(epoch=epoch), one) is None
    disk.size = 3_000_000
    kept.close()
    assert [look.epoch for look in Record(tmp_path).looks()] == [3, 4]
    assert "3 looks are lost" in caplog.text


def test_a_folder_that_never_is_writable_costs_the_looks_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = Keeper(tmp_path / "file" / "record")
    assert kept.keep(identity(), patches_seen(side=24)) is None
    kept.close()
    assert "1 looks are lost" in caplog.text


def test_without_a_folder_looks_last_as_long_as_the_keeper() -> None:
    kept = Keeper(None)
    assert not kept.lasting
    look = kept.keep(identity(), patches_seen(side=24))
    assert look is not None
    folder = kept.record.folder
    assert folder.is_dir()
    del kept, look
    assert not folder.exists()


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="only results"):
        Keeper(tmp_path).keep(identity("filters"), Seen(result=object()))
