"""How long a trainer's run is, in epochs and in optimizer steps, for schedules that need to know."""

from __future__ import annotations

from typing import Any

__all__ = ["RunLength"]


class RunLength:
    """The length of a run; asked for late, since a trainer knows its batches only once it has loaded its data.

    Args:
        trainer: The trainer, attached to a module.
        scheduler: Who needs to know, for the message.
    """

    def __init__(self, trainer: Any, scheduler: str) -> None:
        self._trainer, self._scheduler = trainer, scheduler

    @property
    def steps(self) -> int:
        """Number of optimizer steps.

        Raises:
            ValueError: The run has no end.
        """
        total = self._trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                f"scheduler={self._scheduler!r} needs an end: give Trainer(max_epochs=...) or max_steps=..."
            )
        return int(total)

    @property
    def epochs(self) -> int:
        """Number of epochs; rounded, where steps alone end the run."""
        epochs = self._trainer.max_epochs
        if epochs is None or epochs < 0:
            return max(1, round(self.steps / self._steps_per_epoch))
        return int(epochs)

    def warmup_steps(self, epochs: float) -> int:
        """Number of optimizer steps of a warm-up; at most half of a run that is limited by its steps."""
        most = self.steps // 2 if self._trainer.max_steps > 0 else self.steps
        return round(min(epochs * self._steps_per_epoch, most)) if epochs else 0

    @property
    def _steps_per_epoch(self) -> float:
        if self._trainer.num_training_batches == float("inf"):
            # Where steps alone end the run, Lightning has not needed to know yet.
            self._trainer.fit_loop.setup_data()
        batches: float = self._trainer.num_training_batches
        return max(1.0, batches / float(self._trainer.accumulate_grad_batches))
