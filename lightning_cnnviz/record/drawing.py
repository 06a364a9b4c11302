"""Draws beside training, in a process of its own: the run waits for no picture."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Report, Step

__all__ = ["Drawer", "DrawingJob", "receive", "send"]

log = logging.getLogger("lightning_cnnviz")

Encode = Callable[[Report, Step], Any]
Publish = Callable[[list[Any]], None]

_SWITCH = "CNNVIZ_DRAWING"
_MOST_DONE = 8  # pieces of work that lie finished before more are given out
_PATIENCE = 120.0  # seconds that the end of a run waits for one piece of work
_MOST_STARTS = 3  # of the process in one run


@dataclass(frozen=True, kw_only=True)
class DrawingJob:
    """One report to be drawn and encoded.

    Attributes:
        step: When the look was taken.
        encoders: What makes of the report what sinks write; functions that another process can import.
        folder: The record that the look is in; None where the report itself is given.
        look: Its name there.
        last: Whether what is shown at the end of a run is meant, instead of the look itself.
        report: The report, where there is no look.
    """

    step: Step
    encoders: tuple[Encode, ...]
    folder: Path | None = None
    look: str = ""
    last: bool = False
    report: Report | None = None

    def perform(self) -> list[Any]:
        """Draw, and encode for each sink; an empty list where there is nothing to show."""
        report = self.report
        if self.folder is not None:
            look = _record(self.folder).look(self.look)
            report = look.last_report() if self.last else look.report()
        return [] if report is None else [encode(report, self.step) for encode in self.encoders]


@cache
def _record(folder: Path) -> Record:
    return Record(folder)


@dataclass
class _Work:
    job: DrawingJob
    publish: Publish


class Drawer:
    """Draws in a process of its own, one piece after the other, and hands over what is finished when it is asked to.

    The process is started with the first piece. One that dies or hangs costs the picture that it was at: that is said,
    the look stays in the record, and another process takes over.

    `CNNVIZ_DRAWING=inline` in the environment draws in the training process instead.

    Args:
        who: For messages.
    """

    def __init__(self, who: str = "lightning_cnnviz") -> None:
        self._who = who
        self._beside = os.environ.get(_SWITCH, "beside") != "inline"
        self._waiting: deque[_Work] = deque()
        self._done: deque[tuple[_Work, list[Any] | str]] = deque()
        self._under_way: _Work | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._starts = 0
        self._lock = threading.RLock()
        self._news = threading.Event()

    @property
    def is_beside(self) -> bool:
        """Whether pieces are drawn in another process."""
        return self._beside

    @property
    def unfinished(self) -> int:
        """How many pieces have not been handed over yet."""
        with self._lock:
            return len(self._waiting) + len(self._done) + (self._under_way is not None)

    def submit(self, job: DrawingJob, publish: Publish) -> None:
        """Draw soon; `publish` is called with what the encoders have made, by `poll` or `drain`."""
        with self._lock:
            self._waiting.append(_Work(job, publish))
            self._give_out()

    def poll(self) -> None:
        """Hand over what is finished; quick where nothing is."""
        while self._done:
            work, contents = self._done.popleft()
            if isinstance(contents, str):
                log.error("%s: a picture could not be drawn, its look is in the record: %s", self._who, contents)
            elif contents:
                work.publish(contents)
        with self._lock:
            self._give_out()

    def drain(self, *, shows_progress: bool = False) -> None:
        """Wait until everything is drawn and handed over; a process that hangs is ended."""
        waited = time.monotonic()
        with tqdm(total=self.unfinished, desc="drawing", leave=False, disable=not shows_progress, delay=1) as bar:
            while self.unfinished:
                self._news.wait(0.5)
                self._news.clear()
                before = self.unfinished
                self.poll()
                finished = before - self.unfinished
                bar.update(finished)
                if finished:
                    waited = time.monotonic()
                elif time.monotonic() - waited > _PATIENCE and self._process is not None:
                    self._process.kill()
                    waited = time.monotonic()

    def close(self) -> None:
        """End the process; what is not drawn yet stays undrawn, and in the record."""
        with self._lock:
            process, self._process = self._process, None
            self._waiting.clear()
            self._done.clear()
            self._under_way, self._starts = None, 0
        if process is not None:
            self._end(process)

    def _give_out(self) -> None:
        """Give the next piece to the process, if it has none; called with the lock."""
        if self._under_way is not None or not self._waiting or len(self._done) >= _MOST_DONE:
            return
        process = self._started()
        work = self._waiting.popleft()
        if process is None or process.stdin is None:
            self._done.append((work, "the process that draws could not be kept running"))
            return
        self._under_way = work
        try:
            send(process.stdin, work.job)
        except OSError:
            self._lose(process)
        except Exception as error:  # what cannot be pickled
            self._under_way = None
            self._done.append((work, f"{type(error).__name__}: {error}"))

    def _started(self) -> subprocess.Popen[bytes] | None:
        if self._process is not None or self._starts >= _MOST_STARTS:
            return self._process
        self._starts += 1
        package = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        command = [sys.executable, "-m", "lightning_cnnviz.record._drawing_process"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the training process
            )
        except OSError as error:
            log.error("%s: no process could be started to draw in: %s", self._who, error)
            self._starts = _MOST_STARTS
            return None
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()
        return self._process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take what the process has finished, and give it more; runs in a thread."""
        assert process.stdout is not None
        while True:
            try:
                contents: list[Any] | str = receive(process.stdout)
            except Exception:  # it has ended, or what it says cannot be understood
                break
            with self._lock:
                if process is not self._process or self._under_way is None:
                    return
                self._done.append((self._under_way, contents))
                self._under_way = None
                self._give_out()
            self._news.set()
        with self._lock:
            self._lose(process)
        self._news.set()

    def _lose(self, process: subprocess.Popen[bytes]) -> None:
        """Go on without a process that has ended; called with the lock."""
        if process is not self._process:
            return
        self._process = None
        last_words = self._last_words()
        self._end(process)
        if self._under_way is not None:
            self._done.append((self._under_way, f"the process that draws has ended. {last_words}".strip()))
            self._under_way = None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End it, and close what is open to it; it writes nothing but answers, so that nothing is left half done."""
        process.kill()
        process.wait()
        for stream in (process.stdin, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._errors = None
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(5)
        if process.stdout is not None:
            process.stdout.close()

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def send(stream: IO[bytes], value: Any) -> None:
    """Write a value to our own process."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    content = buffer.getbuffer()
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


class _Pickler(pickle.Pickler):
    """Sends of a view what it shows, and not all that it is a view of."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.layout is torch.strided:
            alone = value.detach()
            if alone.untyped_storage().nbytes() != alone.nbytes:
                return _itself, (alone.clone(),)
        return NotImplemented


def _itself(value: Tensor) -> Tensor:
    return value


def receive(stream: IO[bytes]) -> Any:
    """Read a value from our own process.

    Raises:
        EOFError: It has ended.
    """
    size = int.from_bytes(_exactly(stream, 8), "little")
    return pickle.loads(_exactly(stream, size))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = stream.read(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
