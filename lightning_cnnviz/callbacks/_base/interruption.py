"""What is still done when Ctrl-C has stopped training."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_cnnviz.sinks.outlet import printed_log

__all__ = ["end_interrupted"]

log = logging.getLogger("lightning_cnnviz")


def end_interrupted(trainer: Any, pl_module: Any, monitors: Sequence[Any], *, looks: bool) -> None:
    """Let monitors take their last look and finish, after a KeyboardInterrupt; one more Ctrl-C ends this at once.

    Lightning has caught the interrupt and calls `on_exception`, but neither `on_train_end` nor `teardown`. Nothing that
    goes wrong here may replace the interrupt. Other exceptions get no last look, and neither does SIGTERM, which
    leaves a process a few seconds: they belong to the checkpoint.

    Args:
        trainer: The trainer.
        pl_module: Its LightningModule.
        monitors: All of the trainer.
        looks: Whether there is anything new to look at.
    """
    if looks and trainer.world_size > 1:
        looks = False
        if trainer.is_global_zero:
            printed_log.info("No last look: Ctrl-C stops several processes at different places, where they cannot meet")
    try:
        with _interruptible():
            if looks and trainer.is_global_zero:
                printed_log.info("Looking once more at the trained network; Ctrl-C again leaves at once")
            for monitor in monitors if looks else ():
                monitor.on_train_end(trainer, pl_module)
            for monitor in monitors:
                monitor.teardown(trainer, pl_module, "fit")
    except KeyboardInterrupt:
        log.warning("Interrupted again: the last look is left undone")
    except Exception:
        log.error("The last look after Ctrl-C has failed", exc_info=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Listen to Ctrl-C, which Lightning ignores while it shuts down."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
