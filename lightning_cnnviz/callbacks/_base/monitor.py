"""When to look, and what to do with the result or a failure: everything monitors have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import lightning.pytorch as pl
import pytorch_lightning
from torch import nn
from tqdm.auto import tqdm

from lightning_cnnviz.callbacks._base.trainer import find_network
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet

__all__ = ["Monitor", "MonitorOptions", "nothing_to_lose"]

log = logging.getLogger("lightning_cnnviz")


class MonitorOptions(TypedDict, total=False):
    """The options that every monitor takes."""

    every_n_epochs: int
    epochs: list[int] | Literal["last"] | None
    model: str | None
    sinks: list[Sink] | None
    on_error: Literal["report", "raise"]


class Monitor(pl.Callback, pytorch_lightning.Callback, ABC):  # type: ignore[misc]
    """Looks at a network while it trains, and shows what it sees; works in either package's Trainer.

    Training is not disturbed: weights after any number of steps are bit-identical with and without it. Wrong arguments
    raise at set-up, or when the first batch is seen before training. Later, a failure is reported once with its
    traceback, this monitor is switched off, and the run goes on.

    Args:
        every_n_epochs: Look after every n-th epoch, and after the trainer's last one.
        epochs: Look after these epochs instead, counted from 1; or `"last"`: once, when training has ended.
        model: Name of the submodule that is the network; by default the LightningModule itself where it defines
            `forward`, else its only child module.
        sinks: Where to show it; by default every WandbLogger of the trainer, and a page in its log folder.
        on_error: `"report"`, or `"raise"` to let a failure stop the run.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        epochs: list[int] | Literal["last"] | None = None,
        model: str | None = None,
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
        self.every_n_epochs, self.epochs, self.model = every_n_epochs, epochs, model
        self.sinks, self.on_error = sinks, on_error
        self._outlet = Outlet(self._who, sinks, raises=on_error == "raise")
        self._failure: str | None = None
        self._looks = 0
        self._shows_progress = False
        self._step = Step(epoch=0, global_step=0)

    # What a concrete monitor says.

    @abstractmethod
    def prepare(self, network: nn.Module) -> None:
        """Resolve layers and check arguments, at set-up.

        Raises:
            ValueError: An argument is wrong; names what was asked, what there is and what would do.
        """

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse, at set-up, a trainer that gives this monitor nothing to look at.

        Raises:
            ValueError: What is missing, and how to mend it.
        """

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
        self.check_trainer(trainer, stage)
        self._shows_progress = _progress_is_shown(trainer)
        self._outlet.open(trainer)

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
            log.warning("%s has shown nothing: no look was due, or there was no data", self._who)
        elif self._looks == 0:
            raise ValueError(f"{self._who} saw no batch: the loader of trainer.{stage}() is empty")
        if self._outlet.is_open and self._looks:
            with self._guard():
                report = self.last_report()
                if report is not None:
                    self._outlet.show(report, self._step)
        self._outlet.close()

    # How: a look, its guard, its sinks.

    @property
    def _who(self) -> str:
        return type(self).__name__

    def progress(self, work: Iterable[Any]) -> Iterable[Any]:
        """Show progress while pieces of work are done, where the trainer shows its own."""
        bar: Iterable[Any] = tqdm(work, self._who, leave=False, disable=not self._shows_progress)
        return bar

    def _due(self, trainer: Any) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True  # before training everything is tried once, and shown nowhere
        done = trainer.current_epoch + 1
        if self.epochs is None:
            # The trained network is what most want to see, whatever n is.
            return bool(done % self.every_n_epochs == 0 or done == trainer.max_epochs)
        return self.epochs != "last" and done in self.epochs

    @contextmanager
    def _guard(self, *, raises: bool = False) -> Iterator[None]:
        """Report a failure once and switch off, so that the run goes on; or, where nothing is lost yet, let it pass."""
        try:
            yield
        except BaseException as error:
            self._stop()
            if raises or self.on_error == "raise" or not isinstance(error, Exception):
                raise
            self._failure = f"{type(error).__name__}: {error}"
            log.error("%s has failed and is switched off; the run goes on", self._who, exc_info=True)

    def _stop(self) -> None:
        """Look no further; called after every failure."""
        self.stop_look()

    def _abandon(self) -> None:
        """Forget the look that is under way, if any."""
        self._stop()


def nothing_to_lose(trainer: Any) -> bool:
    """Whether a failure may stop the run: training has not begun, or there is none."""
    return bool(trainer.sanity_checking or trainer.state.fn != "fit")


def _progress_is_shown(trainer: Any) -> bool:
    """Whether this rank has a progress bar to show."""
    bar = trainer.progress_bar_callback
    return bool(trainer.is_global_zero and bar is not None and bar.is_enabled)
