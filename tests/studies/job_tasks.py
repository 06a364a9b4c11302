"""Tasks for the tests of jobs, in a module that worker processes can import."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def draw(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """A result that depends on the description alone; leaves a line for each time that it is made."""
    if context is not None:
        with (Path(context) / "made.txt").open("a") as file:
            file.write(f"{description['seed']} {os.getpid()}\n")
    time.sleep(description.get("seconds", 0))
    # Not the other way round: a dask worker's own threads draw from Python's random numbers, too.
    torch.manual_seed(description["seed"])
    random.seed(description["seed"])
    return {"value": float(torch.rand(())), "other": random.random()}


def fail_on_odd(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    if description["seed"] % 2:
        raise ValueError(f"no odd seeds such as {description['seed']}")
    return draw(description, context)


def interrupt_at(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    if description["seed"] == 2 and not (Path(context) / "go_on").exists():
        raise KeyboardInterrupt
    return draw(description, context)


def kill_once(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """The first worker that is given seed 2 dies of it."""
    mark = Path(context) / "killed"
    if description["seed"] == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(description, context)


def always_kill(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    if description["seed"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(description, context)


def threads(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    return {"threads": torch.get_num_threads()}


def not_plain(description: Mapping[str, Any], context: Any) -> dict[str, Any]:
    return {"value": torch.zeros(2)}
