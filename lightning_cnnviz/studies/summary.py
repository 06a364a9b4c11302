"""What all studies show alike: a mean with its spread, a page, a table for the terminal, a summary run."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from lightning_cnnviz.render.tables import table_text
from lightning_cnnviz.report import Report, Step, Table
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import show_once
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink
from lightning_cnnviz.studies.training import Runs

__all__ = ["report_text", "show_study", "spread", "with_spread"]


def spread(values: Tensor) -> float:
    """Return the standard deviation over seeds (of a sample: n - 1), NaN for a single one."""
    return float(values.std()) if len(values) > 1 else math.nan


def with_spread(values: Tensor, *, sign: bool = False) -> str:
    """Write values from 0 to 1 in percent: mean ± standard deviation.

    Example:
        >>> with_spread(torch.tensor([0.5, 0.52])), with_spread(torch.tensor([0.25]), sign=True)
        ('51.0 ± 1.4', '+25.0')
    """
    mean = f"{100 * float(values.mean()):{'+' if sign else ''}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * spread(values):.1f}"


def report_text(report: Report) -> str:
    """Return a report's first table for a terminal, and its notes."""
    table = next(item for item in report.items if isinstance(item, Table))
    return "\n".join([report.title, "", table_text(table), "", *report.notes])


def show_study(report: Report, folder: Path, runs: Runs | None) -> None:
    """Write a study's page, and its summary run where runs are logged."""
    loggers = [] if runs is None else [runs.logger(f"{runs.group} summary", "summary")]
    sinks: list[Sink] = [PageSink(folder), *(WandbSink() for _ in loggers)]
    show_once("study", report, Step(epoch=0, global_step=0, stage="test"), sinks, loggers=loggers, folder=folder)
    for logger in loggers:
        logger.experiment.finish()
