"""What the contract of sinks needs to know of one kind of sink: its test file holds one of these as `HARNESS`."""

from __future__ import annotations

import json
import re
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
    folders = (page.parent / name for name in ("lists", "looks", "parts"))
    files = [page, page.with_name("looks.js"), *(file for folder in folders for file in sorted(folder.glob("*.js")))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def called(file: Path) -> list[Any]:
    """The arguments of the one call that a script of a page's folder makes."""
    text = re.fullmatch(r"cnnviz\.\w+\((.*)\);\n", file.read_text(encoding="ascii"), flags=re.DOTALL)
    assert text is not None, file
    arguments = json.loads(f"[{text[1]}]")
    assert isinstance(arguments, list)
    return arguments


def listed(folder: Path) -> dict[str, dict[tuple[str, int, str], list[dict[str, Any]]]]:
    """The looks of a page's list, as the page reads it: by view, and by stage, run and data of the series.

    Each look has its moment, its chunks, what they are called, the kinds and names of its items, and its scalars.
    """
    (content,) = called(folder / "looks.js")
    heads: dict[str, dict[str, Any]] = {}

    def take(head: dict[str, Any]) -> None:
        if not heads.get(head["chunk"], {}).get("left_out"):
            heads[head["chunk"]] = head

    for block in content["blocks"]:
        name, _, told = called(folder / "lists" / f"{block}.js")
        assert name == block
        for look in told["looks"]:
            take({**told["about"][look["about"]], **look, "contents": told["contents"][look["contents"]]})
    for file in content["looks"]:
        name, head = called(folder / "looks" / f"{file}.js")[:2]
        assert file == name + "-out" * head["left_out"]
        take({**head, "chunk": name})
    runs = {(run, writer): number for run, writer, number in content["runs"]}
    found: dict[str, dict[tuple[str, int, str], dict[tuple[int, int], dict[str, Any]]]] = {}
    for head in sorted(heads.values(), key=lambda head: (head["time"], head["chunk"])):
        series = head["stage"], runs[(head["run"], "") if head["run"] else ("", head["writer"])], head["data"]
        look = found.setdefault(head["source"], {}).setdefault(series, {})
        known = look.setdefault((head["step"], head["epoch"]), {"chunks": [], "items": {}})
        values = iter(head["scalars"])
        known["items"] |= {(*item[:2],): next(values) if item[0] == "Scalar" else None for item in head["contents"]}
        known["chunks"] += [] if head.get("left_out") else [head["chunk"]]
        known |= {name: head[name] for name in ("epoch", "step", "title", "label")}
    for all_series in found.values():
        for looks in all_series.values():
            for look in looks.values():
                items = look.pop("items")
                look |= {
                    "names": [[*item] for item in items],
                    "values": [value for (kind, _), value in items.items() if kind == "Scalar"],
                }
    return {
        view: {key: [looks[when] for when in sorted(looks)] for key, looks in series.items()}
        for view, series in found.items()
    }


def report_key(key: str) -> str:
    """The report's key of a number, by the key that it has in loggers."""
    parts = key.split("/")
    return key if parts[-1] != "scalar" else "/".join([f"{parts[0]}_stats", *parts[1:]])
