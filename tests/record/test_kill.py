"""Processes that are killed while they write, and several that write at once, lose nothing of what was added."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from record.looks import identity, patches_seen, tree_of
from record.training_to_kill import main

from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.views import Seen
from lightning_cnnviz.sinks._page_folder import PageFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

Look = tuple[str, int]  # view, epoch


def seen_by_kind() -> dict[str, list[Seen]]:
    """What is added again and again: much of it new, some of it not."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    return {
        "top_patches": [patches_seen(side=40, seed=seed) for seed in range(4)],
        "layer_table": [Seen(result=layer_table(net, (1, side, side))) for side in (8, 9, 10)],
    }


def digest(result: object) -> str:
    return hashlib.sha256(tree_of(result).encode()).hexdigest()


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Let a child do some work that is told where to announce; return its process id, and where to listen."""
    listen, announce = os.pipe()
    child = os.fork()
    if child:
        os.close(announce)
        return child, listen
    code = 1
    try:
        os.close(listen)
        work(announce)
        code = 0
    finally:
        os._exit(code)  # without what the tests' process does at its end


def announced(listen: int) -> list[Look]:
    """What a child has announced until it ended."""
    with os.fdopen(listen, "r") as lines:
        words = [line.split() for line in lines.read().splitlines()]
    return [(view, int(epoch)) for view, epoch in words]


def add_looks(folder: Path, views: dict[str, list[Seen]], first: int, last: int, announce: int, run: str = "") -> None:
    torch.set_num_threads(1)
    record = Record(folder, lasting=False)  # what outlives the machine's end is the disk's affair
    for epoch in range(first, last):
        for view, seen in views.items():
            record.add(identity(view, epoch=epoch, global_step=epoch, name=run), seen[epoch % len(seen)])
            os.write(announce, f"{view} {epoch}\n".encode())


@pytest.mark.fault(
    "processes",
    "a process is killed (SIGKILL) while it adds looks to a record, 50 times over",
    "the record is whole each time, and has every look that was announced",
)
@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_processes_that_are_killed_lose_no_look_that_was_announced(count: int, tmp_path: Path) -> None:
    views = seen_by_kind()
    whole = Record(tmp_path / "whole", lasting=False)
    expected = {
        (view, place): digest(whole.add(identity(view, epoch=place), seen).result)
        for view, kinds in views.items()
        for place, seen in enumerate(kinds)
    }
    chance = random.Random(0)
    folder, there, epoch = tmp_path / "killed", list[Look](), 0
    for _ in range(count):
        child, listen = forked(lambda announce, first=epoch: add_looks(folder, views, first, 1000, announce))  # type: ignore[misc]
        time.sleep(chance.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there += announced(listen)
        # The next process goes on where the record ends, in the middle of an epoch or not.
        epoch = max((look.epoch for look in Record(folder).looks()), default=-1) + 1 if folder.exists() else 0
    record = Record(folder)
    assert record.check() == []
    found = {(look.identity.view, look.epoch): digest(look.result) for look in record.looks()}
    assert len(there) > count // 10  # how many depends on the machine
    assert sorted(set(there) - found.keys()) == []
    wrong = [key for key, value in found.items() if value != expected[key[0], key[1] % len(views[key[0]])]]
    assert wrong == []


def add_and_die(folder: Path, seen: Seen, epoch: int, at: int, announce: int) -> None:
    """Add a look, and be killed at a file that is given its name: in its middle, whole but nameless, or named."""
    torch.set_num_threads(1)
    real, count = Path.replace, itertools.count()

    def replace(scratch: Path, target: Path) -> Path:
        now = next(count) == at // 3
        if now and at % 3 == 0:
            scratch.write_bytes(scratch.read_bytes()[: scratch.stat().st_size // 2])
        if not now or at % 3 == 2:
            target = real(scratch, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    Path.replace = replace  # type: ignore[method-assign, assignment]
    Record(folder, lasting=False).add(identity(epoch=epoch, global_step=epoch), seen)
    os.write(announce, f"top_patches {epoch}\n".encode())


@pytest.mark.fault(
    "processes",
    "a process is killed in the middle of writing a file of a record, or before or after the file has its name",
    "the record is whole, and has every look that was announced",
)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_at_any_file_leaves_a_whole_record(every: int, tmp_path: Path) -> None:
    there: list[Look] = []
    expected, ends = {}, []
    for at in [*range(0, 60, every), 60]:
        seen = patches_seen(side=40, seed=at)
        child, listen = forked(lambda announce: add_and_die(tmp_path / "record", seen, at, at, announce))  # noqa: B023
        there += announced(listen)
        ends.append(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
        record = Record(tmp_path / "record")
        assert record.check() == []
        expected[at] = digest(Record(tmp_path / "whole" / str(at), lasting=False).add(identity(), seen).result)
    assert ends[0]  # the very first file
    assert not ends[-1]  # a look has fewer files than that
    found = {look.epoch: digest(look.result) for look in record.looks()}
    assert sorted({epoch for _, epoch in there} - found.keys()) == []
    assert [epoch for epoch, value in found.items() if value != expected[epoch]] == []


@pytest.mark.fault(
    "processes",
    "two processes write one record at the same time",
    "both series are whole",
)
def test_two_processes_that_write_at_once_have_both_their_series_whole(tmp_path: Path) -> None:
    views = seen_by_kind()
    children = [
        forked(lambda announce, name=name: add_looks(tmp_path / "record", views, 0, 20, announce, name))  # type: ignore[misc]
        for name in ("one", "other")
    ]
    there = [announced(listen) for _, listen in children]
    assert [os.waitpid(child, 0)[1] for child, _ in children] == [0, 0]
    record = Record(tmp_path / "record")
    assert record.check() == []
    for name, own in zip(("one", "other"), there, strict=True):
        assert [(look.identity.view, look.epoch) for look in record.looks(name=name)] == own
        assert len(own) == 40
    same: dict[Look, set[str]] = {}
    for look in record.looks():
        same.setdefault((look.identity.view, look.epoch), set()).add(digest(look.result))
    assert {len(values) for values in same.values()} == {1}


def test_a_record_that_is_thinned_while_it_is_written_stays_whole(tmp_path: Path) -> None:
    views = seen_by_kind()
    child, listen = forked(lambda announce: add_looks(tmp_path / "record", views, 1, 30, announce))
    with os.fdopen(listen) as lines:
        assert lines.readline()
        record = Record(tmp_path / "record")
        gone = [look_id for _ in iter(lines.readline, "") for look_id in record.thin(0)]
    assert os.waitpid(child, 0)[1] == 0
    assert gone
    assert Record(tmp_path / "record").check() == []
    there = [look.epoch for look in record.looks(view="layer_table")]
    assert len(gone) + len(record.looks()) == 2 * 29
    assert [epoch for epoch in (1, 2, 5, 10, 20, 29) if epoch not in there] == []


@pytest.mark.fault(
    "processes",
    "a training is killed (SIGKILL) in its third epoch, and resumed from its newest checkpoint",
    "its record has the looks of a training that was not killed, value for value, and its page shows each of them",
)
def test_a_training_that_is_killed_and_resumed_has_the_looks_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    victim, log = processes.start(main, killed, 4)
    while len(lines := re.findall(r"^looks: (.*)\n", log.read_text(), re.MULTILINE)) < 2:
        assert victim.is_alive()
        time.sleep(0.02)
    said = lines[1].split()
    time.sleep(0.05)  # it is in its third epoch
    victim.kill()
    victim.join()
    there = Record(killed / "cnnviz" / "record").looks()
    assert sorted(set(said) - {look.id for look in there}) == []
    assert len(said) >= 4
    processes.run(main, (killed, 4), (whole, 4))
    record, expected = Record(killed / "cnnviz" / "record"), Record(whole / "cnnviz" / "record").looks()
    assert record.check() == []
    newest = {(look.identity.series[1:], look.identity.moment): look for look in record.looks()}
    assert len({look.identity.run for look in newest.values()}) == 1
    wrong = [
        look.id
        for look in expected
        if digest(look.result) != digest(newest[look.identity.series[1:], look.identity.moment].result)
    ]
    assert len(expected) == len(newest)
    assert wrong == []
    page = PageFolder(killed / "cnnviz")
    page.scan()
    shown = {(head.source, head.epoch) for head in page.heads.values()}
    assert shown == {(look.identity.source, look.epoch) for look in newest.values()}
