"""Monitors that look at forward passes: those that validation makes anyway, or over a loader of the user's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.monitor import Monitor, MonitorOptions
from lightning_cnnviz.callbacks._base.options import name_for_loader
from lightning_cnnviz.callbacks._base.subscriber import RunningComputation, Subscriber
from lightning_cnnviz.callbacks._base.trainer import source_of
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.record.identity import DataIdentity

__all__ = ["FeedMonitor", "FeedOptions"]


class FeedOptions(MonitorOptions, total=False):
    """The options that every monitor of forward passes takes."""

    data: Any
    dataloader_idx: int
    batch_fn: BatchFn | None


class FeedMonitor(Monitor, Subscriber):  # type: ignore[misc]
    """Looks at every validation, by default at the forward passes that validation makes anyway.

    A concrete monitor returns a new running computation for each look (`running`), and what its result is shown as.

    Args:
        data: A loader to look at, in passes of our own, instead of the validation's.
        dataloader_idx: Which of several validation (or test) loaders to look at; from the second on, series are called
            `loader_1`, ... where no other name is given, so that there may be a monitor for each.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        options: See `Monitor`; `every_n_epochs` is at each validation that falls into such an epoch. After
            `every_n_steps`, and when training ends between validations, we make a pass of our own over these images.
    """

    of_convolutions = True

    def __init__(
        self,
        *,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        **options: Unpack[MonitorOptions],
    ) -> None:
        name_for_loader(options, dataloader_idx, data)
        super().__init__(**options)
        self.data, self.dataloader_idx, self.batch_fn = data, dataloader_idx, batch_fn
        self.dataset: Any = None
        self._data = DataIdentity()

    @abstractmethod
    def part(self, look: Look, running: RunningComputation) -> Any:
        """Return this rank's part of the result, of what has been merged."""

    def finish(self, look: Look, running: RunningComputation) -> None:
        """Show what a whole look has found."""
        self.dataset = look.dataset
        images = look.loader if self.dataset is None else self.dataset
        named = getattr(images, "name", "")
        kind = named if isinstance(named, str) and named else type(images).__name__
        loader = self.dataloader_idx if self.data is None else -1
        source = source_of(look.trainer, loader) if self.data is None else ""
        self._data = DataIdentity(dataset=kind, images=look.images, loader=loader, source=source)
        with self._feed.costs.look(self):
            self.look(look.trainer, lambda: self.part(look, running))

    @property
    def looks_at_validation(self) -> bool:
        """Where it looks at validation's own passes."""
        return self.data is None and self.every_n_steps is None

    def data_of(self, result: Any) -> DataIdentity:
        """Return which images were looked at."""
        return self._data

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Subscribe to the trainer's feed."""
        super().setup(trainer, pl_module, stage)
        if trainer.state.fn != "predict":
            self._feed.subscribers.append(self)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse data that would give nothing, before the first step."""
        super().on_train_start(trainer, pl_module)
        if self.data is not None or trainer.val_dataloaders is None or any(trainer.num_val_batches) or self.failed:
            return
        with self.guard(raises=True):
            raise ValueError(
                f"{self._who} looks at validation batches, but the validation loader is empty; give it data, or "
                "data=<a loader>"
            )

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse a trainer without validation batches."""
        if self.data is not None:
            return
        name = "limit_test_batches" if stage == "test" else "limit_val_batches"
        if getattr(trainer, name) == 0:
            batches = "test" if stage == "test" else "validation"
            raise ValueError(f"{self._who} looks at {batches} batches, but {name}=0; raise it, or give data=<a loader>")
        if stage != "fit":
            return
        if not trainer.enable_validation:
            raise ValueError(
                f"{self._who} looks at validation batches, but there is no validation: give the trainer a validation "
                "loader and the LightningModule a validation_step, or give data=<a loader>"
            )
        never = self._schedule.never_validated(trainer)
        if never is not None:
            raise WrongArgumentError(
                f"{self._who}: {never}, after none of these; change either, or give data=<a loader>"
            )
