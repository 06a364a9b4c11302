"""The contract of every destination of reports."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning_cnnviz.report import Report, Step

__all__ = ["Sink", "sink_kinds"]


class Sink(ABC):
    """Takes reports to one place.

    A sink is opened once before anything is written, written to after each look, and closed at the end; on rank zero
    only. Several monitors may share one, and open and close it each. What it needs of the trainer's loggers and
    folder, it finds for itself.

    Attributes:
        is_default: Whether monitors whose user has named no sinks show here too, in trainers that it serves.
        logger_kinds: Names of the classes of loggers that it logs everything to, so that no other sink does.
    """

    is_default: ClassVar[bool] = False
    logger_kinds: ClassVar[tuple[str, ...]] = ()
    joins_looks: ClassVar[bool] = False
    """Whether it takes all reports of one moment together, by `write_look`, once the last of them is there."""

    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        """Say whether this kind of sink can show something in a trainer with these loggers."""
        return True

    @property
    def address(self) -> str:
        """Where a person finds what was shown, as "open cnnviz/index.html in a browser"; "" for nowhere."""
        return ""

    def open(self, loggers: Sequence[Any], folder: Path) -> None:  # noqa: B027 - most sinks need nothing
        """Get ready to be written to; may be called again, also for another run.

        Args:
            loggers: Every logger of the trainer.
            folder: The trainer's log folder (may not exist yet).

        Raises:
            ValueError: This sink can write nowhere, for example since the logger that it needs is absent.
        """

    @property
    def record_folder(self) -> Path | None:
        """Where the record of what is shown here belongs; None where it belongs nowhere, or is not known yet."""
        return None

    @property
    def remedy(self) -> str:
        """How what could not be shown there may be shown later, as a sentence; "" where it cannot."""
        return ""

    def keep_account(self, folder: Path) -> None:  # noqa: B027 - most sinks keep none
        """Note in a record's folder what has been shown, where that is of use later; called after `open`."""

    def shows(self, source: str, step: Step) -> bool:
        """Whether a look of this source (see `Report.source`) is there already; True where that is not known.

        A run that goes on after it was killed draws again what was not; called after `open`.
        """
        return True

    @abstractmethod
    def write(self, report: Report, step: Step) -> None:
        """Show one report, taken at `step`."""

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Do what takes long, for `write_encoded`; called in another process where reports are drawn beside training.

        A sink whose `write` takes long does this work here, in a static method: it can be pickled, and so must be what
        it returns.
        """
        return report

    def write_encoded(self, content: Any, step: Step) -> None:
        """Show what `encode` has made of one report."""
        self.write(content, step)

    def write_look(self, contents: Sequence[Any], step: Step) -> None:
        """Show what `encode` has made of all reports of one moment."""
        for content in contents:
            self.write_encoded(content, step)

    def describe(self, monitor: str, facts: Mapping[str, Any]) -> None:  # noqa: B027 - most sinks need nothing
        """Take note of what a monitor was made with: plain values; called after `open`, before its first look."""

    def keep_split(self, name: str, split: Mapping[str, Any]) -> None:  # noqa: B027 - most sinks keep none
        """Keep which images do what, as plain values; called after `open`, once for each split."""

    def finish(self) -> None:  # noqa: B027 - most sinks need nothing
        """Show what belongs to the end of a fit, validation or test: all who showed here are closing it."""

    def close(self) -> None:  # noqa: B027 - most sinks need nothing
        """Finish; more may be written afterwards."""


def sink_kinds() -> list[type[Sink]]:
    """Return every kind of sink that this folder has, imported or not: one that is added is known by that."""
    folder = str(Path(__file__).parent)
    modules = [importlib.import_module(f"{__package__}.{file.name}") for file in pkgutil.iter_modules([folder])]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    kinds = [kind for kind in found if issubclass(kind, Sink) and kind is not Sink]
    return sorted(kinds, key=lambda kind: kind.__name__)
