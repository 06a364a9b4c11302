"""What every destination of reports has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cnnviz.report import Report, Step

__all__ = ["MemorySink", "Sink"]


class Sink(ABC):
    """Takes reports to one place.

    A monitor calls `open` once at set-up, `write` after each look and `close` at the end of the run; all on rank zero
    only. The protocol names no product: what a sink can use of the trainer's loggers and folder, it finds for itself.
    """

    def open(self, loggers: Sequence[Any], folder: Path) -> None:  # noqa: B027 - most sinks need nothing
        """Get ready before training starts; may be called again for a second run.

        Args:
            loggers: Every logger of the trainer.
            folder: The trainer's log folder (may not exist yet).

        Raises:
            ValueError: This sink can write nowhere, for example since the logger that it needs is absent.
        """

    @abstractmethod
    def write(self, report: Report, step: Step) -> None:
        """Show one report, taken at `step`."""

    def close(self) -> None:  # noqa: B027 - most sinks need nothing
        """Finish; more may be written afterwards."""


class MemorySink(Sink):
    """Keeps every report in a list, for tests and notebooks.

    Attributes:
        reports: `(step, report)` in the order of writing.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[Step, Report]] = []

    def write(self, report: Report, step: Step) -> None:
        """Append the report to the list."""
        self.reports.append((step, report))
