"""The one way to show a report: guarded, so that a sink that fails costs nobody a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_cnnviz.record.drawing import Drawer, DrawingJob
from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.record.keeper import Keeper, new_run
from lightning_cnnviz.record.store import Carried, Record, RecordedLook
from lightning_cnnviz.render.views import Seen, draw_last, draw_view
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks._destination import Destination
from lightning_cnnviz.sinks.base import Sink, sink_kinds

__all__ = ["Outlet", "log_folder", "look_facts", "show_once"]

log = logging.getLogger("lightning_cnnviz")
_MOST_MISSING = 8  # looks that a run which goes on draws again, since nobody had when it was killed
# Python prints no information unless it is told to; Lightning tells it to for its own logger.
printed_log = logging.getLogger("lightning.pytorch")


@dataclass
class _Shared:
    """What the outlets of one trainer have in common.

    Attributes:
        run: The run that looks belong to.
        defaults: The default sinks.
        keepers: Of each record that is written, what keeps looks in it.
        destinations: Of each sink, what writes to it.
        drawer: What draws.
        users: How many outlets are open.
        announced: What people have been told.
        splits: The splits that sinks have been told.
    """

    run: str = field(default_factory=new_run)
    defaults: dict[type[Sink], Sink] = field(default_factory=dict)
    keepers: dict[Path | None, Keeper] = field(default_factory=dict)
    destinations: dict[Sink, Destination] = field(default_factory=dict)
    drawer: Drawer | None = None
    users: int = 0
    announced: set[str] = field(default_factory=set)
    splits: set[str] = field(default_factory=set)


class Outlet:
    """Shows the looks and reports of one monitor, or of whoever else has some, in sinks; and keeps them in the record.

    A sink that cannot be opened raises, since nothing is lost yet. One that fails later is announced once, however many
    show there, and what could not be written is written later, when it can be; the other sinks and the run go on. A
    holder keeps its outlet as an attribute, so that the outlets of one
    trainer find each other: its callbacks and its LightningModule write to one page and one record.

    Args:
        who: Whose reports they are, for messages.
        sinks: Where to show them; by default one of each kind that is a default and serves the trainer's loggers.
        raises: Whether a sink that cannot be written to raises instead; reports are then drawn in this process.

    Example:
        >>> from lightning_cnnviz import MemorySink
        >>> memory = MemorySink()
        >>> outlet = Outlet("Example", [memory])
        >>> outlet.open_for([], Path("logs"))
        >>> outlet.show(Report("layers", title="Layers", items=()), Step(epoch=1, global_step=10))
        >>> outlet.close()
        >>> len(memory.reports)
        1
    """

    def __init__(self, who: str, sinks: list[Sink] | None, *, raises: bool = False) -> None:
        self.who, self.sinks, self.raises = who, sinks, raises
        self._opened: list[Sink] = []
        self._loggers: Sequence[Any] = ()
        self._beside = self._has_shown = self._is_user = self._goes_on = False
        self._keeper: Keeper | None = None
        self._last: Callable[[bool], None] | None = None
        self._shared = _Shared()

    @property
    def is_open(self) -> bool:
        """Whether a report would be shown anywhere; False off rank zero."""
        return bool(self._opened)

    @property
    def run(self) -> str:
        """The run that looks belong to."""
        return self._shared.run

    @property
    def record(self) -> Record | None:
        """The record that looks are kept in; None where none is kept, or only until the run ends."""
        return self._keeper.record if self._keeper is not None and self._keeper.lasting else None

    def open(self, trainer: Any) -> None:
        """Open the sinks for one stage of a trainer; every rank must ask, the first one alone shows.

        `fast_dev_run` is to leave nothing behind: it has no default sinks.

        Raises:
            ValueError: There are no sinks, or one of them can write nowhere.
        """
        folder = log_folder(trainer)
        self._shared = next((outlet._shared for outlet in _outlets(trainer)), self._shared)
        self._shared.announced.clear()  # all outlets open before one closes
        fits = trainer.state.fn == "fit"
        if fits and trainer.global_step == 0 and self._shared.users == 0:
            self._shared.run = new_run()  # a checkpoint, if there is one, says so after set-up
        if not trainer.is_global_zero or (self.sinks is None and trainer.fast_dev_run):
            self._opened = []
            return
        self._beside = fits and not trainer.fast_dev_run
        self.open_for(trainer.loggers, folder)
        told = getattr(getattr(trainer, "datamodule", None), "split_manifest", None)
        if callable(told):
            self.tell_splits({"data": told()})

    def open_for(self, loggers: Sequence[Any], folder: Path) -> None:
        """Open the sinks without a trainer.

        Args:
            loggers: Where sinks look for the logger that they need.
            folder: Where they may write files.

        Raises:
            ValueError: There are no sinks, or one of them can write nowhere; or the record there is none that can be
                added to.
        """
        sinks = self.sinks
        if sinks is None:
            sinks = [self._shared.defaults.setdefault(kind, kind()) for kind in _default_kinds(loggers)]
        if not sinks:
            choices = ", ".join(f"{kind.__name__}()" for kind in sink_kinds() if kind.serves(loggers))
            raise ValueError(
                f"{self.who}(sinks=[]) would show nothing anywhere: leave sinks out for "
                f"{' and '.join(kind.__name__ for kind in _default_kinds(loggers))}, or give some of {choices}"
            )
        self._has_shown, self._last, self._loggers = False, None, loggers
        for sink in self._opened:
            self._shared.destinations[sink].users -= 1
        self._opened = []
        for sink in sinks:
            sink.open(loggers, folder)
            self._shared.destinations.setdefault(sink, Destination(sink)).users += 1
            self._opened.append(sink)
        place = next((sink.record_folder for sink in sinks if sink.record_folder is not None), None)
        if place not in self._shared.keepers:
            self._shared.keepers[place] = Keeper(place)
        self._keeper = self._shared.keepers[place]
        if place is not None:
            for sink in sinks:
                sink.keep_account(place)
        self._shared.users += not self._is_user
        self._is_user = True

    def resume(self, run: str, record: str) -> None:
        """Go on with a run from a checkpoint, in its record, where that is still there and no other place was given."""
        self._shared.run, self._goes_on = run, True
        if not self.is_open or self.record is None or self.sinks is not None or not Path(record).is_dir():
            return
        if Path(record).resolve() != self.record.folder.resolve():
            # The folder of the run that is resumed: its sinks put their things where they did then.
            self.open_for(self._loggers, Path(record).parents[1])

    def earlier(self, identity: LookIdentity) -> list[RecordedLook]:
        """Return the looks of the same series that were taken before, oldest first."""
        return [] if self._keeper is None else self._keeper.record.before(replace(identity, run=self.run))

    def show_look(self, identity: LookIdentity, seen: Seen, draw: Callable[[], Report] | None = None) -> None:
        """Keep a look in the record and draw it for every sink: beside training, where the run is one.

        Args:
            identity: Which look it is; its run is filled in.
            seen: What it has seen.
            draw: Draws it, in this process, in place of its view.
        """
        if self._keeper is None or not self.is_open:
            return
        identity = replace(identity, run=self.run)
        if not self._has_shown:
            self._describe(identity, seen)
        look = self._keeper.keep(identity, seen)
        step = identity.step
        beside = self._beside and draw is None and not self.raises and self._drawer.is_beside
        if look is not None and self._goes_on:
            self._draw_missing(look, beside=beside)
        if look is not None and beside:
            show = partial(self._submit, self._opened, _job_of(look))
        else:
            carried = Carried(self._keeper.record.before(identity))
            show = partial(self._draw, identity, seen, carried, step)
        if draw is None:
            show(False)
        else:
            self._write(replace(draw(), name=identity.name), step)
        self._last, self._goes_on = show, False

    def _draw_missing(self, look: RecordedLook, *, beside: bool) -> None:
        """Draw what had not been drawn when a run was killed: of the looks before one, those at the end."""
        for sink in self._opened:
            missing: list[RecordedLook] = []
            for earlier in reversed(look.earlier()):
                if len(missing) == _MOST_MISSING or sink.shows(earlier.identity.source, earlier.step):
                    break
                missing.append(earlier)
            for earlier in reversed(missing):
                if beside:
                    self._submit([sink], _job_of(earlier), False)
                    continue
                with suppress(ValueError):  # damaged
                    self._shared.destinations[sink].encode_and_put(self.who, earlier.report(), earlier.step)

    def _describe(self, identity: LookIdentity, seen: Seen) -> None:
        """Tell sinks what the monitor was made with, and what it has found to look at."""
        facts = look_facts(identity, seen)
        for sink in self._opened:
            with suppress(OSError):  # a service that does not answer misses a description, which is in the record
                sink.describe(identity.described_as, facts)

    def tell_splits(self, splits: Mapping[str, Mapping[str, Any] | None], *whose: str) -> None:
        """Let the sinks keep which images do what, each split once a trainer; off rank zero nothing is kept.

        Args:
            splits: By their names, which may be "" for an only one.
            whose: What their names begin with.
        """
        for part, split in splits.items() if self.is_open else ():
            name = "/".join(filter(None, (*whose, part)))
            if split is None or (told := f"{name} {split.get('digest', '')}") in self._shared.splits:
                continue  # told; another stage splits other images
            self._shared.splits.add(told)
            for sink in self._opened:
                with suppress(OSError):  # as above
                    sink.keep_split(name, split)

    def show(self, report: Report, step: Step) -> None:
        """Keep a report of what has no result, and write it to every sink; to none where the outlet is not open."""
        if self._keeper is None or not self.is_open:
            return
        self._keeper.keep(
            LookIdentity(
                view=report.view,
                name=report.name,
                stage=step.stage,
                epoch=step.epoch,
                global_step=step.global_step,
                run=self.run,
                logged=step.logged,
                within=step.within,
            ),
            report,
        )
        self._last = None
        self._write(report, replace(step, run=self.run))

    def show_last(self) -> None:
        """Show what belongs to the end of a run, of the last look, where its view has something."""
        if self._last is not None and self.is_open:
            self._last(True)

    def poll(self) -> None:
        """Write what has been drawn meanwhile; quick where nothing is."""
        if self._shared.drawer is not None:
            self._shared.drawer.poll()
        if self._shared.drawer is None or not self._shared.drawer.unfinished:
            for destination in self._shared.destinations.values():
                destination.end_look(self.who)

    def close(self, *, shows_progress: bool = False, waits: bool = True) -> None:
        """Write what is still being drawn, close every sink, and say once in a trainer's stage where each shows.

        Args:
            shows_progress: Whether to show how much is still to be drawn.
            waits: Whether to wait for it; else it is in the record alone.
        """
        if self._shared.drawer is not None and waits:
            self._shared.drawer.drain(shows_progress=shows_progress)
        opened, self._opened = self._opened, []
        for sink in opened:
            destination = self._shared.destinations[sink]
            destination.users -= 1
            if destination.users == 0:
                del self._shared.destinations[sink]
                destination.close(self.who, raises=self.raises)
            closed = self._closed(sink)
            if closed and self._has_shown and sink.address not in {"", *self._shared.announced}:
                self._shared.announced.add(sink.address)
                printed_log.info("%s: %s", self.who, sink.address)
        if self._is_user:
            self._is_user = False
            self._shared.users -= 1
            if self._shared.users == 0:
                self._release()

    def _closed(self, sink: Sink) -> bool:
        try:
            sink.close()
        except Exception as error:
            if self.raises:
                raise
            log.error("%s: %s could not be closed: %s", self.who, type(sink).__name__, error)
            return False
        return True

    def _release(self) -> None:
        """Let go what the outlets of a trainer share, when the last of them closes."""
        if self._shared.drawer is not None:
            self._shared.drawer.close()
            self._shared.drawer = None
        for keeper in self._shared.keepers.values():
            keeper.close()
        self._shared.keepers.clear()

    @property
    def _drawer(self) -> Drawer:
        if self._shared.drawer is None:
            self._shared.drawer = Drawer()
        return self._shared.drawer

    def _submit(self, sinks: Sequence[Sink], job: DrawingJob, last: bool) -> None:
        """Let a look be drawn and encoded in another process, for some sinks."""
        sinks = list(sinks)
        # Only what that process can import; other sinks encode here.
        encoders = tuple(sink.encode if _is_ours(sink.encode) else Sink.encode for sink in sinks)

        def publish(contents: list[Any]) -> None:
            for sink, encode, content in zip(sinks, encoders, contents, strict=True):
                destination = self._shared.destinations.get(sink)
                if destination is None:
                    continue
                if sink.encode is encode:
                    destination.put(self.who, content, job.step)
                else:
                    destination.encode_and_put(self.who, content, job.step)

        self._drawer.submit(replace(job, encoders=encoders, last=last), publish)
        self._has_shown = True

    def _draw(self, identity: LookIdentity, seen: Seen, carried: Sequence[Any], step: Step, last: bool) -> None:
        """Draw a look here and now."""
        report = (draw_last if last else draw_view)(identity.view, seen, carried)
        if report is not None:
            self._write(replace(report, name=identity.name), step)

    def _write(self, report: Report, step: Step) -> None:
        for sink in self._opened:
            self._shared.destinations[sink].encode_and_put(self.who, report, step, raises=self.raises)
        self._has_shown |= self.is_open


def _job_of(look: RecordedLook) -> DrawingJob:
    return DrawingJob(step=look.step, encoders=(), folder=look.record.folder.resolve(), look=look.id)


def look_facts(identity: LookIdentity, seen: Seen) -> dict[str, Any]:
    """Return what a monitor was made with, and what it has found to look at, as plain values."""
    result, display = seen.result, seen.display
    layers = [each.layer for each in result if hasattr(each, "layer")] if isinstance(result, Iterable) else []
    return {
        **identity.arguments,
        "looked at": {
            "layers": layers or [str(layer) for layer in getattr(result, "layers", ())],
            "images": identity.data.sentence,
            "image numbers": list(display.indices),
            "classes": 0 if display.class_names is None else len(display.class_names),
            "normalization": display.normalization.sentence(),
        },
        "network": identity.network.type,
        "versions": dict(identity.versions),
    }


def show_once(
    who: str, report: Report, step: Step, sinks: list[Sink], *, loggers: Sequence[Any] = (), folder: Path
) -> None:
    """Show one report, without a trainer; a sink that cannot be written to is reported.

    It belongs to the step's run, or to one of its own.

    Raises:
        ValueError: There are no sinks, or one of them can write nowhere.
    """
    outlet = Outlet(who, sinks)
    if step.run:
        outlet.resume(step.run, "")
    outlet.open_for(loggers, folder)
    outlet.show(report, step)
    outlet.close()


def log_folder(trainer: Any) -> Path:
    """Return the folder of this run, beside its checkpoints; every rank must ask."""
    folder = Path(trainer.log_dir or ".")
    loggers: Sequence[Any] = trainer.loggers
    if loggers and Path(str(loggers[0].log_dir)) != folder:
        # A logger without folders of its own: as ModelCheckpoint does, by project and run.
        version = loggers[0].version
        version = version if isinstance(version, str) else f"version_{version}"
        folder = folder / str(loggers[0].name) / version
    return folder


def _outlets(trainer: Any) -> Iterator[Outlet]:
    """The outlets that a trainer's callbacks and its LightningModule hold, in this order."""
    for holder in (*trainer.callbacks, trainer.lightning_module):
        yield from (value for value in vars(holder).values() if isinstance(value, Outlet))


def _default_kinds(loggers: Sequence[Any]) -> list[type[Sink]]:
    return [kind for kind in sink_kinds() if kind.is_default and kind.serves(loggers)]


def _is_ours(encode: Callable[..., Any]) -> bool:
    """Whether another process can import it."""
    return encode.__module__.startswith(f"{__name__.partition('.')[0]}.")
