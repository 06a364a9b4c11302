"""Calls functions in fresh processes, forked from one that has imported Lightning and us: that alone takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lightning.pytorch",
        "torchvision.models",
        "matplotlib.figure",
        "lightning_cnnviz.callbacks.suitable",
        "lightning_cnnviz.finetune.module",
        "lightning_cnnviz.finetune.data",
    ]
)


def run(function: Callable[..., Any], *calls: Sequence[Any], timeout: float = 300) -> list[str]:
    """Call a function of a module once with each of some arguments, at the same time; return what each call wrote."""
    processes = [start(function, *arguments) for arguments in calls]
    end = time.monotonic() + timeout
    for process, _ in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [process for process, _ in processes if process.exitcode is None]
    for process in late:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    said = [log.read_text(errors="replace") for _, log in processes]
    for _, log in processes:
        log.unlink()
    ends = "\n".join(each[-2000:] for each in said)
    assert not late, f"did not end in {timeout} s:\n{ends}"
    assert [process.exitcode for process, _ in processes] == [0] * len(calls), ends
    return said


def start(function: Callable[..., Any], *arguments: Any) -> tuple[ForkServerProcess, Path]:
    """Begin to call a function in a process that leads its own group; return it, and the file that it writes to."""
    handle, log = tempfile.mkstemp()
    os.close(handle)
    process = _CONTEXT.Process(target=_call, args=(log, dict(os.environ), function, arguments))
    process.start()
    return process, Path(log)


def _call(log: str, environment: dict[str, str], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    function(*arguments)
