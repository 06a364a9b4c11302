"""Reports to Weights & Biases, through the trainer's own WandbLoggers; the only room that knows wandb."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias

from PIL import Image
from torch import Tensor

from lightning_cnnviz.render.image import LOSSLESS_SIDE, to_image
from lightning_cnnviz.render.items import draw_item
from lightning_cnnviz.report import Item, Number, Report, Scalar, Step, Table, Tile
from lightning_cnnviz.sinks._handover import Handover
from lightning_cnnviz.sinks.base import Sink

__all__ = ["WandbSink", "opened_run"]

log = logging.getLogger("lightning_cnnviz")

_ACCOUNT = "sent-to-wandb.jsonl"

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


@dataclass(frozen=True)
class _Encoded:
    """A report as W&B is to have it: whose it is, and the content of each item by its key."""

    source: str
    items: Mapping[str, _Content]


class WandbSink(Sink):
    """Logs every report to the runs of the trainer's WandbLoggers, of `lightning` or of `pytorch_lightning`.

    A gallery becomes one JPEG sheet with its labels on it, a curve a figure, a table a `wandb.Table`, a scalar a
    number: under its key in the report, one row a report, with `epoch` and `trainer/global_step`.

    Training does not wait for a W&B service that is slow or hangs. What was sent is noted in the record, where one is
    kept, and `cnnviz sync` sends the rest later.

    Example:
        >>> from pathlib import Path
        >>> WandbSink().open([], Path("logs"))
        Traceback (most recent call last):
        ValueError: WandbSink found no WandbLogger among the trainer's loggers (none): add one with \
Trainer(logger=WandbLogger(project=...)), or write elsewhere, for example with sinks=[PageSink()]
    """

    is_default: ClassVar[bool] = True
    logger_kinds: ClassVar[tuple[str, ...]] = ("WandbLogger",)

    def __init__(self) -> None:
        self._loggers: list[Any] | None = None
        self._handover = Handover("W&B")
        self._account: Path | None = None

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

    @property
    def remedy(self) -> str:
        """Send them from the record."""
        if self._account is None:
            return ""
        return f"To send them later: cnnviz sync {self._account.parent} --to-wandb PROJECT/RUN"

    def keep_account(self, folder: Path) -> None:
        """Note in a record's folder what is sent."""
        self._account = folder / _ACCOUNT

    def has_sent(self, content: Any, step: Step) -> bool:
        """Whether it is noted that a report has been sent to all runs."""
        noted: set[tuple[str, str]] = set()
        if self._account is not None:
            with suppress(OSError):
                for line in self._account.read_text(encoding="utf-8").splitlines():
                    with suppress(ValueError, TypeError, KeyError):  # half a line of a process that was killed
                        entry = json.loads(line)
                        noted.add((entry["to"], entry["report"]))
        return all((_name_of(run), _mark(content, step)) in noted for run in self._runs())

    def write(self, report: Report, step: Step) -> None:
        """Log one report as one row of each run.

        Raises:
            RuntimeError: `open` has not been called.
        """
        self.write_encoded(self.encode(report, step), step)

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw and encode the items."""
        return _Encoded(report.source, dict(_contents(report, step)))

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn as one row of each run, as long as the service does not keep one waiting.

        Raises:
            OSError: The service does not answer, and too much waits for it already.
            RuntimeError: `open` has not been called.
        """
        for run in self._runs() if content.items else ():
            # Made anew for each run: a media object belongs to the first one that it is logged to. And made here: the
            # first ones take seconds to load what they need, which is no fault of the service.
            media = {key: _media(what) for key, what in content.items.items()}
            self._handover.put(partial(self._log, run, media, _mark(content, step), step))

    def close(self) -> None:
        """Wait a few seconds for the service, and say what it has not taken."""
        missing = self._handover.drain()
        if missing:
            log.error("WandbSink: %d reports have not reached W&B, which does not answer. %s", missing, self.remedy)

    def _runs(self) -> list[Any]:
        if self._loggers is None:
            raise RuntimeError("this WandbSink knows no run yet: call open() first")
        # The WandbLoggers of one process usually share a run, which must not get everything twice.
        return list({id(run): run for run in (logger.experiment for logger in self._loggers)}.values())

    def _log(self, run: Any, media: Mapping[str, Any], mark: str, step: Step) -> None:
        # Never `step=`: wandb drops rows below its own count of log calls, and Lightning's calls raise that too.
        run.log({"epoch": step.epoch, "trainer/global_step": step.global_step, **media})
        if self._account is not None:
            line = json.dumps({"to": _name_of(run), "report": mark})
            with suppress(OSError), self._account.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


@contextmanager
def opened_run(name: str) -> Iterator[Any]:
    """Go on with a W&B run, and finish it afterwards; gives what `WandbSink.open` takes for a logger.

    Args:
        name: `entity/project/id`, or `project/id`.

    Raises:
        ValueError: It is not of this form.
    """
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"{name!r} names no W&B run: give entity/project/id, or project/id")
    import wandb

    run = wandb.init(entity=parts[0] if len(parts) == 3 else None, project=parts[-2], id=parts[-1], resume="allow")
    try:
        yield _Opened(experiment=run)
    finally:
        run.finish()


class _Opened(SimpleNamespace):
    """Stands for the WandbLogger of a run that no trainer has."""


# By this name loggers are known, those of `lightning` and of `pytorch_lightning`.
_Opened.__name__ = "WandbLogger"


def _name_of(run: Any) -> str:
    return str(getattr(run, "id", ""))


def _mark(content: _Encoded, step: Step) -> str:
    """What tells a report from all others of a record."""
    parts = (content.source, step.run, step.stage, step.epoch, step.global_step, *sorted(content.items))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


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
