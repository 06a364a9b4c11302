"""One sink as a run writes to it: what it does not take now is tried again, and people are told once."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink

__all__ = ["Destination"]

log = logging.getLogger("lightning_cnnviz")

_MOST_WAITING = 64  # reports that wait until they can be written
_MOST_TRIES = 3  # of a report that a sink refuses for another reason than its disk or its network


@dataclass
class _Waiting:
    contents: list[Any]
    step: Step
    is_whole: bool = True
    tries: int = 0


class Destination:
    """Writes to one sink for all who show there; an error that passes costs nothing, and one that does not no run.

    A report that the sink's disk or network does not take waits, in order, and is tried again with the next one. One
    that fails otherwise is tried three times, and is then lost to this sink alone. The first failure is said in one
    line, whoever shows there; at the end, what is lost.

    Args:
        sink: Where reports go.

    Attributes:
        users: How many show there.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink, self.users = sink, 0
        self._waiting: deque[_Waiting] = deque()
        self._lost = 0
        self._is_failing = False
        self._error = ""

    def encode_and_put(self, who: str, report: Report, step: Step, *, raises: bool = False) -> None:
        """Encode a report here, and write it."""
        try:
            content = self.sink.encode(report, step)
        except Exception as error:  # it would fail again
            if raises:
                raise
            self._say(who, f"a report could not be encoded: {error}", error)
            self._lost += 1
            return
        self.put(who, content, step, raises=raises)

    def put(self, who: str, content: Any, step: Step, *, raises: bool = False) -> None:
        """Write what was encoded, after what could not be written before; a look that is joined, when it ends."""
        last = self._waiting[-1] if self._waiting else None
        if last is not None and not last.is_whole and last.step == step:
            last.contents.append(content)
            return
        for each in self._waiting:
            each.is_whole = True
        self._waiting.append(_Waiting([content], step, is_whole=not self.sink.joins_looks))
        self.write_waiting(who, raises=raises)
        while len(self._waiting) > _MOST_WAITING:
            self._lost += len(self._waiting.popleft().contents)

    def end_look(self, who: str, *, raises: bool = False) -> None:
        """Write the reports of one moment that were waiting for each other."""
        if self._waiting and not self._waiting[-1].is_whole:
            self._waiting[-1].is_whole = True
            self.write_waiting(who, raises=raises)

    def write_waiting(self, who: str, *, raises: bool = False) -> None:
        """Try to write all that waits but for a look that goes on."""
        refused: list[_Waiting] = []
        while self._waiting and self._waiting[0].is_whole:
            first = self._waiting[0]
            try:
                self.sink.write_look(first.contents, first.step)
            except OSError as error:
                if raises:
                    raise
                self._say(who, str(error), error)
                break
            except Exception as error:
                if raises:
                    raise
                self._say(who, str(error), error)
                self._waiting.popleft()
                first.tries += 1
                if first.tries < _MOST_TRIES:
                    refused.append(first)
                else:
                    self._lost += len(first.contents)
                continue
            self._waiting.popleft()
            if self._is_failing and not refused and not self._waiting:
                log.warning("%s: %s can be written to again", who, self._name)
                self._is_failing = False
        self._waiting.extendleft(reversed(refused))

    def close(self, who: str, *, raises: bool = False) -> None:
        """Try a last time, and say what is lost."""
        for each in self._waiting:
            each.is_whole = True
        self.write_waiting(who, raises=raises)
        self.sink.finish()
        lost = self._lost + sum(len(each.contents) for each in self._waiting)
        self._waiting.clear()
        if lost:
            reports = "1 report is" if lost == 1 else f"{lost} reports are"
            remedy = f". {self.sink.remedy}" if self.sink.remedy else ""
            log.error("%s: %s lost to %s: %s%s", who, reports, self._name, self._error, remedy)
        self._lost, self._is_failing = 0, False

    def _say(self, who: str, text: str, error: Exception) -> None:
        self._error = text
        if not self._is_failing:
            log.error(
                "%s: %s cannot be written to, the run goes on: %s. What it misses is written when that is possible "
                "again, and what is not is named at the end",
                who,
                self._name,
                text,
            )
        log.debug("why %s cannot be written to", self._name, exc_info=error)
        self._is_failing = True

    @property
    def _name(self) -> str:
        return type(self.sink).__name__
