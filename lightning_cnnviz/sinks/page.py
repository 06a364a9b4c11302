"""The local page: a folder whose `index.html` opens from disk, and that grows by each look."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_cnnviz.files import check_writable, write_file
from lightning_cnnviz.report import Item, Report, Scalar, Step, Table
from lightning_cnnviz.sinks._page_folder import FOLDERS, OUR_CALL, PageFolder
from lightning_cnnviz.sinks._page_html import FORMAT, bundled_page, page_html
from lightning_cnnviz.sinks._page_items import (
    EncodedItem,
    Pictures,
    facts_json,
    parts_of,
    plain,
    to_json,
)
from lightning_cnnviz.sinks._page_series import Head
from lightning_cnnviz.sinks.base import Sink

__all__ = ["PageSink"]

_OURS = re.compile(r'<meta name="generator" content="lightning_cnnviz page (\d+)">')
_ONE_FILE = '<script type="application/json" id="data-views">'  # of the page that was one file, which ours replaces


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """A report as it stands on the page.

    Attributes:
        head: What `Head` takes from the report.
        notes: The report's notes, as JSON.
        facts: What is known of layers and channels, as JSON.
        items: Each item but scalars.
        pictures: These, by name, as data URIs.
    """

    head: Mapping[str, Any]
    notes: str
    facts: str
    items: tuple[EncodedItem, ...]
    pictures: Mapping[str, str]


class PageSink(Sink):
    """Keeps a page in a folder that shows every look of every view that writes here.

    `index.html` opens from disk and loads what it is asked to show from the files beside it. Each look is a file of its
    own that is written once: nothing that was written is lost by a crash, by a full disk, or by another process that
    writes here, and a later process continues the page. It is whole at any moment, so it may stay open in a browser
    while training runs; a reload shows what is new.

    One sink may serve several monitors. A look is identified by its view, its monitor's name and its step (with stage,
    run and data): what one sink writes again under all three is replaced item by item. Looks of two stages, runs or
    data sets stand in series of their own. A picture that an earlier look has is not stored again, and of patches of
    one image, unless they are tiny, the image alone.

    Args:
        directory: Where `index.html` goes; by default `cnnviz` in the trainer's log folder.
        max_megabytes: Above this size of the data, inner looks are left out, but for their scalars, and the page says
            how many: the 1st, 2nd, 5th, 10th, 20th, 50th ... look of each series stay longest, the first and the newest
            always. By default nothing is left out.

    Example:
        >>> PageSink("runs/page", max_megabytes=20).path.as_posix()
        'runs/page/index.html'
    """

    is_default: ClassVar[bool] = True

    def __init__(self, directory: str | Path | None = None, *, max_megabytes: float | None = None) -> None:
        if max_megabytes is not None and not max_megabytes > 0:
            raise ValueError(f"max_megabytes must be above 0, not {max_megabytes}")
        self._given = None if directory is None else Path(directory)
        self._folder = None if directory is None else PageFolder(Path(directory))
        self._most_bytes = None if max_megabytes is None else max_megabytes * 1_000_000
        self._writer = secrets.token_hex(4)
        self._written = 0

    @property
    def path(self) -> Path:
        """The page itself, `index.html`.

        Raises:
            RuntimeError: No directory was given, and `open` has not been called.
        """
        return self._opened.directory / "index.html"

    @property
    def address(self) -> str:
        """The page, to be opened in a browser; "" before it is known where it goes."""
        return f"open {self.path} in a browser" if self._folder is not None else ""

    @property
    def record_folder(self) -> Path | None:
        """Beside the page."""
        return None if self._folder is None else self._folder.directory / "record"

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Decide where the page goes.

        Raises:
            ValueError: There is an `index.html`, a `looks.js` or a file in the place of a folder that is none of ours,
                or a page of a newer version; or the folder cannot be written to.
        """
        directory = self._given or Path(folder) / "cnnviz"
        if self._folder is None or self._folder.directory != directory:
            self._folder = PageFolder(directory)
        try:
            _read_page(self.path)
            _check_parts(directory)
            check_writable(directory)
        except OSError as error:
            raise ValueError(
                f"PageSink cannot write to {directory}: {error}. Give another folder: PageSink(<folder>), or --out of "
                "a command"
            ) from error

    def shows(self, source: str, step: Step) -> bool:
        """Whether a look of this source (see `Report.source`) is on the page already, with all its items."""
        folder = self._opened
        folder.scan()
        return folder.shows(source, step)

    def write(self, report: Report, step: Step) -> None:
        """Add the report to the page.

        Raises:
            OSError: The page cannot be written. It is then as it was, and the report is not on it.
            ValueError: There is an `index.html` that is none of ours, or of a newer version.
        """
        self.write_encoded(self.encode(report, step), step)

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Describe the items in JSON, and encode their pictures."""
        pictures = Pictures()
        items = [pictures.describe(item) for item in report.items if not isinstance(item, Scalar)]
        scalars = (plain(item.value) for item in report.items if isinstance(item, Scalar))
        head = {
            "source": report.source,
            "title": report.heading,
            "label": " · ".join(part for part in (report.view.replace("_", " "), report.name) if part),
            "contents": tuple((type(item).__name__, item.name, _layer_of(item)) for item in report.items),
            "scalars": tuple(None if value is None else float(value) for value in scalars),
        }
        return _Encoded(
            head=head,
            notes=to_json(list(report.notes)),
            facts=facts_json(report.facts),
            items=tuple(items),
            pictures=pictures.encoded,
        )

    def write_encoded(self, content: Any, step: Step) -> None:
        """Add to the page what `encode` has made of a report; of its pictures, only what is new is written.

        Raises:
            OSError: The page cannot be written. It is then as it was, and the report is not on it.
            ValueError: There is an `index.html` that is none of ours, or of a newer version.
        """
        path, folder = self.path, self._opened
        if self._written == 0:
            _check_parts(folder.directory)
        if _read_page(path) != page_html():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, page_html().encode())
        folder.scan()
        if self._written == 0:
            folder.sweep()
        chunk = self._next_chunk()
        try:
            self._add(folder, chunk, content, step)
            folder.write_list()
        except BaseException:
            folder.take_back(chunk)
            raise
        folder.catch_up()
        if self._most_bytes is not None and folder.thin(self._most_bytes, keep=chunk):
            folder.write_list()

    def _add(self, folder: PageFolder, chunk: str, content: _Encoded, step: Step) -> None:
        """Write the look and its pictures."""
        complete = False
        while not complete:
            places = folder.store(chunk, content.pictures)
            parts = parts_of(chunk, content.notes, content.facts, content.items, places)
            folder.add_parts(parts)
            head = self._head(chunk, content, step)
            folder.add(replace(head, packs=tuple(sorted(set(places.values()))), parts=tuple(parts)))
            # Once more where another process, with a limit, has just deleted a pack that looked unused.
            complete = folder.has_packs(folder.heads[chunk])

    @property
    def _opened(self) -> PageFolder:
        if self._folder is None:
            raise RuntimeError("this PageSink has no directory yet: give it one, or call open() first")
        return self._folder

    def _next_chunk(self) -> str:
        self._written += 1
        return f"{time.time_ns() // 1_000_000:x}-{self._writer}-{self._written}"

    def _head(self, chunk: str, content: _Encoded, step: Step) -> Head:
        return Head(
            chunk=chunk,
            writer=self._writer,
            time=time.time(),
            run=step.run,
            stage=step.stage,
            data=step.data,
            epoch=step.epoch,
            step=step.global_step,
            network=step.network,
            **content.head,
        )

    def one_file(self) -> str:
        """Return the page as one self-contained file, with all its looks in it.

        Raises:
            OSError: There is none yet, or a file cannot be read.
        """
        return bundled_page(self.path.parent)


def _layer_of(item: Item) -> str:
    return "" if isinstance(item, Table) else item.layer


def _read_page(path: Path) -> str:
    """Return the text of the page that is there; "" where there is none.

    Raises:
        OSError: There is one, and it cannot be read.
        ValueError: It is not ours, or that of a newer version.
    """
    text = _read_text(path)
    ours = _OURS.search(text)
    if ours is None and text.strip() and _ONE_FILE not in text:
        raise ValueError(_foreign(path))
    if ours is not None and int(ours[1]) > FORMAT:
        raise ValueError(
            f"{path} is a page of format {ours[1]}, of a newer lightning_cnnviz; this one knows formats up to "
            f"{FORMAT}: update it, or choose another directory"
        )
    return text


def _check_parts(directory: Path) -> None:
    """Check that what a page has beside it is ours, as far as it is there.

    Raises:
        OSError: The list of looks cannot be read.
        ValueError: It is not ours, or a file stands where a folder belongs.
    """
    looks = directory / "looks.js"
    text = _read_text(looks)
    if text.strip() and not text.startswith(OUR_CALL):
        raise ValueError(_foreign(looks))
    for path in (directory / name for name in FOLDERS):
        if path.exists() and not path.is_dir():
            raise ValueError(_foreign(path))


def _read_text(path: Path) -> str:
    """Return a file's text; "" where there is none."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(_foreign(path))  # reading a pipe would not end
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _foreign(path: Path) -> str:
    return f"{path} was not written by lightning_cnnviz, and stays as it is: choose another directory"
