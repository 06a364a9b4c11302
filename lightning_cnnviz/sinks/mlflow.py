"""Reports to MLflow, through the trainer's own MLFlowLoggers; the only room that knows it."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lightning_cnnviz.render.image import decode_tile, to_image
from lightning_cnnviz.report import Report, Step, Table
from lightning_cnnviz.sinks._handover import Handover
from lightning_cnnviz.sinks._loggers import (
    LoggersSink,
    PictureFile,
    named_items,
    numbers_of,
    picture_file,
    table_cells,
    valid_text,
)

__all__ = ["MlflowSink"]

log = logging.getLogger("lightning_cnnviz")

_MOST_ROWS = 2000
_LONGEST = 120  # letters of a name: files are called by it, a step, a time and a mark


@dataclass(frozen=True)
class _Encoded:
    numbers: dict[str, float]
    pictures: dict[str, PictureFile]
    tables: dict[str, dict[str, list[Any]]]


class MlflowSink(LoggersSink):
    """Logs every report to the runs of the trainer's MLFlowLoggers, of `lightning` or of `pytorch_lightning`.

    A gallery or curve becomes an image with a step (MLflow 2.11 or newer), a table a table of the run's artifacts under
    `cnnviz/`, a scalar a metric. The record of all looks, where one is kept, is uploaded under `cnnviz/record` when the
    run ends; of a run that goes on, what is new.

    Training does not wait for a server that is slow or hangs.

    Example:
        >>> MlflowSink.serves([])
        False
    """

    logger_kinds: ClassVar[tuple[str, ...]] = ("MLFlowLogger",)

    def __init__(self) -> None:
        super().__init__()
        self._handover = Handover("MLflow")
        self._record: Path | None = None
        self._uploaded: set[tuple[str, str]] = set()

    def keep_account(self, folder: Path) -> None:
        """Take note of where the record is."""
        self._record = folder

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw and encode the items."""
        pictures, tables = {}, {}
        for name, item in named_items(report, step):
            if isinstance(item, Table):
                rows = table_cells(item, _MOST_ROWS)
                columns = {
                    valid_text(column): [row[place] for row in rows] for place, column in enumerate(item.columns)
                }
                tables[f"{_path(name)}_epoch_{_moment(step)}.json"] = columns
            else:
                pictures[_path(name)] = picture_file(item, report, step)
        return _Encoded(numbers_of(report, step), pictures, tables)

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn, as long as the server does not keep one waiting.

        Raises:
            OSError: The server does not answer, and too much waits for it already.
            RuntimeError: `open` has not been called.
        """
        for logger in self._loggers:
            self._handover.put(partial(_log, logger, content, step.row[1]))

    def close(self) -> None:
        """Upload what is new in the record, wait a few seconds for the server, and say what it has not taken."""
        if self._record is not None:
            for logger in self._known or ():
                self._handover.put(partial(self._upload, logger, self._record))
        missing = self._handover.drain()
        if missing:
            log.error("MlflowSink: %d reports have not been taken by MLflow in time", missing)

    def _upload(self, logger: Any, record: Path) -> None:
        for file in sorted(path for path in record.rglob("*") if path.is_file()):
            inside = file.relative_to(record)
            if (logger.run_id, str(inside)) not in self._uploaded:
                place = ("cnnviz/record" / inside.parent).as_posix()
                logger.experiment.log_artifact(logger.run_id, str(file), place)
                self._uploaded.add((logger.run_id, str(inside)))


def _log(logger: Any, content: _Encoded, step: int) -> None:
    client, run = logger.experiment, logger.run_id
    for name, picture in content.pictures.items():
        client.log_image(run, to_image(decode_tile(picture.content)), key=name, step=step)
    for name, columns in content.tables.items():
        client.log_table(run, columns, f"cnnviz/{name}")
    if content.numbers:
        logger.log_metrics(content.numbers, step)


def _moment(step: Step) -> str:
    """A table is a file: looks in the middle of an epoch have files of their own."""
    return f"{step.epoch}_step_{step.global_step}" if step.within else f"{step.epoch}"


def _path(name: str) -> str:
    """A name of the letters that MLflow takes, no way upwards, and short enough for the files that it is made into."""
    parts = [re.sub(r"[^a-zA-Z0-9_. -]", "_", part) for part in name.split("/")]
    path = "/".join("_" if set(part) <= {"."} else part for part in parts)
    if len(path) <= _LONGEST:
        return path
    return f"{path[: _LONGEST - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
