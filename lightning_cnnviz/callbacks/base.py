"""When to look, on which data, and what to do with the result or a failure: everything monitors have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import lightning.pytorch as pl
import pytorch_lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_cnnviz.callbacks.trainer import chosen_loader, find_network, log_folder, step_of
from lightning_cnnviz.core.batches import BatchFn, IndexReader, indexed_batches, read_batch
from lightning_cnnviz.core.capture import analysis_mode
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink

__all__ = ["Monitor", "MonitorOptions"]

log = logging.getLogger("lightning_cnnviz")


class MonitorOptions(TypedDict, total=False):
    """The options that every monitor takes."""

    every_n_epochs: int
    epochs: list[int] | Literal["last"] | None
    data: Any
    dataloader_idx: int
    model: str | None
    batch_fn: BatchFn | None
    sinks: list[Sink] | None
    on_error: Literal["report", "raise"]


class Monitor(pl.Callback, pytorch_lightning.Callback, ABC):  # type: ignore[misc]
    """Looks at a network while it trains, and shows what it sees; works in either package's Trainer.

    By default it looks at every validation, at the forward passes that validation makes anyway. Training is not
    disturbed: weights after any number of steps are bit-identical with and without it. Wrong arguments raise at set-up,
    or when the first batch is seen before training. Later, a failure is reported once with its traceback, this monitor
    is switched off, and the run goes on.

    Args:
        every_n_epochs: Look after every n-th epoch (at each validation that falls into it).
        epochs: Look after these epochs instead, counted from 1; or `"last"`: once, when training has ended.
        data: A loader to look at, in passes of our own, instead of the validation's.
        dataloader_idx: Which of several validation (or test) loaders to look at.
        model: Name of the submodule that is the network; by default the LightningModule itself where it defines
            `forward`, else its only child module.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        sinks: Where to show it; by default every WandbLogger of the trainer, and a page in its log folder.
        on_error: `"report"`, or `"raise"` to let a failure stop the run.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        epochs: list[int] | Literal["last"] | None = None,
        data: Any = None,
        dataloader_idx: int = 0,
        model: str | None = None,
        batch_fn: BatchFn | None = None,
        sinks: list[Sink] | None = None,
        on_error: Literal["report", "raise"] = "report",
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: give 1 or more, or epochs=[...] for chosen epochs")
        if epochs is not None and epochs != "last" and (not epochs or min(epochs) < 1):
            raise ValueError(f'epochs={epochs}: give epochs counted from 1, for example [1, 2, 5, 10], or "last"')
        if on_error not in ("report", "raise"):
            raise ValueError(f'on_error={on_error!r}: give "report" or "raise"')
        self.every_n_epochs, self.epochs, self.data = every_n_epochs, epochs, data
        self.dataloader_idx, self.model, self.batch_fn = dataloader_idx, model, batch_fn
        self.sinks, self.on_error = sinks, on_error
        self._open_sinks: list[Sink] | None = None
        self._failure: str | None = None
        self._looking = False
        self._looks = 0
        self._step = Step(0, 0)
        self._page: PageSink | None = None
        self._reader: IndexReader | None = None
        self._loader: Any = None

    # What a concrete monitor says.

    @abstractmethod
    def prepare(self, network: nn.Module) -> None:
        """Resolve layers and check arguments, at set-up.

        Raises:
            ValueError: An argument is wrong; names what was asked, what there is and what would do.
        """

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

    @abstractmethod
    def stop_look(self) -> None:
        """Remove every hook; called after each look and after every failure."""

    def last_report(self) -> Report | None:
        """Return what is to be shown once at the end of the run, if anything."""
        return None

    # When: Lightning's hooks.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check everything that can be known before a batch is seen."""
        stage = str(trainer.state.fn.value)  # the argument may be an enum, which prints otherwise
        if stage == "predict":
            return
        self._failure, self._looks = None, 0
        self.prepare(find_network(self._who, pl_module, self.model))
        self._check_data(trainer, stage)
        folder = log_folder(trainer)  # asks every rank
        if trainer.is_global_zero:
            self._open(trainer, folder)

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
            with self._guard(raises=_nothing_to_lose(trainer)):
                self._begin(trainer, chosen_loader(trainer.val_dataloaders, self.dataloader_idx))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Announce a batch."""
        if self._looking and dataloader_idx == self.dataloader_idx:
            with self._guard(raises=batch_idx == 0 and _nothing_to_lose(trainer)):
                images, labels = read_batch(batch, self.batch_fn)
                assert self._reader is not None
                if len(images):
                    self.start_batch(images, self._reader.take(len(images)), labels)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take what the batch has shown."""
        if self._looking and dataloader_idx == self.dataloader_idx:
            with self._guard(raises=batch_idx == 0 and _nothing_to_lose(trainer)):
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

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._abandon()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Show what belongs to the end, and name again what failed."""
        self._abandon()
        stage = str(trainer.state.fn.value)
        if stage == "predict":
            return
        if self._failure is not None:
            log.warning("%s was switched off during the run: %s", self._who, self._failure)
        elif self._looks == 0 and stage == "fit":
            log.warning("%s has shown nothing: no look was due, or validation had no batch", self._who)
        elif self._looks == 0:
            raise ValueError(f"{self._who} saw no batch: the loader of trainer.{stage}() is empty")
        if self._open_sinks is not None and self._looks:
            with self._guard():
                report = self.last_report()
                if report is not None:
                    self._show(report, self._step)
            for sink in self._open_sinks:
                sink.close()
                if isinstance(sink, PageSink):
                    rank_zero_info(f"{self._who}: open {sink.path} in a browser")
        self._open_sinks = None

    # How: a look, its guard, its sinks.

    @property
    def _who(self) -> str:
        return type(self).__name__

    @property
    def _open_look(self) -> bool:
        return self._reader is not None

    def _due(self, trainer: Any) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True  # before training everything is tried once, and shown nowhere
        done = trainer.current_epoch + 1
        if self.epochs is None:
            return bool(done % self.every_n_epochs == 0)
        return self.epochs != "last" and done in self.epochs

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
            result = self.finish_look(known)
            self.stop_look()
            self._looks += 1
            self._step = step_of(trainer, within_epoch=within_epoch)
            if self._open_sinks:
                self._show(self.render(result, loader), self._step)

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
            looked_at = tqdm(batches, self._who, leave=False, disable=not _shows_progress(trainer))
            for batch, indices in looked_at if self._looking else ():
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

    @contextmanager
    def _guard(self, *, raises: bool = False) -> Iterator[None]:
        """Report a failure once and switch off, so that the run goes on; or, where nothing is lost yet, let it pass."""
        try:
            yield
        except BaseException as error:
            self._looking = False
            self.stop_look()
            if raises or self.on_error == "raise" or not isinstance(error, Exception):
                raise
            self._failure = f"{type(error).__name__}: {error}"
            log.error("%s has failed and is switched off; the run goes on", self._who, exc_info=True)

    def _abandon(self) -> None:
        self._looking, self._reader = False, None
        self.stop_look()

    def _show(self, report: Report, step: Step) -> None:
        self._open_sinks = [sink for sink in self._open_sinks or [] if self._write(sink, report, step)]

    def _write(self, sink: Sink, report: Report, step: Step) -> bool:
        """Write to one sink; False where that has failed and the sink is given up."""
        try:
            sink.write(report, step)
        except Exception as error:
            if self.on_error == "raise":
                raise
            name = type(sink).__name__
            log.error("%s: %s is given up, the run goes on: %s", self._who, name, error, exc_info=True)
            return False
        return True

    def _open(self, trainer: Any, folder: Path) -> None:
        if self.sinks is not None and not self.sinks:
            raise ValueError(
                f"{self._who}(sinks=[]) would show nothing anywhere: leave sinks out for the trainer's WandbLogger and "
                "a local page, or give some of WandbSink(), PageSink(), MemorySink()"
            )
        # fast_dev_run is to leave nothing behind; the look itself is still tried.
        default = [] if trainer.fast_dev_run else self._default_sinks(trainer, folder)
        self._open_sinks = list(default if self.sinks is None else self.sinks)
        for sink in self._open_sinks:
            sink.open(trainer.loggers, folder)

    def _default_sinks(self, trainer: Any, folder: Path) -> list[Sink]:
        # All monitors of a trainer share one page.
        pages = [callback._page for callback in trainer.callbacks if isinstance(callback, Monitor) and callback._page]
        self._page = pages[0] if pages else PageSink()
        try:
            WandbSink().open(trainer.loggers, folder)
        except ValueError:
            return [self._page]  # there is no WandbLogger
        return [WandbSink(), self._page]

    def _check_data(self, trainer: Any, stage: str) -> None:
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


def _nothing_to_lose(trainer: Any) -> bool:
    """Whether a failure may stop the run: training has not begun, or there is none."""
    return bool(trainer.sanity_checking or trainer.state.fn != "fit")


def _shows_progress(trainer: Any) -> bool:
    bar = trainer.progress_bar_callback
    return bool(trainer.is_global_zero and bar is not None and bar.is_enabled)
