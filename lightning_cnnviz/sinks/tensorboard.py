"""Reports to TensorBoard, through the trainer's own TensorBoardLoggers; the only room that knows it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning_cnnviz.report import Report, Step, Table
from lightning_cnnviz.sinks._loggers import (
    LoggersSink,
    PictureFile,
    named_items,
    numbers_of,
    picture_file,
    table_cells,
    valid_text,
)

__all__ = ["TensorBoardSink"]

_MOST_ROWS = 200  # of a table: it is text


@dataclass(frozen=True)
class _Encoded:
    numbers: dict[str, float]
    pictures: dict[str, PictureFile]
    texts: dict[str, str]


class TensorBoardSink(LoggersSink):
    """Logs every report to the trainer's TensorBoardLoggers, of `lightning` or of `pytorch_lightning`.

    A gallery or curve becomes a picture, with its labels on it; a table, and what a report says of itself, text; a
    scalar a number. All stand at the step at which Lightning logs its own numbers of that moment.

    Example:
        >>> from pathlib import Path
        >>> TensorBoardSink.serves([])
        False
    """

    logger_kinds: ClassVar[tuple[str, ...]] = ("TensorBoardLogger",)

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, str] = {}

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Find the trainer's loggers, which have been told nothing yet."""
        super().open(loggers, folder)
        self._said = {}

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw and encode the items."""
        pictures, texts = {}, {}
        for name, item in named_items(report, step):
            if isinstance(item, Table):
                texts[name] = _markdown(item)
            else:
                pictures[name] = picture_file(item, report, step)
        return _Encoded(numbers_of(report, step), pictures, {**texts, **_about(report, step)})

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn.

        Raises:
            RuntimeError: `open` has not been called.
        """
        at = step.row[1]
        for logger in self._loggers:
            writer = logger.experiment
            for name, picture in content.pictures.items():
                writer._get_file_writer().add_summary(_summary(writer, name, picture), at)
            for name, text in content.texts.items():
                if self._said.get(name) != text or len(self._loggers) > 1:
                    writer.add_text(name, text, at)
            if content.numbers:
                logger.log_metrics(content.numbers, at)
            writer.flush()
        self._said |= content.texts


def _summary(writer: Any, name: str, picture: PictureFile) -> Any:
    """A picture as TensorBoard has it: `add_image` would encode it as PNG, in the training process."""
    # Lightning takes either package's writer.
    package = "tensorboardX" if type(writer).__module__.startswith("tensorboardX") else "tensorboard.compat"
    protocol = importlib.import_module(f"{package}.proto.summary_pb2")
    width, height = picture.size
    image = protocol.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.content)
    return protocol.Summary(value=[protocol.Summary.Value(tag=name, image=image)])


def _markdown(table: Table) -> str:
    rows = [[_cell(cell) for cell in row] for row in table_cells(table, _MOST_ROWS)]
    lines = [[_cell(column) for column in table.columns], ["---"] * len(table.columns), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left = len(table.rows) - len(rows)
    rest = f"... and {left:,} more rows" if left else ""
    return "\n\n".join(part for part in (valid_text(table.caption), text, rest) if part)


def _about(report: Report, step: Step) -> dict[str, str]:
    """What a report says of its pictures, by a name of its own."""
    named = list(named_items(report, step))
    captions = [(item.name, getattr(item, "caption", "")) for _, item in named if not isinstance(item, Table)]
    lines = [report.heading, *report.notes, *(f"{name}: {caption}" for name, caption in captions if caption)]
    prefix = named[0][0].rpartition("/")[0] if named else ""
    return {f"{prefix}/how to read": "\n\n".join(map(valid_text, lines))} if named and len(lines) > 1 else {}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return valid_text(text).replace("|", "\\|").replace("\n", " ")
