"""When a monitor looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """After which epochs or steps of a fit a look is due.

    Attributes:
        every_n_epochs: After every n-th epoch, and when training ends; every epoch where nothing else is given.
        every_n_steps: After every n-th optimizer step instead, and when training ends.
        epochs: After these epochs instead, counted from 1, and no others; `"log"`: after epochs 1, 2, 5, 10, 20, 40,
            80, ... and when training ends; or `"last"`: once, when training has ended.

    Raises:
        ValueError: There is no such epoch or step, or two of them are given that exclude each other.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    epochs: list[int] | Literal["log", "last"] | None = None

    def __post_init__(self) -> None:
        if self.every_n_epochs is not None and self.every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={self.every_n_epochs}: give 1 or more, or epochs=[...] for chosen epochs")
        if self.every_n_steps is not None:
            if self.every_n_steps < 1:
                raise ValueError(f"every_n_steps={self.every_n_steps}: give 1 or more optimizer steps")
            for name, value in (("every_n_epochs", self.every_n_epochs), ("epochs", self.epochs)):
                if value is not None:
                    raise ValueError(f"every_n_steps={self.every_n_steps} and {name}={value!r}: give one of them")
        if isinstance(self.epochs, str):
            wrong = self.epochs not in ("log", "last")
        else:
            wrong = self.epochs is not None and (not self.epochs or min(self.epochs) < 1)
        if wrong:
            raise ValueError(
                f"epochs={self.epochs!r}: give epochs counted from 1, for example [1, 2, 5, 10], or "
                '"log" for 1, 2, 5, 10, 20, 40, ... and the end, or "last" for the end alone'
            )

    @property
    def ends(self) -> bool:
        """Whether the network that training ends with is looked at, whatever ends it."""
        return not isinstance(self.epochs, list)

    def first_epoch(self, trainer: Any) -> int | None:
        """Return after which epoch the first look is there, counted from 1; None where that is not known."""
        if self.every_n_steps is not None:
            steps = _steps_of_epoch(trainer)
            return None if steps is None else math.ceil(self.every_n_steps / steps)
        if isinstance(self.epochs, list):
            return min(self.epochs)
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        first = {"log": 1, "last": last}.get(self.epochs or "", self.every_n_epochs or 1)
        return first if last is None or first is None else min(first, last)

    def due(self, trainer: Any) -> bool:
        """Whether a look is due in the epoch that the trainer is in, at its end or at a validation."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True  # before training everything is tried once, and shown nowhere
        if self.every_n_steps is not None or self.epochs == "last":
            return False
        epoch = trainer.current_epoch + 1
        if isinstance(self.epochs, list):
            return epoch in self.epochs
        if epoch == trainer.max_epochs:
            return True  # here rather than when training has ended: validation's own passes serve
        if self.epochs == "log":
            # Where some epochs have no validation, the next that has one stands for them.
            return any(map(_is_log_spaced, range(epoch - (trainer.check_val_every_n_epoch or 1) + 1, epoch + 1)))
        return bool(epoch % (self.every_n_epochs or 1) == 0)

    def due_between(self, before: int, now: int) -> bool:
        """Whether a look is due after the optimizer steps from `before` to `now`; a batch may take none, or several."""
        return self.every_n_steps is not None and now // self.every_n_steps > before // self.every_n_steps

    def never_validated(self, trainer: Any) -> str | None:
        """Say why no look can fall together with a validation; None where one can."""
        every = trainer.check_val_every_n_epoch
        if isinstance(self.epochs, list) and every and not any(epoch % every == 0 for epoch in self.epochs):
            return f"epochs={self.epochs}: validation runs every {every} epochs (check_val_every_n_epoch)"
        return None


def _steps_of_epoch(trainer: Any) -> int | None:
    """How many optimizer steps an epoch has, where training is about to begin; None where that is not known."""
    batches = trainer.num_training_batches  # endless until the data are there
    simple = trainer.lightning_module.automatic_optimization and len(trainer.optimizers) == 1
    if trainer.global_step > 0 or not simple or not 0 < batches < math.inf:
        return None
    return math.ceil(int(batches) / int(trainer.accumulate_grad_batches))


def _is_log_spaced(epoch: int) -> bool:
    """Whether it is 1, 2, or 5 times a power of 2."""
    fives, rest = divmod(epoch, 5)
    return epoch in (1, 2) or (rest == 0 and fives > 0 and fives & (fives - 1) == 0)
