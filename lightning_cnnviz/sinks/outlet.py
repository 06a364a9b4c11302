"""The one way to show a report: guarded, so that a sink that fails costs nobody a training."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink

__all__ = ["Outlet", "log_folder", "show_once"]

log = logging.getLogger("lightning_cnnviz")
# Python prints no information unless it is told to; Lightning tells it to for its own logger.
printed_log = logging.getLogger("lightning.pytorch")
_FOLDER = str(Path(__file__).parent)


@dataclass
class _Shared:
    """What the outlets of one trainer have in common: its default sinks, and what people have been told."""

    defaults: dict[type[Sink], Sink] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)


class Outlet:
    """Shows the reports of one monitor, or of whoever else has some, in sinks.

    A sink that cannot be opened raises, since nothing is lost yet. One that cannot be written to is reported once, with
    its traceback, and given up; the other sinks and the run go on. A holder keeps its outlet as an attribute, so that
    the outlets of one trainer find each other: its callbacks and its LightningModule write to one page.

    Args:
        who: Whose reports they are, for messages.
        sinks: Where to show them; by default one of each kind that is a default and serves the trainer's loggers.
        raises: Whether a sink that cannot be written to raises instead.

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
        self._writable: list[Sink] = []  # of those, the ones that are not given up
        self._has_shown = False
        self._shared = _Shared()

    @property
    def is_open(self) -> bool:
        """Whether a report would be shown anywhere; False off rank zero, and once all sinks are given up."""
        return bool(self._writable)

    def open(self, trainer: Any) -> None:
        """Open the sinks for one stage of a trainer; every rank must ask, the first one alone shows.

        `fast_dev_run` is to leave nothing behind: it has no default sinks.

        Raises:
            ValueError: There are no sinks, or one of them can write nowhere.
        """
        folder = log_folder(trainer)
        self._shared = next((outlet._shared for outlet in _outlets(trainer)), self._shared)
        self._shared.announced.clear()  # all outlets open before one closes
        if not trainer.is_global_zero or (self.sinks is None and trainer.fast_dev_run):
            self._opened, self._writable = [], []
        else:
            self.open_for(trainer.loggers, folder)

    def open_for(self, loggers: Sequence[Any], folder: Path) -> None:
        """Open the sinks without a trainer.

        Args:
            loggers: Where sinks look for the logger that they need.
            folder: Where they may write files.

        Raises:
            ValueError: There are no sinks, or one of them can write nowhere.
        """
        sinks = self.sinks
        if sinks is None:
            sinks = [self._shared.defaults.setdefault(kind, kind()) for kind in _default_kinds(loggers)]
        if not sinks:
            choices = ", ".join(f"{kind.__name__}()" for kind in _kinds())
            raise ValueError(
                f"{self.who}(sinks=[]) would show nothing anywhere: leave sinks out for "
                f"{' and '.join(kind.__name__ for kind in _default_kinds(loggers))}, or give some of {choices}"
            )
        self._has_shown = False
        self._opened, self._writable = list(sinks), list(sinks)
        for sink in sinks:
            sink.open(loggers, folder)

    def show(self, report: Report, step: Step) -> None:
        """Write a report to every sink that is not given up; to none where the outlet is not open."""
        self._writable = [sink for sink in self._writable if self._tried(sink, partial(sink.write, report, step))]
        self._has_shown |= self.is_open

    def close(self) -> None:
        """Close every sink, and say once in a trainer's stage where each shows what it was given."""
        opened, writable = self._opened, self._writable
        self._opened, self._writable = [], []
        for sink in opened:
            closed = self._tried(sink, sink.close)
            if closed and self._has_shown and sink in writable and sink.address not in {"", *self._shared.announced}:
                self._shared.announced.add(sink.address)
                printed_log.info("%s: %s", self.who, sink.address)

    def _tried(self, sink: Sink, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:
            if self.raises:
                raise
            name = type(sink).__name__
            log.error("%s: %s is given up, the run goes on: %s", self.who, name, error, exc_info=True)
            return False
        return True


def show_once(
    who: str, report: Report, step: Step, sinks: list[Sink], *, loggers: Sequence[Any] = (), folder: Path
) -> None:
    """Show one report, without a trainer; a sink that cannot be written to is reported and given up.

    Raises:
        ValueError: There are no sinks, or one of them can write nowhere.
    """
    outlet = Outlet(who, sinks)
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


def _kinds() -> list[type[Sink]]:
    """Every kind of sink that this folder has: one that is added is known by that."""
    modules = [importlib.import_module(f"{__package__}.{file.name}") for file in pkgutil.iter_modules([_FOLDER])]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    kinds = [kind for kind in found if issubclass(kind, Sink) and kind is not Sink]
    return sorted(kinds, key=lambda kind: kind.__name__)


def _default_kinds(loggers: Sequence[Any]) -> list[type[Sink]]:
    return [kind for kind in _kinds() if kind.is_default and kind.serves(loggers)]
