"""The list of a page's looks: blocks of them, each written once, and the names of the looks since."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_cnnviz.files import write_file
from lightning_cnnviz.sinks._page_items import to_json
from lightning_cnnviz.sinks._page_series import Head, Runs

__all__ = ["LookList", "chunk_of", "file_of", "is_name", "list_text", "read_first_line", "scripts_in", "write_text"]

_BLOCK = 50  # looks
_NAME = re.compile(r"[0-9a-z-]+\.js")
_OUT = "-out"
_ABOUT = ("writer", "source", "title", "label", "run", "stage", "data", "network")  # what many looks share


class LookList:
    """What the page reads first: `looks.js`, which names the blocks in `lists`, and the looks that are in none yet.

    A block holds the heads of some looks. It is written once, under a hash of its content, so that what is written at a
    look does not grow with the looks before it, but for one name for each block. Which looks are in blocks is read from
    the folder alone: processes that write at the same time may put a look into two blocks, which readers take as one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blocks: dict[str, frozenset[str]] = {}  # names of the looks' files, by the block's file
        self._closed: set[str] = set()  # those of all blocks

    def scan(self) -> bool:
        """Read the names in all blocks that are new; say whether anything has changed."""
        files = scripts_in(self.directory / "lists")
        if files == self._blocks.keys():
            return False
        new = {file: _read_block(self.directory / "lists" / file) for file in files - self._blocks.keys()}
        self._set({file: looks for file, looks in (self._blocks | new).items() if file in files})
        return True

    def dissolve(self, chunks: set[str]) -> None:
        """Take away blocks that tell of other looks than these, which are those that there are."""
        kept = dict[str, frozenset[str]]()
        for file, looks in self._blocks.items():
            if chunks.issuperset(map(chunk_of, looks)):
                kept[file] = looks
            else:
                with suppress(OSError):
                    (self.directory / "lists" / file).unlink(missing_ok=True)
        self._set(kept)

    def _set(self, blocks: dict[str, frozenset[str]]) -> None:
        self._blocks, self._closed = blocks, {look for looks in blocks.values() for look in looks}

    def write(self, heads: Iterable[Head], runs: Runs) -> None:
        """Write `looks.js`."""
        blocks = sorted(file.removesuffix(".js") for file, looks in self._blocks.items() if looks)
        write_text(self.directory / "looks.js", [list_text(blocks, self._open(heads), runs)])

    def close_blocks(self, heads: Iterable[Head]) -> bool:
        """Write the oldest looks that are in no block yet into blocks, as many as fill some; say whether any was."""
        is_open = self._open(heads)
        for first in range(0, len(is_open) - _BLOCK + 1, _BLOCK):
            block = is_open[first : first + _BLOCK]
            files, content = [file_of(head) for head in block], to_json(_describe(block))
            name = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
            path = self.directory / "lists" / f"{name}.js"
            write_text(path, [f'cnnviz.block("{name}",{to_json(files)},\n', content, ");\n"])
            self._blocks[path.name] = frozenset(files)
            self._closed.update(files)
        return len(is_open) >= _BLOCK

    def _open(self, heads: Iterable[Head]) -> list[Head]:
        is_open = (head for head in heads if file_of(head) not in self._closed)
        return sorted(is_open, key=lambda head: (head.time, head.chunk))


def list_text(blocks: Sequence[str], heads: Iterable[Head], runs: Runs) -> str:
    """Return what stands in a list of blocks, and of looks that are in none."""
    content = {
        "blocks": blocks,
        "looks": [file_of(head) for head in heads],
        "runs": [(*writer, number) for writer, number in runs.numbers().items()],
    }
    return f"cnnviz.list({to_json(content)});\n"


def file_of(head: Head) -> str:
    """The name of a look's file, without its ending: it changes where the look is left out, as no file ever does."""
    return head.chunk + _OUT * head.left_out


def chunk_of(name: str) -> str:
    """The chunk that a look's file is of."""
    return name.removesuffix(_OUT)


def is_name(name: str) -> bool:
    """Whether a file of ours may have this name, without its ending."""
    return _NAME.fullmatch(f"{name}.js") is not None


def scripts_in(folder: Path) -> set[str]:
    """The names of all scripts in a folder."""
    with suppress(FileNotFoundError):
        return {name for name in os.listdir(folder) if name.endswith(".js")}
    return set()


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(pieces).encode())


def read_first_line(path: Path, call: str, name: str = "") -> Any:
    """Read the JSON that the first line of one of our files has behind its name; None where there is none."""
    with suppress(OSError, ValueError, RecursionError), path.open(encoding="utf-8") as file:
        line = file.readline().removeprefix(f'cnnviz.{call}("{name or path.stem}",').rstrip()
        return json.loads(line.removesuffix(");").removesuffix(","))
    return None


def _read_block(path: Path) -> frozenset[str]:
    names = read_first_line(path, "block") if is_name(path.stem) else None
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def _describe(heads: Iterable[Head]) -> Mapping[str, Any]:
    """What the page knows of looks without loading them; what many of them share is told once."""
    about: dict[tuple[str, ...], int] = {}
    contents: dict[tuple[tuple[str, str, str], ...], int] = {}
    looks = []
    for head in heads:
        shared = tuple(getattr(head, name) for name in _ABOUT)
        told = {
            "chunk": head.chunk,
            "about": about.setdefault(shared, len(about)),
            "contents": contents.setdefault(head.contents, len(contents)),
            "epoch": head.epoch,
            "step": head.step,
            "time": head.time,
            "scalars": [_brief(value) for value in head.scalars],
        }
        marks = {"left_out": head.left_out, "is_whole": not head.left_out and head.chunk not in head.parts}
        looks.append(told | {name: True for name, holds in marks.items() if holds})
    abouts = [dict(zip(_ABOUT, shared, strict=True)) for shared in about]
    return {"about": abouts, "contents": list(contents), "looks": looks}


def _brief(value: float | None) -> float | None:
    """Six figures, which is more than the page shows."""
    return None if value is None else float(f"{value:.6g}")
