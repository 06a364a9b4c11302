"""What sinks that write through Lightning's loggers have in common: finding them, and items as they take them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lightning_cnnviz.render.image import encode_tile
from lightning_cnnviz.render.items import draw_item
from lightning_cnnviz.report import Item, Report, Scalar, Step, Table, Tile
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.series import measured, prefix_of

__all__ = [
    "LoggersSink",
    "PictureFile",
    "drawn",
    "found_loggers",
    "is_a",
    "named_items",
    "numbers_of",
    "picture_file",
    "table_cells",
    "valid_text",
]


@dataclass(frozen=True)
class PictureFile:
    """A picture as a file, PNG or JPEG, and its width and height."""

    content: bytes
    size: tuple[int, int]


def is_a(logger: object, names: Sequence[str]) -> bool:
    """Whether a class of one of these names is among its classes: `lightning` and `pytorch_lightning` have one each."""
    return any(base.__name__ in names for base in type(logger).__mro__)


def found_loggers(sink: str, loggers: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return a trainer's loggers of some kinds.

    Raises:
        ValueError: There is none. The DummyLogger of `fast_dev_run` is excused: it stands for any logger.
    """
    found = [logger for logger in loggers if is_a(logger, names)]
    if not found and not any(is_a(logger, ["DummyLogger"]) for logger in loggers):
        there = ", ".join(type(logger).__name__ for logger in loggers) or "none"
        wanted = " or ".join(names)
        raise ValueError(
            f"{sink} found no {wanted} among the trainer's loggers ({there}): add one with "
            f"Trainer(logger={names[0]}(...)), or leave sinks out to show wherever the trainer's loggers can"
        )
    return found


class LoggersSink(Sink):
    """Logs every report through those of the trainer's loggers that it is for: of `logger_kinds`."""

    is_default: ClassVar[bool] = True

    def __init__(self) -> None:
        self._known: list[Any] | None = None

    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        """Say whether there is such a logger."""
        return any(is_a(logger, cls.logger_kinds) for logger in loggers)

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Find the trainer's loggers.

        Raises:
            ValueError: There is none.
        """
        self._known = found_loggers(type(self).__name__, loggers, self.logger_kinds)

    def write(self, report: Report, step: Step) -> None:
        """Log one report.

        Raises:
            RuntimeError: `open` has not been called.
        """
        self.write_encoded(self.encode(report, step), step)

    @abstractmethod
    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what `encode` has made of one report."""

    @property
    def _loggers(self) -> list[Any]:
        if self._known is None:
            raise RuntimeError(f"this {type(self).__name__} knows no logger yet: call open() first")
        return self._known


def numbers_of(report: Report, step: Step) -> dict[str, float]:
    """Return a report's numbers by the keys that they have in every logger, and the epoch as Lightning counts it."""
    scalars = [item for item in report.items if isinstance(item, Scalar)]
    found = measured(scalars, view=report.view, name=report.name, stage=step.stage)
    numbers = {each.key: float(each.value) for each in found}
    return {**numbers, "epoch": step.row[0]} if numbers else {}


def named_items(report: Report, step: Step) -> Iterator[tuple[str, Item]]:
    """Give the items that are no numbers, each with a name of valid text that no other has in the report."""
    prefix, taken = prefix_of(report.view, name=report.name, stage=step.stage), set[str]()
    for item in report.items:
        if isinstance(item, Scalar):
            continue
        name = valid_text(f"{prefix}/{item.name}")
        if name in taken:  # names are unique within a kind only: a curve may be called like a gallery
            name = f"{name}_{type(item).__name__.lower()}"
        taken.add(name)
        yield name, item


def drawn(item: Item, report: Report, step: Step) -> Tensor:
    """Draw an item `(3, H, W)` uint8, under a title that says when it was."""
    return draw_item(item, title=f"{report.heading} · {item.name} · epoch {step.position:.6g}")


def picture_file(item: Item, report: Report, step: Step) -> PictureFile:
    """Draw an item and encode it."""
    pixels = drawn(item, report, step)
    return PictureFile(encode_tile(pixels)[1], (pixels.shape[2], pixels.shape[1]))


def table_cells(table: Table, most: int) -> list[list[Any]]:
    """Return the first rows of a table as plain values and valid text; of a tile, its caption."""
    cells = [[cell.caption if isinstance(cell, Tile) else cell for cell in row] for row in table.rows[:most]]
    return [[valid_text(cell) if isinstance(cell, str) else cell for cell in row] for row in cells]


def valid_text(text: str) -> str:
    """Return a text without what no file can hold: names of files may be no Unicode."""
    return text.encode(errors="replace").decode()
