"""Hands work to a service that may be slow, or hang, without waiting for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Handover"]

log = logging.getLogger("lightning_cnnviz")

_PATIENCE = 10.0  # seconds that whoever hands over a piece of work waits for it
_LAST_PATIENCE = 10.0  # seconds that the end of a run waits for all of it
_MOST_WAITING = 64


@dataclass
class _Job:
    work: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    is_late: bool = False


class Handover:
    """Does pieces of work one after the other, on a thread of its own.

    A piece that is done in ten seconds is done as if there were no thread: its errors are raised. Once one takes
    longer, nobody waits for the others, until the service has caught up.

    Attributes:
        service: Its name, for messages.
        is_patient: Whether each piece is waited for, however long it takes: where no training is held up.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.is_patient = False
        self._waiting: deque[_Job] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_late = self._gave_up = False
        self._failed = 0

    def put(self, work: Callable[[], None]) -> None:
        """Do a piece of work after those before it.

        Raises:
            OSError: Too many wait already.
            Exception: What the work has raised, in time.
        """
        if self.is_patient:
            work()
            return
        with self._change:
            if len(self._waiting) >= _MOST_WAITING:
                raise TimeoutError(f"{self.service} does not answer, and {_MOST_WAITING} reports wait for it")
            self._is_late &= bool(self._waiting)
            self._gave_up &= self._is_late
            job = _Job(work, is_late=self._is_late)
            self._waiting.append(job)
            self._change.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name=f"cnnviz to {self.service}")
            self._thread.start()
        if not self._is_late and not job.done.wait(_PATIENCE):
            with self._change:
                self._is_late = job.is_late = not job.done.is_set()
            if self._is_late:
                log.warning(
                    "%s has not taken a report within %g s: the run goes on, and reports wait for it",
                    self.service,
                    _PATIENCE,
                )
        if job.done.is_set() and job.error is not None and not job.is_late:
            raise job.error

    def drain(self) -> int:
        """Wait a while until all is done; return how many pieces are not, or have failed since nobody waited."""
        end = time.monotonic() + (0 if self._gave_up else _LAST_PATIENCE)
        with self._change:
            while self._waiting and time.monotonic() < end:
                self._change.wait(end - time.monotonic())
            self._gave_up = bool(self._waiting)
            failed, self._failed = self._failed, 0
            return failed + len(self._waiting)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    self._change.wait()
                job = self._waiting[0]
            try:
                job.work()
            except Exception as error:
                job.error = error
            with self._change:
                self._waiting.popleft()
                if job.error is not None and job.is_late:
                    self._failed += 1
                job.done.set()
                self._change.notify_all()
