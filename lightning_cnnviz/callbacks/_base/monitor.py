"""What all monitors have in common: options, one feed, the guard around each look, and how its result is shown."""

from __future__ import annotations

import inspect
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypedDict

import lightning.pytorch as pl
import pytorch_lightning
from torch import nn
from tqdm.auto import tqdm

from lightning_cnnviz.callbacks._base.budget import Budget
from lightning_cnnviz.callbacks._base.feed import Feed
from lightning_cnnviz.callbacks._base.followers import publish, refuse_too_early, warn_of_unknown
from lightning_cnnviz.callbacks._base.interruption import end_interrupted
from lightning_cnnviz.callbacks._base.options import name_options
from lightning_cnnviz.callbacks._base.schedule import Schedule
from lightning_cnnviz.callbacks._base.stepping_aside import (
    chooses_layers_itself,
    is_callers,
    is_in_our_words,
    list_of_those_aside,
    what_was_found,
    without_words,
)
from lightning_cnnviz.callbacks._base.subscriber import agree, for_all, is_due
from lightning_cnnviz.callbacks._base.trainer import (
    averaging_callback,
    is_tuning,
    late_weights,
    makes_layers_late,
    mixed_precision,
    refuse_sharded,
    step_of,
)
from lightning_cnnviz.core.data.distributed import OtherRankError, from_first, rank, to_first, together
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import ForwardFn
from lightning_cnnviz.core.network.layers import check_axes, check_convolutional
from lightning_cnnviz.record.data import plain
from lightning_cnnviz.record.identity import DataIdentity, LookIdentity, NetworkIdentity, network_identity, versions
from lightning_cnnviz.record.store import Carried
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.views import Seen, draw_view, view_scalars
from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet, printed_log
from lightning_cnnviz.sinks.series import NUMBER_NAMES, measured, prefix_of

__all__ = ["Monitor", "MonitorOptions"]

log = logging.getLogger("lightning_cnnviz")


class MonitorOptions(TypedDict, total=False):
    """The options that every monitor takes."""

    name: str
    every_n_epochs: int | None
    every_n_steps: int | None
    epochs: list[int] | Literal["log", "last"] | None
    model: str | None
    forward_fn: ForwardFn | None
    sinks: list[Sink] | None
    on_error: Literal["report", "raise"]


class Monitor(pl.Callback, pytorch_lightning.Callback, ABC):  # type: ignore[misc]
    """Looks at a network while it trains, and shows what it sees; works in either package's Trainer.

    Training is not disturbed: weights after any number of steps are bit-identical with and without it. Wrong arguments
    raise at set-up, or when the first batch is seen before training. Where the network, its data or the trainer does
    not suit, the monitor steps aside: one line says what it found and what it would need, and once more when the run
    ends. Later, a failure is reported once with its traceback, this monitor is switched off, and the run goes on.

    Args:
        name: Keeps this monitor apart from others of its class on the same trainer: its reports are shown under
            `<view>/<name>/...`.
        every_n_epochs: Look after every n-th epoch, by default after each. Like `every_n_steps` and `"log"`, also when
            training ends, whatever ends it: `max_steps`, `max_time`, early stopping or, in a single process, Ctrl-C.
        every_n_steps: Look after every n-th optimizer step instead, as `trainer.global_step` counts them.
        epochs: Look after these epochs instead, counted from 1, and no others; `"log"`: after epochs 1, 2, 5, 10, 20,
            40, 80, ... and when training ends; or `"last"`: once, when training has ended.
        model: Name of the submodule that is the network; by default the LightningModule itself where it defines
            `forward`, else its only child module, or what its `validation_step` makes of several.
        forward_fn: Runs the network on a batch, where a call with the images alone does not:
            `lambda network, batch: network(batch["image"], batch["meta"])`. Changed images stand in the batch in the
            place of their own; images that are made up have beside them what belongs to the first one.
        sinks: Where to show it; by default every logger of the trainer, and a page in its log folder.
        on_error: `"report"`, or `"raise"` to let a failure stop the run, and what does not suit.

    Raises:
        ValueError: An option is wrong. (Two monitors of one class and name are refused by the Trainer, since its
            checkpoints could not keep them apart: give each a name of its own. One for the second of several loaders,
            `dataloader_idx=1`, is called `loader_1` where it has no other name.)
    """

    view: ClassVar[str] = ""
    """Which of `render.views` draws its results; a monitor without one has a `render` of its own."""
    of_convolutions: ClassVar[bool] = False
    """Whether it shows, where no layers are given, what the network's convolutions have learned."""
    axes: ClassVar[tuple[int, ...]] = (2,)
    """How many axes of space the network's images may have: 1 of signals, 2, 3 of clips and volumes."""
    every_rank: ClassVar[bool] = False
    """Whether each rank makes a part of a look's result, instead of rank zero all of it."""
    options_of: ClassVar[tuple[type, ...]] = ()
    """Which other classes document options that it takes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name_options(cls, [kind for kind in cls.__mro__[1:] if issubclass(kind, Monitor)] + [*cls.options_of])

    def __init__(
        self,
        *,
        name: str = "",
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        epochs: list[int] | Literal["log", "last"] | None = None,
        model: str | None = None,
        forward_fn: ForwardFn | None = None,
        sinks: list[Sink] | None = None,
        on_error: Literal["report", "raise"] = "report",
    ) -> None:
        super().__init__()
        if name and not re.fullmatch(r"\w([\w .-]*\w)?", name):
            raise ValueError(f"name={name!r}: give letters, digits and _, with spaces, dots and dashes between them")
        if on_error not in ("report", "raise"):
            raise ValueError(f'on_error={on_error!r}: give "report" or "raise"')
        self.name, self.model, self.sinks, self.on_error = name, model, sinks, on_error
        self.forward_fn = forward_fn
        self.every_n_epochs, self.every_n_steps, self.epochs = every_n_epochs, every_n_steps, epochs
        self._schedule = Schedule(every_n_epochs=every_n_epochs, every_n_steps=every_n_steps, epochs=epochs)
        self._feed = Feed(self)
        self._outlet = Outlet(self._who, sinks, raises=on_error == "raise")
        self._failed_before: str | None = None
        self._failure: str | None = None
        self._budget: Budget | None = None
        self._steps_aside = self._trains = self._waits = False
        self._looks = self._steps = 0
        self._shows_progress = False
        self._step = Step(epoch=0, global_step=0)
        self._is_shown = False  # not of a look that Ctrl-C has come into: it is taken again
        self._network = NetworkIdentity()
        self.number_names = NUMBER_NAMES.get(self.view, ())  # how the keys of its numbers may end

    # What a concrete monitor says.

    @abstractmethod
    def prepare(self, network: nn.Module) -> None:
        """Resolve layers and check arguments, at set-up; forget what belongs to an earlier run.

        Raises:
            ValueError: An argument is wrong; names what was asked, what there is and what would do.
        """

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse, at set-up, a trainer that gives this monitor nothing to look at.

        Raises:
            ValueError: What is missing, and how to mend it.
        """

    def merge(self, parts: list[Any]) -> Any:
        """Return the whole result, given the ranks' parts in order; called on rank zero alone."""
        return parts[0]

    def display_of(self, result: Any) -> Display:
        """Return how people see the images that a whole result was made on; called on rank zero alone."""
        return Display()

    def data_of(self, result: Any) -> DataIdentity:
        """Return which images a whole result was made on."""
        return DataIdentity()

    def render(self, result: Any) -> Report:
        """Turn a whole result into a report, with what earlier looks carried on; called on rank zero alone.

        A monitor whose `view` is not in `render.views` has its own.
        """
        return draw_view(self.view, self._seen(result), Carried(self._outlet.earlier(self._identity(result))))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that it was made with, by name."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Monitor)]
        # Other attributes change from look to look, or are the trainer's.
        names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
        return {name: value for name, value in vars(self).items() if name in names}

    # When: Lightning's hooks. The first monitor of a trainer passes its calls on to the feed, for all of them.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check everything that can be known before a batch is seen."""
        stage = str(trainer.state.fn.value)  # the argument may be an enum, which prints otherwise
        # Why a fit before has taught nothing, through all that follows it.
        self._failed_before = None if stage == "fit" else self._failure or self._failed_before
        self._failure, self._looks, self._steps_aside, self._trains = None, 0, False, False
        if stage == "predict" or is_tuning(trainer):
            return
        if self._budget is not None:
            self._budget.start()
        lead = next(other for other in trainer.callbacks if isinstance(other, Monitor))
        self._feed = Feed(self) if lead is self else lead._feed
        self._feed.rear = self
        if self.model is not None:
            self.network_of(pl_module)  # a wrong name is wrong, not unsuitable
        self._waits = makes_layers_late(pl_module)
        if not self._waits:
            self._with_all("set-up", lambda: self._set_up(trainer, pl_module, stage), raises=True)
        bar = trainer.progress_bar_callback
        self._shows_progress = bool(trainer.is_global_zero and bar is not None and bar.is_enabled)
        with together("opening the sinks"):
            self._outlet.open(trainer)

    def _set_up(self, trainer: Any, pl_module: Any, stage: str) -> None:
        network = self.network_of(pl_module)
        check_axes(network, self.axes)
        if self.of_convolutions and chooses_layers_itself(self):
            check_convolutional(network)
        try:
            self.prepare(network)
        except TypeError as error:
            raise WrongArgumentError(str(error)) from error
        self.check_trainer(trainer, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what is there only after set-up; and who follows our numbers."""
        self._complete_set_up(trainer, pl_module, "fit")
        self._check_followers(trainer)
        if trainer.is_global_zero and not self.failed:
            layers = [name for name, _ in self.network_of(pl_module).named_modules()]
            warn_of_unknown(self._who, self._prefixes(trainer), self, trainer, layers)

    def _check_followers(self, trainer: Any) -> None:
        refuse_too_early(self._who, self._prefixes(trainer), self, trainer, self._schedule)

    @staticmethod
    def _prefixes(trainer: Any) -> dict[str, Monitor]:
        """Of each monitor, what the keys of its numbers begin with."""
        every = [each for each in trainer.callbacks if isinstance(each, Monitor)]
        return {prefix_of(each.view, name=each.name): each for each in every if each.view}

    def _complete_set_up(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for layers that `configure_model` has made, and step aside where a strategy has cut the weights up."""
        if self._waits:
            self._waits = False
            self._with_all("set-up", lambda: self._set_up(trainer, pl_module, stage), raises=True)
        if not self.failed:
            self._ask_for_whole_weights(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Try the given loaders, before the first step."""
        if self.every_n_steps is not None:
            self._check_followers(trainer)  # again: only now the length of an epoch is known
        self._trains = True
        self._steps = self._feed.first_step = trainer.global_step
        self._feed.costs.start()
        if self._leads:
            self._with_all("trying the data", lambda: self._feed.try_data(trainer, pl_module), raises=True)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the clock run from the first step on: before it, monitors have tried what they need."""
        if self._leads and trainer.global_step == self._feed.first_step:
            self._feed.costs.start()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the looks that are due."""
        if self._leads:
            if trainer.state.fn != "fit":
                for monitor in trainer.callbacks:
                    if isinstance(monitor, Monitor):
                        monitor._complete_set_up(trainer, pl_module, str(trainer.state.fn.value))
            raises = trainer.sanity_checking or trainer.state.fn != "fit"
            self._with_all("the start of looks", lambda: self._feed.start(trainer, pl_module), raises=raises)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Announce a batch."""
        if self._leads:
            with self.guard():
                self._feed.start_batch(trainer, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take what the batch has shown."""
        if self._leads:
            with self.guard():
                self._feed.end_batch(trainer, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the looks at these passes; outside of fit, look at the given loaders."""
        if self._leads:
            outside = trainer.state.fn != "fit"
            self._with_all("the end of looks", lambda: self._feed.end(trainer), raises=outside)
            if outside:
                self._with_all("looks at data", lambda: self._feed.read_data(trainer, pl_module), raises=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show what has been drawn meanwhile; look in passes of our own, where a look is due after this step."""
        if self._leads:
            with self.guard(), self._feed.costs.charge([self], "showing"):
                self._outlet.poll()
        if self._feed.rear is self:  # others have left the step's own pass
            members = [each for each in self._feed.subscribers if is_due(each, each.due_after, trainer)]
            if members:
                self._with_all("looks by steps", lambda: self._feed.read(trainer, pl_module, members))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the given loaders, where a look is due."""
        if self._leads:
            self._with_all("looks at data", lambda: self._feed.read_data(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the trained network, where the newest look is not at that."""
        if self._leads:
            with self.guard():
                self._feed.costs.stop()
            self._with_all("last looks", lambda: self._feed.read_last(trainer, pl_module))

    # In `trainer.test`, as in `trainer.validate`.
    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """As for validation."""
        self.on_validation_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind, after Ctrl-C look at what was trained, and show what has been seen."""
        self._feed.abandon()
        if not isinstance(exception, KeyboardInterrupt) or trainer.state.fn != "fit":
            # After SIGTERM a process has a few seconds, which belong to the checkpoint; looks are in the record.
            hurries = type(exception).__name__ == "SIGTERMException"
            self._outlet.close(shows_progress=self._shows_progress, waits=not hurries)
        elif self._feed.rear is self:
            monitors = [each for each in trainer.callbacks if isinstance(each, Monitor)]
            end_interrupted(trainer, pl_module, monitors, looks=trainer.global_step > self._feed.first_step)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return which run this is and where its record is, so that a resumed run goes on with both."""
        record = self._outlet.record
        return {"run": self._outlet.run, "record": "" if record is None else str(record.folder.resolve())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint."""
        if "run" in state_dict:
            self._outlet.resume(state_dict["run"], state_dict.get("record", ""))

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the state: several monitors keep apart."""
        return self._generate_state_key(name=self.name)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Show what belongs to the end, and name again what failed."""
        stage = str(trainer.state.fn.value)
        with self.guard(raises=stage != "fit"):
            self._feed.abandon()
            if stage != "predict" and not is_tuning(trainer):
                self._finish(trainer, stage)
            self._feed = Feed(self)  # what subscribed may hold on to the trainer

    def _finish(self, trainer: Any, stage: str) -> None:
        with self._feed.costs.charge([self], "showing"):
            try:
                self._say_what_was_seen(stage)
                if self._looks and self._outlet.is_open:
                    with self.guard():
                        self._outlet.show_last()
            finally:
                self._outlet.close(shows_progress=self._shows_progress)
        if self._feed.rear is self and trainer.is_global_zero:
            monitors = [each for each in trainer.callbacks if isinstance(each, Monitor)]
            summary = self._feed.costs.summary(monitors) if stage == "fit" else ""
            for text in filter(None, (summary, late_weights(trainer), list_of_those_aside(monitors))):
                printed_log.info("%s", text)

    # How: a look, its guard, its sinks.

    @property
    def failed(self) -> bool:
        """Whether it has failed, and looks no more."""
        return self._failure is not None

    @property
    def is_chosen(self) -> bool:
        """Whether somebody has chosen this view, and not all that there are."""
        return self._budget is None

    @property
    def is_aside(self) -> bool:
        """Whether the network, its data or the trainer does not suit, and it looks no more."""
        return self._steps_aside

    @property
    def failure(self) -> str | None:
        """Why it looks no more."""
        return self._failure

    def fail(self, reason: str) -> None:
        """Look no more."""
        self._failure = reason

    def due(self, trainer: Any) -> bool:
        """Whether a look is due in the epoch that the trainer is in."""
        return self._schedule.due(trainer) and self._affords(trainer)

    def due_after(self, trainer: Any) -> bool:
        """Whether a look is due after the optimizer steps since it was last asked; asked after every batch."""
        before, self._steps = self._steps, trainer.global_step
        return self._schedule.due_between(before, self._steps) and self._affords(trainer)

    def due_at_end(self, trainer: Any) -> bool:
        """Whether the network that training has ended with is still to be looked at."""
        seen = self._looks > 0 and self._is_shown and self._step.global_step == trainer.global_step
        return self._schedule.ends and not seen

    def network_of(self, pl_module: Any) -> nn.Module:
        """Return the network that is looked at."""
        return self._feed.network_of(self._who, pl_module, self.model, self.forward_fn)

    def progress(self, work: Iterable[Any]) -> Iterable[Any]:
        """Show progress while pieces of work are done, where the trainer shows its own."""
        bar: Iterable[Any] = tqdm(work, self._who, leave=False, disable=not self._shows_progress)
        return bar

    @contextmanager
    def guard(self, *, raises: bool = False) -> Iterator[None]:
        """Report a failure once and look no more, so that the run goes on; where nothing is lost yet, let it pass."""
        try:
            yield
        except Exception as error:
            if getattr(error, "_ends_the_run", False):  # another monitor inside lets it pass
                raise
            if (raises and is_callers(self, error)) or self._is_to_raise(error):
                _name(error, self._who)
                error._ends_the_run = True  # type: ignore[attr-defined]
                raise
            elsewhere = isinstance(error, OtherRankError)
            if raises or is_in_our_words(error) or getattr(error, "unsuitable", False):
                self._step_aside(error)
                return
            self.fail(str(error) if elsewhere else f"{type(error).__name__}: {str(error) or without_words(error)}")
            if elsewhere and rank() == 0:  # that rank logs its traceback
                log.error("%s is switched off and the run goes on: %s", self._who, error)
            elif not elsewhere:
                log.error("%s has failed and is switched off; the run goes on", self._who, exc_info=True)

    def _is_to_raise(self, error: Exception) -> bool:
        """Whether the user wants to be stopped; of all that there is, what does not suit was chosen by nobody."""
        unsuitable = isinstance(error, ValueError) or getattr(error, "unsuitable", False)
        return self.on_error == "raise" and not (self._budget is not None and unsuitable)

    def _with_all(self, what: str, work: Callable[[], Any], *, raises: bool = False) -> None:
        """Do what ranks meet in: if it fails on one of them, this looks no more on any."""
        for_all([self], work, raises=raises, meeting=what)

    def look(self, trainer: Any, make_part: Callable[[], Any], *, raises: bool = False) -> None:
        """Make this rank's part of a result, bring the parts together, and show the whole; every rank calls it."""
        if not self.well_everywhere():
            return
        parts = None
        with self.guard(raises=raises), together("a look"):
            part = None
            with mixed_precision(trainer):
                if self.every_rank or trainer.is_global_zero:
                    part = make_part()
            parts = [each for each in to_first(part) if each is not None] if self.every_rank else [part]
            self._looks += 1
            self._step, self._is_shown = step_of(trainer), False
        if parts is None:
            return  # on every rank
        result: Any = None
        drawn: Report | None = None
        numbers: dict[str, float] | None = None
        with self.guard(raises=raises), together("the numbers of a look"):
            if trainer.is_global_zero:
                self._network = self._identified(trainer)
                result = self.merge(parts)
                if not self._draws_its_view:
                    with self._feed.costs.charge([self], "showing"):
                        drawn = self.render(result)
                numbers = self._numbers(result, drawn)
            numbers = from_first(numbers)
        if numbers is None:
            return  # on every rank
        publish(trainer, numbers)
        # The first rank shows it while the others go on, unless its failure is to stop them.
        stops = raises or self.on_error == "raise"
        with self.guard(raises=raises), together("showing a look") if stops else nullcontext():
            if self._outlet.is_open:
                with self._feed.costs.charge([self], "showing"):
                    self._show(result, drawn)
        self._is_shown = True

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self._who

    @property
    def _who(self) -> str:
        return type(self).__name__ + (f' "{self.name}"' if self.name else "")

    @property
    def _leads(self) -> bool:
        return self._feed.lead is self

    def well_everywhere(self) -> bool:
        """Say whether it looks on every rank; where it has failed on one, it looks on none. Every rank asks."""
        with self.guard(), together("asking who looks"):
            agree([self])
        return not self.failed

    def share(self, budget: Budget) -> None:
        """Look as far as a budget allows, and step aside where the network or its data do not suit."""
        self._budget = budget
        budget.monitors.append(self)

    def _affords(self, trainer: Any) -> bool:
        """Whether the budget allows a look now; the last look is always taken."""
        if self._budget is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return True
        step = step_of(trainer)
        if step.epoch == trainer.max_epochs:
            return True
        with together("asking what the budget allows"):
            return self._budget.allows(self, self._feed.costs, step.global_step)

    def _ask_for_whole_weights(self, trainer: Any) -> None:
        """No view is served by a part of the weights, and nobody can choose views that are."""
        if self._steps_aside:
            return
        try:
            refuse_sharded(self._who, trainer)
        except ValueError as error:
            if self._is_to_raise(error):
                raise
            self._step_aside(error)

    def _step_aside(self, error: Exception) -> None:
        found = what_was_found(self._who, error)
        self.fail(found)
        self._steps_aside = True
        if rank() == 0:
            printed_log.info("%s steps aside: %s", self._who, found)
            log.debug("why %s steps aside", self._who, exc_info=error)

    def _say_what_was_seen(self, stage: str) -> None:
        if self._steps_aside:
            return
        if self._failure is not None:
            log.warning("%s was switched off during the run: %s", self._who, self._failure)
        elif self._looks == 0 and stage == "fit" and self._trains:
            log.warning("%s has shown nothing: no look was due, or there was no data", self._who)
        elif self._looks == 0 and stage != "fit":
            raise ValueError(f"{self._who} saw no batch: the loader of trainer.{stage}() is empty")

    @property
    def looks_at_validation(self) -> bool:
        """Whether its looks are there when validation ends, and not only when the epoch does."""
        return False

    @property
    def leader(self) -> Monitor:
        """The monitor at whose turn all of them look when validation ends."""
        lead: Monitor = self._feed.lead
        return lead

    @property
    def _draws_its_view(self) -> bool:
        """Whether its results are drawn by its view, and not by a `render` of its own."""
        return bool(self.view) and getattr(self.render, "__func__", None) is Monitor.render

    def _numbers(self, result: Any, drawn: Report | None) -> dict[str, float]:
        """The numbers of a whole result, by the keys that they have in every logger."""
        if drawn is None:
            earlier = Carried(self._outlet.earlier(self._identity(result)))
            view, scalars = self.view, view_scalars(self.view, self._seen(result), earlier)
        else:
            view, scalars = drawn.view, [item for item in drawn.items if isinstance(item, Scalar)]
        found = measured(scalars, view=view, name=self.name, stage=self._step.stage)
        return {each.key: float(each.value) for each in found}

    def _show(self, result: Any, drawn: Report | None) -> None:
        """Keep a whole result and show it; of a monitor without a view, its report."""
        if drawn is None:
            self._outlet.show_look(self._identity(result), self._seen(result))
        elif self.view:
            self._outlet.show_look(self._identity(result), self._seen(result), lambda: drawn)
        else:
            self._outlet.show(replace(drawn, name=self.name), self._step)

    def _seen(self, result: Any) -> Seen:
        return Seen(result=result, display=self.display_of(result), arguments=self.arguments, epoch=self._step.epoch)

    def _identity(self, result: Any) -> LookIdentity:
        return LookIdentity(
            view=self.view,
            name=self.name,
            stage=self._step.stage,
            epoch=self._step.epoch,
            global_step=self._step.global_step,
            logged=self._step.logged,
            within=self._step.within,
            data=self.data_of(result),
            network=self._network,
            monitor=type(self).__name__,
            arguments=plain(self.arguments),
            versions=versions(),
        )

    def _identified(self, trainer: Any) -> NetworkIdentity:
        """Which weights are looked at; read once for all monitors that look at the same moment."""
        network = self.network_of(trainer.lightning_module)
        moment = (id(network), trainer.global_step, trainer.current_epoch, str(trainer.state.fn))
        feed = self._feed
        if feed.network_seen is None or feed.network_seen[0] != moment:
            averaging = averaging_callback(trainer)
            said = getattr(trainer.lightning_module, "weights_are", "")  # by an exploration's own module
            weights = said if averaging is None else f"averaged by {type(averaging).__name__}"
            feed.network_seen = moment, replace(network_identity(network), weights=weights)
        return feed.network_seen[1]


def _name(error: Exception, who: str) -> None:
    """Say in an exception's message whose it is, where it does not."""
    if len(error.args) == 1 and isinstance(error.args[0], str) and who not in error.args[0]:
        error.args = (f"{who}: {error.args[0]}",)
