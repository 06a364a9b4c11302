"""Reports to the loggers that have no sink of their own: numbers to each, pictures to those that take some."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lightning_cnnviz.render.items import as_figure
from lightning_cnnviz.report import Report, Step
from lightning_cnnviz.sinks._loggers import LoggersSink, drawn, is_a, named_items, numbers_of
from lightning_cnnviz.sinks.base import Sink, sink_kinds

__all__ = ["LoggerSink"]

_TakesPicture = Callable[[str, "np.ndarray[Any, Any]", int], Any]


@dataclass(frozen=True)
class _Encoded:
    numbers: dict[str, float]
    pictures: dict[str, np.ndarray[Any, Any]]  # (H, W, 3) uint8


class LoggerSink(LoggersSink):
    """Logs the numbers of every report to each of the trainer's loggers that has no sink of its own.

    CSVLogger, CometLogger, NeptuneLogger, LitLogger, or one of your own: by `log_metrics`, at the step at which
    Lightning logs its own numbers of that moment. A logger that takes pictures is given these, too, tables among them:
    by `logger.log_image(key, images, step)`, `experiment.log_image(image, name, step)`,
    `experiment.add_image(tag, image, step)`, `experiment.log_figure(figure_name, figure, step)`, or
    `experiment.log_image(name, val)`, which gets the step as a file's name.
    """

    joins_looks: ClassVar[bool] = True

    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        """Say whether there is a logger without a sink of its own."""
        return bool(_others(loggers))

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Find the loggers.

        Raises:
            ValueError: There is none, or each has a sink of its own. The DummyLogger of `fast_dev_run` is excused.
        """
        self._known = _others(loggers)
        if not self._known and not any(_is_dummy(logger) for logger in loggers):
            found = ", ".join(type(logger).__name__ for logger in loggers) or "none"
            raise ValueError(f"LoggerSink found no logger of the trainer's that has no sink of its own ({found})")
        if not any(_takes_pictures(logger) for logger in self._known):
            self.encode = _encode_numbers  # type: ignore[method-assign]

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw the items."""
        pictures = {
            name: drawn(item, report, step).permute(1, 2, 0).numpy() for name, item in named_items(report, step)
        }
        return _Encoded(numbers_of(report, step), pictures)

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn of one report.

        Raises:
            RuntimeError: `open` has not been called.
        """
        self.write_look([content], step)

    def write_look(self, contents: Sequence[Any], step: Step) -> None:
        """Log what has been drawn of all reports of one moment: their numbers at once, as one row of a table.

        Raises:
            RuntimeError: `open` has not been called.
        """
        at = step.row[1]
        numbers = {key: value for content in contents for key, value in content.numbers.items()}
        pictures = [each for content in contents for each in content.pictures.items()]
        for logger in self._loggers:
            take = _picture_taker(logger) if pictures else None
            if take is not None:
                for name, picture in pictures:
                    take(name, picture, at)
            if numbers:
                logger.log_metrics(numbers, at)


def _picture_taker(logger: Any) -> _TakesPicture | None:
    """Return what gives a logger a picture `(H, W, 3)` under a name at a step; None where it takes none.

    Methods are known by their names and by what they call their arguments.
    """
    own: Any = getattr(logger, "log_image", None)
    if _names(own) >= {"key", "images"}:
        return lambda name, picture, step: own(key=name, images=[picture], step=step)
    kind = type(getattr(logger, "experiment", None))  # asked of its class: some raise errors of their own
    log_image, add_image, log_figure = (
        getattr(logger.experiment, name) if hasattr(kind, name) else None
        for name in ("log_image", "add_image", "log_figure")
    )
    if _names(log_image) >= {"name", "step"}:
        return lambda name, picture, step: log_image(picture, name=name, step=step)  # type: ignore[misc]
    if _names(add_image) >= {"tag", "global_step", "dataformats"}:
        return lambda name, picture, step: add_image(name, picture, global_step=step, dataformats="HWC")  # type: ignore[misc]
    if _names(log_figure) >= {"figure_name", "figure", "step"}:
        return lambda name, picture, step: log_figure(figure_name=name, figure=as_figure(picture), step=step)  # type: ignore[misc]
    if _names(log_image) >= {"name", "val"}:
        return lambda name, picture, step: log_image(f"{name}/{step}.png", picture)  # type: ignore[misc]
    return None


def _encode_numbers(report: Report, step: Step) -> Any:
    """What loggers without pictures need."""
    return _Encoded(numbers_of(report, step), {})


def _takes_pictures(logger: Any) -> bool:
    return _picture_taker(logger) is not None


def _names(method: Any) -> set[str]:
    return set(inspect.signature(method).parameters) if callable(method) else set()


def _others(loggers: Sequence[Any]) -> list[Any]:
    taken = {name for kind in (*sink_kinds(), *_subclasses(Sink)) for name in kind.logger_kinds}
    return [logger for logger in loggers if not _is_dummy(logger) and not is_a(logger, [*taken])]


def _is_dummy(logger: Any) -> bool:
    return is_a(logger, ["DummyLogger"])


def _subclasses(base: Any) -> Iterator[type[Sink]]:
    """Sinks of the user's own, too."""
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)
