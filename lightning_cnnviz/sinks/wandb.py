"""Reports to Weights & Biases, through the trainer's own WandbLoggers; the only room that knows wandb."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from PIL import Image
from torch import Tensor

from lightning_cnnviz.render.image import LOSSLESS_SIDE, to_image
from lightning_cnnviz.render.items import draw_item
from lightning_cnnviz.report import Item, Number, Report, Scalar, Step, Table, Tile
from lightning_cnnviz.sinks.base import Sink

__all__ = ["WandbSink"]

_MOST_ROWS = 200_000
"""W&B cuts longer tables in silence."""
_LONGEST = 110
"""Bytes of a key: W&B names files and artifacts after it and the run, and the names of artifacts have at most 128."""


@dataclass(frozen=True)
class _File:
    """A picture as the file that W&B is to have."""

    content: bytes
    type: str  # "png" or "jpg"
    size: tuple[int, int]
    caption: str


@dataclass(frozen=True)
class _Cells:
    """A table whose pictures are files."""

    columns: tuple[str, ...]
    rows: list[list[Number | _File | None]]


_Content: TypeAlias = "_File | _Cells | float"


class WandbSink(Sink):
    """Logs every report to the runs of the trainer's WandbLoggers, of `lightning` or of `pytorch_lightning`.

    A gallery becomes one JPEG sheet with its labels on it, a curve a figure, a table a `wandb.Table`, a scalar a
    number: under its key in the report, one row a report, with `epoch` and `trainer/global_step`.

    Example:
        >>> from pathlib import Path
        >>> WandbSink().open([], Path("logs"))
        Traceback (most recent call last):
        ValueError: WandbSink found no WandbLogger among the trainer's loggers (none): add one with \
Trainer(logger=WandbLogger(project=...)), or write elsewhere, for example with sinks=[PageSink()]
    """

    is_default: ClassVar[bool] = True

    def __init__(self) -> None:
        self._loggers: list[Any] | None = None

    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        """Say whether there is a WandbLogger."""
        return any(_is_a(logger, "WandbLogger") for logger in loggers)

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Find the trainer's WandbLoggers.

        Raises:
            ValueError: There is none. The DummyLogger of `fast_dev_run` is excused: it stands for any logger.
        """
        if not self.serves(loggers) and not any(_is_a(logger, "DummyLogger") for logger in loggers):
            found = ", ".join(type(logger).__name__ for logger in loggers) or "none"
            raise ValueError(
                f"WandbSink found no WandbLogger among the trainer's loggers ({found}): add one with "
                "Trainer(logger=WandbLogger(project=...)), or write elsewhere, for example with sinks=[PageSink()]"
            )
        self._loggers = [logger for logger in loggers if _is_a(logger, "WandbLogger")]

    def write(self, report: Report, step: Step) -> None:
        """Log one report as one row of each run.

        Raises:
            RuntimeError: `open` has not been called.
        """
        self.write_encoded(self.encode(report, step), step)

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw and encode the items: the content of each, by its key."""
        return dict(_contents(report, step))

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn as one row of each run.

        Raises:
            RuntimeError: `open` has not been called.
        """
        if self._loggers is None:
            raise RuntimeError("this WandbSink knows no run yet: call open() first")
        # The WandbLoggers of one process usually share a run, which must not get everything twice.
        runs = {id(run): run for run in (logger.experiment for logger in self._loggers)}
        for run in runs.values() if content else ():
            # Made anew for each run: a media object belongs to the first one that it is logged to.
            media = {key: _media(what) for key, what in content.items()}
            # Never `step=`: wandb drops rows below its own count of log calls, and Lightning's calls raise that too.
            run.log({"epoch": step.epoch, "trainer/global_step": step.global_step, **media})


def _is_a(logger: object, name: str) -> bool:
    """Whether a class of this name is among its classes: `lightning` and `pytorch_lightning` have one each."""
    return any(base.__name__ == name for base in type(logger).__mro__)


def _contents(report: Report, step: Step) -> Iterator[tuple[str, _Content]]:
    """Draw the items: each one's key, with its content."""
    taken: set[str] = set()
    for item in report.items:
        if isinstance(item, Scalar):
            if item.measured:
                yield _key(report, item), item.value
            continue
        key = _key(report, item)
        if key in taken:  # names are unique within a kind only: a curve may be called like a gallery
            key = f"{key}_{type(item).__name__.lower()}"
        taken.add(key)
        if isinstance(item, Table):
            yield key, _cells(item)
        else:
            title = f"{report.heading} · {item.name} · epoch {step.epoch}"
            yield key, _file(draw_item(item, title=title), _caption(item, report))


def _key(report: Report, item: Item) -> str:
    """The item's key, of what W&B takes in one: valid Unicode, since files are named after it, and no way upwards."""
    parts = report.key(item).encode(errors="replace").decode().split("/")
    return _short("/".join("__" if part == ".." else part for part in parts))


def _short(key: str) -> str:
    """A key that is not too long for W&B: the beginning, and what tells it from others."""
    whole = key.encode()
    if len(whole) <= _LONGEST:
        return key
    return f"{whole[: _LONGEST - 9].decode(errors='ignore')}-{hashlib.blake2b(whole, digest_size=4).hexdigest()}"


def _caption(item: Item, report: Report) -> str:
    return " ".join(text for text in (getattr(item, "caption", ""), *report.notes) if text)


def _cells(table: Table) -> _Cells:
    if len(table.rows) > _MOST_ROWS:
        warnings.warn(
            f"Table '{table.name}' has {len(table.rows):,} rows; W&B keeps the first {_MOST_ROWS:,} of a table, so "
            "only these are logged",
            stacklevel=2,
        )
    rows = [
        [_file(cell.pixels, cell.caption) if isinstance(cell, Tile) else cell for cell in row]
        for row in table.rows[:_MOST_ROWS]
    ]
    return _Cells(tuple(table.columns), rows)


def _file(pixels: Tensor, caption: str) -> _File:
    """Encode pixels: as JPEG, since a PNG costs a third of a second a megapixel, but for tiny pictures."""
    image, buffer = to_image(pixels), io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        image.save(buffer, "PNG")
        return _File(buffer.getvalue(), "png", image.size, caption)
    # W&B's own quality, but with full color resolution: half of it smears the color edges of small filters.
    image.save(buffer, "JPEG", quality=75, subsampling=0)
    return _File(buffer.getvalue(), "jpg", image.size, caption)


class _EncodedImage(Image.Image):
    """An image that is saved as the file that it already is: wandb writes images with `save`.

    Given a file instead, wandb would decode it; given an array, it blackens float ones and drops sides of length 1.
    """

    def __init__(self, file: _File) -> None:
        super().__init__()
        self._mode, self._size = "RGB", file.size
        self._content = file.content

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """Write the file."""
        Path(fp).write_bytes(self._content)


def _media(content: _Content) -> Any:
    import wandb

    if isinstance(content, _File):
        return wandb.Image(_EncodedImage(content), caption=content.caption or None, file_type=content.type)
    if isinstance(content, _Cells):
        # A fresh table each time: logged again, the same one keeps its first file.
        rows = [[_media(cell) if isinstance(cell, _File) else cell for cell in row] for row in content.rows]
        return wandb.Table(columns=list(content.columns), data=rows)
    return content
