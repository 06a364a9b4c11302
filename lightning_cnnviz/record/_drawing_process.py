"""The process that draws beside training: takes pieces of work from its input until that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import Any

import torch

from lightning_cnnviz.record.drawing import receive, send

__all__ = ["main"]


def main() -> None:
    """Draw until the training process ends."""
    # What anything prints would be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    torch.set_num_threads(1)
    while True:
        try:
            job = receive(sys.stdin.buffer)
        except EOFError:
            return
        answer: Any
        try:
            answer = job.perform()
        except Exception:
            answer = traceback.format_exc()
        try:
            send(answers, answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
