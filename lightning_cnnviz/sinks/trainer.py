"""Where a trainer's reports go unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink

__all__ = ["default_sinks", "log_folder", "shared_page"]


def log_folder(trainer: Any) -> Path:
    """Return the folder of this run, beside its checkpoints; every rank must ask."""
    folder = Path(trainer.log_dir or ".")
    loggers: Sequence[Any] = trainer.loggers
    if loggers and Path(str(loggers[0].log_dir)) != folder:
        # A logger without folders of its own (W&B): as ModelCheckpoint does, by project and run.
        version = loggers[0].version
        version = version if isinstance(version, str) else f"version_{version}"
        folder = folder / str(loggers[0].name) / version
    return folder


def shared_page(trainer: Any) -> PageSink:
    """Return the page that the trainer's callbacks write to, or a new one."""
    pages = (getattr(callback, "_page", None) for callback in trainer.callbacks)
    return next((page for page in pages if isinstance(page, PageSink)), None) or PageSink()


def default_sinks(trainer: Any, folder: Path, page: PageSink) -> list[Sink]:
    """Return the W&B sink where the trainer has a WandbLogger, and the page."""
    try:
        WandbSink().open(trainer.loggers, folder)
    except ValueError:
        return [page]  # there is no WandbLogger
    return [WandbSink(), page]
