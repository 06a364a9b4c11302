"""Reports in a list, for tests and notebooks."""

from __future__ import annotations

from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks.base import Sink

__all__ = ["MemorySink"]


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
