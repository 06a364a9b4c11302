"""What the contract of sinks needs to know of one kind of sink: its test file holds one of these as `HARNESS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_cnnviz.sinks.base import Sink


@dataclass(frozen=True, kw_only=True)
class Harness:
    """How to make a sink, to see what it shows, and to let it fail.

    Attributes:
        make: Returns a new sink that has not been opened.
        loggers: Returns loggers of a trainer that it serves.
        keys: Returns the report's key of everything that stands in a sink, in any order; once for each time that it
            was shown.
        breaks: Lets every write raise OSError, until the patches are undone.
    """

    make: Callable[[], Sink]
    loggers: Callable[[], list[Any]]
    keys: Callable[[Sink, list[Any]], list[str]]
    breaks: Callable[[pytest.MonkeyPatch, Sink, list[Any]], None]

    def opened(self, folder: Path) -> tuple[Sink, list[Any]]:
        """Make a sink and open it."""
        sink, loggers = self.make(), self.loggers()
        sink.open(loggers, folder)
        return sink, loggers


def full_disk(*_: Any, **__: Any) -> None:
    """Stand in for any function that writes."""
    raise OSError("No space left on device")


def page_text(page: Path) -> str:
    """Everything that a page's folder says, without its pictures; `page` is its `index.html`."""
    files = [page, page.with_name("looks.js"), *sorted((page.parent / "looks").glob("*.js"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def report_key(key: str) -> str:
    """The report's key of a number, by the key that it has in loggers."""
    parts = key.split("/")
    return key if parts[-1] != "scalar" else "/".join([f"{parts[0]}_stats", *parts[1:]])
