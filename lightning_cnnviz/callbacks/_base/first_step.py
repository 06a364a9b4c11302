"""What a monitor does in a training step: in the first one, what does not suit it stops the run on every rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from lightning_cnnviz.callbacks._base.subscriber import Subscriber
from lightning_cnnviz.core.data.distributed import together

__all__ = ["abandon", "in_step"]


def in_step(subscriber: Subscriber, trainer: Any, passes: ExitStack, work: Callable[[], None]) -> None:
    """Do some of a step's work, unless the subscriber has failed; every rank comes here.

    In the first step ranks meet, and what is unsuitable (a ValueError) stops the run on all of them: nothing is lost
    yet. Any other failure switches the subscriber off.

    Args:
        subscriber: Whose work it is.
        trainer: The trainer.
        passes: What watches the step; it is left without its results where the work has failed on any rank.
        work: Does it.
    """
    first = _is_first(trainer)
    try:
        with together("the first step") if first else nullcontext():
            if not subscriber.failed:
                work()
    except Exception as error:
        abandon(passes, error)
        unsuitable = isinstance(error, ValueError) or getattr(error, "unsuitable", False)
        with subscriber.guard(raises=first and unsuitable):
            raise error


def abandon(passes: ExitStack, error: BaseException) -> None:
    """Leave what watches a step, as through an error."""
    with suppress(type(error)):
        passes.__exit__(type(error), error, None)


def _is_first(trainer: Any) -> bool:
    """Whether nothing is lost yet if a failure stops the run."""
    return bool(trainer.global_step <= 1 and trainer.fit_loop.batch_idx == 0)
