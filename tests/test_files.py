"""Files are whole at any moment, on the disk before they have their name, and no more public than what was there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_cnnviz import files
from lightning_cnnviz.files import sweep, whole_file, write_file
from lightning_cnnviz.record.data import save
from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.show import ReportFigure
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.studies.jobs import write_json

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links are those of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_page(path: Path) -> None:
    page = PageSink(path.parent)
    page.open([], path.parent)
    page.write(Report("view", title="View", items=(Scalar("a", 1.0),)), Step(epoch=0, global_step=0))


WRITERS = {
    "found.safetensors": lambda path: save({"a": 1}, path),
    "fig.csv": lambda path: ReportFigure.of(Report("view", title="View", items=(Scalar("a", 1.0),))).save(path),
    "result.json": lambda path: write_json(path, {"a": 1}),
    "index.html": write_page,
    "plain.txt": lambda path: write_file(path, b"text"),
}


@pytest.mark.fault(
    "disk",
    "a private file (0600) is written anew",
    "it stays private",
)
@posix
@pytest.mark.parametrize("name", WRITERS)
def test_a_private_file_stays_private(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    if name == "index.html":
        path.write_bytes(content + b"<!-- an older one -->")  # a page that is as it should be is not written again
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.chmod(0o600)
    WRITERS[name](path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == content


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@posix
def test_what_a_private_file_will_hold_is_at_no_moment_for_others(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch(0o640)
    path.chmod(0o640)
    with whole_file(path) as file:
        assert os.stat(file.name).st_mode & 0o777 == 0o640
    assert path.stat().st_mode & 0o777 == 0o640


@posix
def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, path = tmp_path / "precious", tmp_path / "a"
    target.write_bytes(b"mine")
    path.symlink_to(target)
    write_file(path, b"new")
    assert (target.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"mine", b"new", False)


@pytest.mark.fault(
    "disk",
    "somebody plants a link where a file is about to be written",
    "nothing is written through it",
)
@posix
def test_a_link_that_was_planted_in_the_place_of_the_scratch_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _bytes: "0" * 16)
    (tmp_path / f".cnnviz-{'0' * 16}.tmp").symlink_to(target)
    with pytest.raises(FileExistsError, match="cnnviz-0000"):
        write_file(tmp_path / "a", b"new")
    assert target.read_bytes() == b"mine"


def test_scratch_names_are_not_foreseeable_and_fit_wherever_the_name_fits(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    seen = []
    for _ in range(2):
        with whole_file(path) as file:
            seen.append(file.name)
    assert seen[0] != seen[1]
    assert len(path.name) == 255
    assert names(tmp_path) == [path.name]


@pytest.mark.fault(
    "disk",
    "writing a file fails in its middle",
    "what stood there before still does",
)
def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, b"old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"ne")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.fault(
    "disk",
    "power fails while a file is written anew",
    "it has its old content or its new one: its data is on the disk (fsync) before it is renamed",
)
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number))[1])
    monkeypatch.setattr(os, "replace", lambda one, other: (done.append("rename"), rename(one, other))[1])
    write_file(tmp_path / "a", b"new")
    assert done[:2] == ["sync", "rename"]
    done.clear()
    write_file(tmp_path / "a", b"new", lasting=False)
    assert done == ["rename"]


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EINVAL, False)])
@pytest.mark.fault(
    "disk",
    "the disk says only when it is asked to keep the data (fsync) that it is full",
    "the write fails and the old file stays",
)
def test_a_disk_that_says_only_then_that_it_is_full_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fails)
    if told:
        with pytest.raises(OSError, match=os.strerror(number)):
            write_file(path, b"new")
    else:  # this file system cannot be asked
        write_file(path, b"new")
    assert path.read_bytes() == (b"old" if told else b"new")
    assert names(tmp_path) == ["a"]


@pytest.mark.fault(
    "disk",
    "a process is killed while it writes a file",
    "what it left is taken away",
)
@posix
def test_what_a_killed_process_left_is_taken_away_when_it_is_surely_dead(tmp_path: Path) -> None:
    write = "import sys, time; from pathlib import Path; from lightning_cnnviz.files import whole_file\n"
    write += "with whole_file(Path(sys.argv[1])) as file: file.write(b'ha'); print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", write, str(tmp_path / "a")]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (left,) = tmp_path.iterdir()
    others = tmp_path / ".a.1234.tmp", tmp_path / "notes.tmp"
    for other in others:
        other.touch()
    sweep(tmp_path)
    assert left.exists()  # somebody may be writing it
    for path in (left, *others):
        os.utime(path, (time.time() - 7200,) * 2)
    sweep(tmp_path)
    assert names(tmp_path) == [".a.1234.tmp", "notes.tmp"]  # not ours
    sweep(tmp_path / "nowhere")
