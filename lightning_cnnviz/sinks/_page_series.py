"""Which looks of a page belong together: runs, and in each run one series for each monitor, stage and data set."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Head", "Look", "list_looks", "may_leave", "series_of"]

_When = tuple[int, int]  # global step and epoch, in which order looks stand
_Content = tuple[str, str, str]  # kind, name and layer of an item


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the page knows of a chunk without loading it.

    Attributes:
        chunk: The file's name, without its ending.
        writer: The sink that wrote it: one of one process.
        time: When it was written, in seconds since 1970.
        source: What tells one monitor's reports from all others.
        title: What a person reads above it.
        label: What a person chooses it by.
        run: The run, where the writer knew it.
        stage: The stage of the look.
        data: The images that were looked at, where that is known.
        epoch: The number of training epochs that were complete.
        step: The number of optimizer steps taken.
        contents: Kind, name and layer of each item.
        scalars: The values of its scalars, in the order in which they stand in `contents`.
        network: The network that was looked at, where that is known.
        packs: The packs of pictures that its items need.
        parts: The files that hold what is long of its items.
        left_out: Whether the items were deleted to keep the page small.
    """

    chunk: str
    writer: str
    time: float
    source: str
    title: str
    label: str
    run: str
    stage: str
    data: str
    epoch: int
    step: int
    contents: tuple[_Content, ...]
    scalars: tuple[float | None, ...]
    network: str = ""
    packs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    left_out: bool = False

    @property
    def when(self) -> _When:
        """The moment of training."""
        return self.step, self.epoch


@dataclass(frozen=True)
class Look:
    """The chunks of one look, in the order in which they were written: in most cases one."""

    heads: tuple[Head, ...]

    @property
    def left_out(self) -> bool:
        """Whether nothing but its scalars is left."""
        return all(head.left_out for head in self.heads)


_Key = tuple[str, str, str, int]  # source, stage, data, number of the run
Series = dict[_Key, list[Look]]


def series_of(heads: Iterable[Head]) -> Series:
    """Sort chunks into series, by source, stage, data and number of the run; oldest look first."""
    found: defaultdict[_Key, defaultdict[_When, list[Head]]] = defaultdict(lambda: defaultdict(list))
    written = sorted(heads, key=lambda head: (head.time, head.chunk))
    runs = _runs(written)
    for head in written:
        found[head.source, head.stage, head.data, runs[_writer(head)]][head.when].append(head)
    return {key: [Look(tuple(looks[when])) for when in sorted(looks)] for key, looks in found.items()}


def list_looks(heads: Iterable[Head]) -> dict[str, Any]:
    """Describe all looks for the page, in types that JSON has."""
    views: dict[str, dict[str, Any]] = {}
    contents: dict[tuple[_Content, ...], int] = {}
    for (source, stage, data, run), looks in series_of(heads).items():
        view = views.setdefault(source, {"view": source, "series": []})
        newest = max((look.heads[-1] for look in looks), key=lambda head: head.time)
        if newest.time >= view.get("time", 0.0):
            view |= {"time": newest.time, "title": newest.title, "label": newest.label}
        told = [_tell(look, contents) for look in looks]
        about = {"stage": stage, "data": data, "run": run, "network": newest.network, "time": newest.time}
        view["series"].append({**about, "looks": told})
    return {"views": list(views.values()), "contents": list(contents)}


def may_leave(series: Series, keep: str) -> list[Look]:
    """Return the looks that may be left out to make room, in the order in which they should go.

    Of each series the 1st, 2nd, 5th, 10th, 20th, 50th look and so on stay longest; the first, the newest and the one
    with the chunk `keep` always stay.
    """
    often: list[Look] = []
    seldom: list[Look] = []
    for looks in series.values():
        for number, look in enumerate(looks[1:-1], start=2):
            if not look.left_out and all(head.chunk != keep for head in look.heads):
                (seldom if _is_round(number) else often).append(look)
    return [look for looks in (often, seldom) for look in sorted(looks, key=lambda look: look.heads[-1].time)]


def _is_round(number: int) -> bool:
    while number % 10 == 0:
        number //= 10
    return number in (1, 2, 5)


def _tell(look: Look, contents: dict[tuple[_Content, ...], int]) -> dict[str, Any]:
    """Describe a look; what it contains is mostly the same at every look of a series, and is told once."""
    values: dict[_Content, float | None] = {}
    for head in look.heads:
        measured = iter(head.scalars)
        values |= {item: next(measured, None) if item[0] == "Scalar" else None for item in head.contents}
    last = look.heads[-1]
    told = {
        "chunks": [head.chunk for head in look.heads if not head.left_out],
        "epoch": last.epoch,
        "step": last.step,
        "time": round(last.time),
        "contents": contents.setdefault(tuple(values), len(contents)),
    }
    scalars = [_brief(value) for (kind, _, _), value in values.items() if kind == "Scalar"]
    return told | ({"values": scalars} if scalars else {})


def _brief(value: float | None) -> float | None:
    """Six figures, which is more than the page shows: the list has every scalar of every look."""
    return None if value is None else float(f"{value:.6g}")


def _writer(head: Head) -> tuple[str, str]:
    return (head.run, "") if head.run else ("", head.writer)


def _runs(written: list[Head]) -> dict[tuple[str, str], int]:
    """Number the runs, from 1, and say in which one each writer wrote.

    Where a writer did not know its run: a process that goes on with a run looks at later moments than the run's first;
    one that looks again at the first moment, or before it, has begun anew.
    """
    begins: defaultdict[tuple[str, str], dict[tuple[str, ...], _When]] = defaultdict(dict)
    for head in written:
        begin, key = begins[_writer(head)], (head.source, head.stage, head.data)
        begin[key] = min(head.when, begin.get(key, head.when))
    runs: list[dict[tuple[str, ...], _When]] = []
    unnamed: list[dict[tuple[str, ...], _When]] = []
    numbers = {}
    for writer, begin in begins.items():
        fits = (run for run in reversed(unnamed) if all(run[key] < begin[key] for key in run.keys() & begin.keys()))
        run = next(fits, None) if writer[0] == "" else None
        if run is None:
            runs.append(run := {})
            if writer[0] == "":
                unnamed.append(run)
        run |= {key: when for key, when in begin.items() if key not in run}
        numbers[writer] = next(number for number in itertools.count(1) if runs[number - 1] is run)
    return numbers
