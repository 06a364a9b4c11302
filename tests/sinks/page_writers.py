"""Processes that write looks onto a page, and say so: `python page_writers.py FOLDER together|killed`.

They are forked from this one, since each that starts by itself would load torch for seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lightning_cnnviz.report import Gallery, Report, Row, Scalar, Step, Tile
from lightning_cnnviz.sinks.page import PageSink

KILLS, LOOKS = 20, 30


def write(folder: Path, view: str, first: int, said: int) -> None:
    """Write looks, and say each of them once it is written."""
    sink = PageSink(folder)
    for number in range(first, first + LOOKS):
        torch.manual_seed(number)
        tiles = tuple(Tile(torch.randint(256, (3, 40, 40), dtype=torch.uint8)) for _ in range(9))
        items = (Gallery("conv", (Row("channel 0", tiles),)), Scalar("number", number))
        sink.write(Report(view, title=view, items=items), Step(epoch=number, global_step=number))
        os.write(said, f"{view} {number}\n".encode())


def start(folder: Path, view: str, first: int, said: int) -> int:
    """Start a process that writes; return its number."""
    process = os.fork()
    if process == 0:
        write(folder, view, first, said)
        os._exit(0)
    return process


def main(folder: Path, how: str) -> None:
    """Start the writers, two at a time or one after another, and print what they said."""
    hear, said = os.pipe()
    lines = b""
    if how == "together":
        for process in [start(folder, view, 0, said) for view in ("one", "other")]:
            os.waitpid(process, 0)
    else:
        chance = random.Random(0)
        for kill in range(KILLS):
            process = start(folder, "view", 1000 * kill, said)
            lines += os.read(hear, 100_000)
            time.sleep(chance.random() / 20)  # a look takes about 10 ms
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    os.close(said)
    while more := os.read(hear, 100_000):
        lines += more
    print(lines.decode(), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
