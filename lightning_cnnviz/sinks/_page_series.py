"""Which looks of a page belong together: runs, and in each run one series for each monitor, stage and data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Head", "Look", "Runs", "may_leave", "series_of"]

_When = tuple[int, int]  # global step and epoch, in which order looks stand
_Content = tuple[str, str, str]  # kind, name and layer of an item
_Writer = tuple[str, str]  # the run, where it is known, else the sink
_Begin = dict[tuple[str, str, str], _When]  # the first moment of each source, stage and data


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
        parts: The files that hold its items: one that has the chunk's name, and those of what is long. Before format 3
            of the page, the items stood in the chunk itself.
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

    @property
    def knows(self) -> tuple[str, str]:
        """What tells the run: its name, where the writer knew it, else the writer."""
        return (self.run, "") if self.run else ("", self.writer)


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
    known = Runs()
    for head in written:
        known.add(head)
    runs = known.numbers()
    for head in written:
        found[head.source, head.stage, head.data, runs[head.knows]][head.when].append(head)
    return {key: [Look(tuple(looks[when])) for when in sorted(looks)] for key, looks in found.items()}


@dataclass
class _Wrote:
    """What is kept of all that one writer has written: when it wrote first, and the moments at which it began."""

    first: tuple[float, str]
    begin: _Begin = field(default_factory=dict)


class Runs:
    """Numbers the runs, from 1, in the order in which they were written.

    Where a writer did not know its run: a process that goes on with a run looks at later moments than the run's first;
    one that looks again at the first moment, or before it, has begun anew.
    """

    def __init__(self) -> None:
        self._writers: dict[_Writer, _Wrote] = {}

    def add(self, head: Head) -> None:
        """Take note of a chunk."""
        wrote = self._writers.setdefault(head.knows, _Wrote((head.time, head.chunk)))
        wrote.first = min(wrote.first, (head.time, head.chunk))
        key = (head.source, head.stage, head.data)
        wrote.begin[key] = min(head.when, wrote.begin.get(key, head.when))

    def numbers(self) -> dict[_Writer, int]:
        """The number of the run that each writer wrote in, by `Head.knows`."""
        numbers, unnamed, count = dict[_Writer, int](), dict[int, _Begin](), 0
        for writer, wrote in sorted(self._writers.items(), key=lambda item: item[1].first):
            runs = () if writer[0] else reversed(unnamed.items())
            number = next((number for number, begin in runs if _goes_on(begin, wrote.begin)), None)
            if number is None:
                number = count = count + 1
            if not writer[0]:
                unnamed[number] = wrote.begin | unnamed.get(number, {})
            numbers[writer] = number
        return numbers


def _goes_on(begin: _Begin, later: _Begin) -> bool:
    return all(begin[key] < later[key] for key in begin.keys() & later.keys())


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
