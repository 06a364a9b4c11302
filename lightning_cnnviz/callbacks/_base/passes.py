"""Monitors that look at forward passes: those that validation makes anyway, or over a loader of the user's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.monitor import Monitor, MonitorOptions, nothing_to_lose
from lightning_cnnviz.callbacks._base.trainer import chosen_loader, find_network, mixed_precision, step_of
from lightning_cnnviz.core.data.batches import BatchFn, IndexReader, indexed_batches, read_batch
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.report import Report

__all__ = ["PassMonitor", "PassOptions"]


class PassOptions(MonitorOptions, total=False):
    """The options that every monitor of passes takes."""

    data: Any
    dataloader_idx: int
    batch_fn: BatchFn | None


class PassMonitor(Monitor):
    """Looks at every validation, by default at the forward passes that validation makes anyway.

    Args:
        data: A loader to look at, in passes of our own, instead of the validation's.
        dataloader_idx: Which of several validation (or test) loaders to look at.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        options: See `Monitor`; `every_n_epochs` is at each validation that falls into such an epoch.
    """

    def __init__(
        self,
        *,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        **options: Unpack[MonitorOptions],
    ) -> None:
        super().__init__(**options)
        self.data, self.dataloader_idx, self.batch_fn = data, dataloader_idx, batch_fn
        self._looking = False
        self._reader: IndexReader | None = None
        self._loader: Any = None

    # What a concrete monitor says.

    @abstractmethod
    def start_look(self) -> None:
        """Begin a look: forget the last one's running state."""

    @abstractmethod
    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """Get ready for a pass over `images`; `indices` are those of the data set, on the CPU."""

    @abstractmethod
    def end_batch(self) -> None:
        """Take what the pass has shown."""

    @abstractmethod
    def finish_look(self, indices_known: bool) -> Any:
        """Return the look's result; called on every rank, so that ranks can be merged."""

    @abstractmethod
    def render(self, result: Any, loader: Any) -> Report:
        """Turn a result into a report; called on rank zero alone, with the loader that was looked at."""

    # When: Lightning's hooks.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse data that would give nothing, before the first step."""
        if self.data is not None:
            self._look_at(trainer, pl_module, self.data, rehearsal=True)
        elif trainer.val_dataloaders is not None and not any(trainer.num_val_batches):
            raise ValueError(
                f"{self._who} looks at validation batches, but the validation loader is empty; give it data, or "
                "data=<a loader>"
            )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a look, where one is due and validation's own passes serve it."""
        if self.data is None and self._due(trainer):
            with self._guard(raises=nothing_to_lose(trainer)):
                self._begin(trainer, chosen_loader(trainer.val_dataloaders, self.dataloader_idx))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Announce a batch."""
        if self._looking and dataloader_idx == self.dataloader_idx:
            with self._guard(raises=batch_idx == 0 and nothing_to_lose(trainer)):
                images, labels = read_batch(batch, self.batch_fn)
                assert self._reader is not None
                if len(images):
                    self.start_batch(images, self._reader.take(len(images)), labels)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take what the batch has shown."""
        if self._looking and dataloader_idx == self.dataloader_idx:
            with self._guard(raises=batch_idx == 0 and nothing_to_lose(trainer)):
                self.end_batch()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the look."""
        if self._open_look:
            self._end(trainer, rehearsal=trainer.sanity_checking)
        if self.data is not None and trainer.state.fn != "fit" and not trainer.sanity_checking:
            self._look_at(trainer, pl_module, self.data)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at data of our own, where it was given."""
        if self.data is not None and self._due(trainer):
            self._look_at(trainer, pl_module, self.data)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once more where only the end was asked for."""
        if self.epochs == "last":
            loader = self.data if self.data is not None else chosen_loader(trainer.val_dataloaders, self.dataloader_idx)
            self._look_at(trainer, pl_module, loader, within_epoch=False)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """As for validation."""
        if self.data is None:
            self._begin(trainer, chosen_loader(trainer.test_dataloaders, self.dataloader_idx))

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As for validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As for validation."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """As for validation."""
        if self._open_look:
            self._end(trainer)
        if self.data is not None:
            self._look_at(trainer, pl_module, self.data)

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse a trainer without validation batches."""
        if self.data is not None:
            return
        limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
        name = "limit_test_batches" if stage == "test" else "limit_val_batches"
        if limit == 0:
            raise ValueError(
                f"{self._who} looks at the {stage} batches, but {name}=0; raise it, or give data=<a loader>"
            )
        if stage != "fit":
            return
        if not trainer.enable_validation:
            raise ValueError(
                f"{self._who} looks at validation batches, but there is no validation: give the trainer a validation "
                "loader and the LightningModule a validation_step, or give data=<a loader>"
            )
        every = trainer.check_val_every_n_epoch
        if self.epochs not in (None, "last") and every and not any(epoch % every == 0 for epoch in self.epochs):
            raise ValueError(
                f"{self._who}(epochs={self.epochs}): validation runs every {every} epochs (check_val_every_n_epoch), "
                "after none of these; change either, or give data=<a loader>"
            )

    # How: a look.

    @property
    def _open_look(self) -> bool:
        return self._reader is not None

    def _stop(self) -> None:
        # The look stays open: its end, where ranks meet, must be reached by all of them.
        self._looking = False
        super()._stop()

    def _abandon(self) -> None:
        super()._abandon()
        self._reader = None

    def _begin(self, trainer: Any, loader: Any) -> None:
        # A rank that has failed must not leave the others waiting for it.
        if not trainer.strategy.reduce_boolean_decision(self._failure is None, all=True):
            self._failure = self._failure or "it failed on another rank"
            return
        self._loader, self._looking = loader, True
        self._reader = IndexReader(loader, trainer.global_rank, trainer.world_size)
        self.start_look()

    def _end(self, trainer: Any, *, rehearsal: bool = False, within_epoch: bool = True) -> None:
        known, loader = self._reader is not None and self._reader.known, self._loader
        complete = not rehearsal and trainer.strategy.reduce_boolean_decision(self._looking, all=True)
        self._looking, self._reader, self._loader = False, None, None
        if not complete:
            self.stop_look()
            if not rehearsal:
                self._failure = self._failure or "it failed on another rank"
            return
        with self._guard():
            with mixed_precision(trainer):
                result = self.finish_look(known)
            self.stop_look()
            self._looks += 1
            self._step = step_of(trainer, within_epoch=within_epoch)
            if self._outlet.is_open:
                self._outlet.show(self.render(result, loader), self._step)

    def _look_at(
        self, trainer: Any, pl_module: Any, loader: Iterable[Any], *, rehearsal: bool = False, within_epoch: bool = True
    ) -> None:
        """Look at a loader in a pass of our own, or in rehearsal only at its first batch; ranks share each batch."""
        network = find_network(self._who, pl_module, self.model)
        shared = not isinstance(getattr(loader, "sampler", None), torch.utils.data.DistributedSampler)
        rank, ranks = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
        self._begin(trainer, loader)
        raises = rehearsal or trainer.state.fn != "fit"
        with self._guard(raises=raises), analysis_mode(network), closing(indexed_batches(loader)) as batches:
            arrived = 0
            for batch, indices in self.progress(batches) if self._looking else ():
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                images, labels = read_batch(batch, self.batch_fn)
                self._note_order(known=indices is not None or isinstance(loader, (list, tuple)))
                if indices is None:
                    indices = torch.arange(arrived, arrived + len(images))
                arrived += len(images)
                if len(images) == 0:
                    continue
                # By index, since ranks may shuffle differently. A rank without a share repeats an image: what comes
                # twice counts once.
                own = (indices % ranks == rank).nonzero().flatten()
                own = own if len(own) else torch.zeros(1, dtype=torch.int64)
                images, labels = images[own], None if labels is None else labels[own]
                self.start_batch(images, indices[own], labels)
                with trainer.precision_plugin.forward_context():
                    network(images)
                self.end_batch()
                if rehearsal:
                    break
            if arrived == 0 and self._looking:
                raise ValueError(
                    f"{self._who} looks at data={type(loader).__name__}, but it is empty: it gave no image"
                )
        if self._open_look:
            self._end(trainer, rehearsal=rehearsal, within_epoch=within_epoch)

    def _note_order(self, *, known: bool) -> None:
        assert self._reader is not None
        self._reader.known = known
