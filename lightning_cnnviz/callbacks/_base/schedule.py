"""When a monitor looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """After which epochs of a fit a look is due.

    Attributes:
        every_n_epochs: After every n-th epoch, and after the trainer's last one.
        epochs: After these epochs instead, counted from 1; or `"last"`: once, when training has ended.

    Raises:
        ValueError: There is no such epoch.
    """

    every_n_epochs: int = 1
    epochs: list[int] | Literal["last"] | None = None

    def __post_init__(self) -> None:
        if self.every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={self.every_n_epochs}: give 1 or more, or epochs=[...] for chosen epochs")
        if self.epochs is not None and self.epochs != "last" and (not self.epochs or min(self.epochs) < 1):
            raise ValueError(f'epochs={self.epochs}: give epochs counted from 1, for example [1, 2, 5, 10], or "last"')

    @property
    def at_end(self) -> bool:
        """Whether the only look is the one when training has ended."""
        return self.epochs == "last"

    def due(self, trainer: Any) -> bool:
        """Whether a look is due in the epoch that the trainer is in."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True  # before training everything is tried once, and shown nowhere
        epoch = trainer.current_epoch + 1
        if self.epochs is None:
            # The trained network is what most want to see, whatever n is.
            return bool(epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs)
        return self.epochs != "last" and epoch in self.epochs

    def never_validated(self, trainer: Any) -> str | None:
        """Say why no look can fall together with a validation; None where one can."""
        every = trainer.check_val_every_n_epoch
        if isinstance(self.epochs, list) and every and not any(epoch % every == 0 for epoch in self.epochs):
            return f"epochs={self.epochs}: validation runs every {every} epochs (check_val_every_n_epoch)"
        return None
