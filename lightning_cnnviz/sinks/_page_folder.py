"""The files of a page's folder: looks and packs of pictures, each written once, and the list of all looks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_cnnviz.files import sweep
from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks._page_items import to_json
from lightning_cnnviz.sinks._page_list import (
    LookList,
    chunk_of,
    file_of,
    is_name,
    list_text,
    read_first_line,
    scripts_in,
    write_text,
)
from lightning_cnnviz.sinks._page_series import Head, Runs, may_leave, series_of

__all__ = ["FOLDERS", "OUR_CALL", "PageFolder"]

FOLDERS = ("looks", "lists", "parts", "pictures")
"""Beside the page; each file in them, and the list of looks, calls the page's script."""

OUR_CALL = "cnnviz."
"""With which each of these files begins."""

_PACK_BYTES = 500_000  # a unit's pictures may lie in as many packs as it has patches
_LEAST_USE = 0.25
_FORGOTTEN = 3600  # seconds after which a file that never became part of the page is taken away


class PageFolder:
    """The looks of a folder and their pictures, whoever wrote them.

    A picture is taken from a pack that an earlier look brought, where that look and this one have at least a quarter of
    the pack in common; else it is stored again, so that no look makes a reader load much that it does not show.

    No file of a look changes once it is there, so that of the looks before nothing but their names is read at a look.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.heads: dict[str, Head] = {}
        self._read: dict[str, Head | None] = {}  # of each file of a look; None where it is none
        self._list = LookList(directory)
        self._runs = Runs()
        self._moments: set[tuple[str | int, ...]] = set()  # of looks that have their items
        self._packs: dict[str, dict[str, int]] = {}  # length of each picture of a pack, by name
        self._unread: set[str] = set()  # packs of which that is not known yet
        self._places: defaultdict[str, list[str]] = defaultdict(list)  # packs of each picture
        self._new: list[str] = []  # packs of the chunk that is being written

    def scan(self) -> bool:
        """Read the heads of all chunks that are new; say whether anything has changed."""
        blocks = self._list.scan()  # first: whatever it tells of is there, or was deleted
        files = scripts_in(self.directory / "looks")
        gone, new = self._read.keys() - files, files - self._read.keys()
        for file in new:
            self._read[file] = head = _read_head(self.directory / "looks" / file)
            self._take(head)
        if gone or any(head is not None and head.left_out for head in map(self._read.get, new)):
            self._drop(gone)
        if blocks or gone:
            self._list.dissolve({chunk_of(file.removesuffix(".js")) for file in files})
        return bool(blocks or gone or new)

    def shows(self, source: str, step: Step) -> bool:
        """Whether a look was found that has its items still."""
        return _moment(source, step.run, step.stage, step.epoch, step.global_step) in self._moments

    def sweep(self) -> None:
        """Take away what processes that died have left: files half written, and what no look came to use."""
        used = {name for head in self.heads.values() for name in (*head.packs, *head.parts)}
        for place in (self.directory, *(self.directory / part for part in FOLDERS)):
            sweep(place)
        for path in (*(self.directory / "pictures").glob("*"), *(self.directory / "parts").glob("*")):
            if path.suffix in (".js", ".gone") and path.stem not in used:
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _FORGOTTEN and _is_ours(path):
                        path.unlink()

    def store(self, chunk: str, pictures: Mapping[str, str]) -> dict[str, str]:
        """Write what no pack worth loading has into new packs, and return the pack of each picture (a data URI)."""
        places = self._find(pictures)
        fresh: dict[str, str] = {}
        for name in [name for name in pictures if name not in places]:
            fresh[name] = pictures[name]
            if sum(map(len, fresh.values())) >= _PACK_BYTES:
                places |= self._write_pack(chunk, fresh)
                fresh = {}
        return places | (self._write_pack(chunk, fresh) if fresh else {})

    def add_parts(self, parts: Mapping[str, str]) -> None:
        """Write parts of a chunk that is to be added; each is JSON."""
        for name, text in parts.items():
            write_text(self._part(name), [f'cnnviz.part("{name}",\n', text, ");\n"])

    def add(self, head: Head) -> None:
        """Write a chunk: its head, by which its parts and packs are found."""
        told = asdict(head)
        write_text(self._look(file_of(head)), [f'cnnviz.look("{told.pop("chunk")}",{to_json(told)});\n'])
        self._read[f"{file_of(head)}.js"] = head
        self._take(head)

    def has_packs(self, head: Head) -> bool:
        """Whether all packs of a chunk are there."""
        return all(self._pack(pack).exists() for pack in head.packs)

    def files_of(self, chunk: str) -> set[Path]:
        """Return the files of a chunk: itself, its parts and the packs of its pictures."""
        head = self.heads[chunk]
        return {self._look(file_of(head)), *map(self._part, head.parts), *map(self._pack, head.packs)}

    def write_list(self) -> None:
        """Write the list of the looks that were found by now."""
        self._list.write(self.heads.values(), self._runs)
        self._new = []

    def newest(self) -> tuple[list[Head], str]:
        """Return the newest look of each series, and a list of these alone."""
        heads = [head for looks in series_of(self.heads.values()).values() for head in looks[-1].heads]
        return heads, list_text([], heads, self._runs)

    def catch_up(self) -> None:
        """Write the list again for chunks that came since it was begun: another process may not have seen ours."""
        while self.scan():
            self.write_list()
        with suppress(OSError):  # the list is whole; it is made shorter at the next look
            if self._list.close_blocks(self.heads.values()):
                self.write_list()

    def take_back(self, chunk: str) -> None:
        """Delete a chunk that is not in the list, its parts, and its new packs."""
        parts = (self._part(chunk), *(self.directory / "parts").glob(f"{chunk}-*.js"))
        for path in (self._look(chunk), *parts, *map(self._pack, self._new)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for pack in self._new:
            self._forget_pack(pack)
        self._new = []
        self._drop({f"{chunk}.js"})

    def thin(self, most_bytes: float, keep: str) -> bool:
        """Leave looks out, but for their scalars, until the data is small enough; say whether any went."""
        users: defaultdict[Path, set[str]] = defaultdict(set)
        for chunk in self.heads:
            for path in self.files_of(chunk):
                users[path].add(chunk)
        sizes = _sizes(users)
        total = sum(sizes.values())
        if total <= most_bytes:
            return False
        gone: set[str] = set()
        for look in may_leave(series_of(self.heads.values()), keep):
            chunks = {head.chunk for head in look.heads}
            gone |= chunks
            touched = {path for chunk in chunks for path in self.files_of(chunk)}
            total -= sum(sizes[path] for path in touched if users[path] <= gone)
            if total <= most_bytes:
                break
        self._leave_out(gone)
        self._delete_unused([path for path in users if path.parent.name == "pictures" and users[path] <= gone])
        return bool(gone)

    def _leave_out(self, chunks: Iterable[str]) -> None:
        left = [self.heads[chunk] for chunk in chunks if not self.heads[chunk].left_out]
        for head in left:
            self.add(replace(head, left_out=True, packs=(), parts=()))
            for path in (self._look(head.chunk), *map(self._part, head.parts)):
                path.unlink(missing_ok=True)
        self._drop({f"{head.chunk}.js" for head in left})

    def _take(self, head: Head | None) -> None:
        """Take a look that was found."""
        if head is None or (head.chunk in self.heads and self.heads[head.chunk].left_out):
            return  # a look that is left out stays so
        self.heads[head.chunk] = head
        self._runs.add(head)
        self._unread.update(pack for pack in head.packs if pack not in self._packs)
        if not head.left_out:
            self._moments.add(_moment(head.source, head.run, head.stage, head.epoch, head.step))

    def _drop(self, files: Set[str]) -> None:
        """Forget files of looks that are gone, and gather anew what is known of those that are left."""
        self.heads, self._runs, self._moments = {}, Runs(), set()
        self._read = {file: head for file, head in self._read.items() if file not in files}
        for head in sorted(filter(None, self._read.values()), key=lambda head: not head.left_out):
            self._take(head)

    def _delete_unused(self, packs: Iterable[Path]) -> None:
        """Delete packs, unless another process has just begun to use them."""
        hidden = {}
        for path in packs:
            with suppress(FileNotFoundError):
                hidden[path] = path.rename(path.with_suffix(".gone"))
        self.scan()
        used = {pack for head in self.heads.values() for pack in head.packs}
        for path, gone in hidden.items():
            if path.stem in used:
                gone.rename(path)
            else:
                gone.unlink(missing_ok=True)
                self._forget_pack(path.stem)

    def _find(self, pictures: Mapping[str, str]) -> dict[str, str]:
        """Return the pack of each picture that need not be stored again."""
        for pack in self._unread:
            self._take_pack(pack, _read_sizes(self._pack(pack)))
        self._unread.clear()
        wanted: dict[str, int] = {}
        for pack in {pack for name in pictures for pack in self._places.get(name, ())}:
            sizes = self._packs[pack]
            wanted[pack] = sum(sizes[name] for name in sizes.keys() & pictures.keys())
        places: dict[str, str] = {}
        for pack in sorted(wanted, key=lambda pack: (-wanted[pack], pack)):
            sizes = self._packs[pack]
            names = sizes.keys() & pictures.keys() - places.keys()
            enough = sum(sizes[name] for name in names) >= _LEAST_USE * sum(sizes.values())
            if names and enough and self._pack(pack).exists():
                places |= dict.fromkeys(names, pack)
        return places

    def _write_pack(self, chunk: str, uris: Mapping[str, str]) -> dict[str, str]:
        pack = f"{chunk}-{len(self._new)}"
        sizes = {name: len(uri) for name, uri in uris.items()}
        lines = ",\n".join(f'"{uri}"' for uri in uris.values())
        self._new.append(pack)
        write_text(self._pack(pack), [f'cnnviz.pictures("{pack}",{to_json(sizes)},\n[', lines, "]);\n"])
        self._take_pack(pack, sizes)
        return dict.fromkeys(uris, pack)

    def _take_pack(self, pack: str, sizes: dict[str, int]) -> None:
        if pack not in self._packs:
            self._packs[pack] = sizes
            for name in sizes:
                self._places[name].append(pack)

    def _forget_pack(self, pack: str) -> None:
        for name in self._packs.pop(pack, ()):
            self._places[name].remove(pack)
            if not self._places[name]:
                del self._places[name]

    def _look(self, name: str) -> Path:
        return self.directory / "looks" / f"{name}.js"

    def _part(self, part: str) -> Path:
        return self.directory / "parts" / f"{part}.js"

    def _pack(self, pack: str) -> Path:
        return self.directory / "pictures" / f"{pack}.js"


def _moment(source: str, run: str, stage: str, epoch: int, step: int) -> tuple[str | int, ...]:
    return source, run, stage, epoch, step


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    sizes = dict.fromkeys(paths, 0)
    for path in sizes:
        with suppress(FileNotFoundError):
            sizes[path] = path.stat().st_size
    return sizes


def _read_head(path: Path) -> Head | None:
    """Read the first line of a chunk; None where it is none."""
    told: Any = read_first_line(path, "look", chunk_of(path.stem)) if is_name(path.stem) else None
    try:
        # Of older pages, whose looks stay: without layers, and in one part.
        contents = ((kind, name, *layer) if layer else (kind, name, "") for kind, name, *layer in told["contents"])
        told["contents"] = tuple((str(kind), str(name), str(layer)) for kind, name, layer in contents)
        told["scalars"] = tuple(None if value is None else float(value) for value in told["scalars"])
        for files in ("packs", "parts"):
            told[files] = tuple(name for name in told.get(files, ()) if is_name(name))
        head = Head(chunk=chunk_of(path.stem), **told)
        ordered = (
            head.time + head.step + head.epoch,
            "".join((head.writer, head.source, head.title, head.label, head.run, head.stage, head.data, head.network)),
        )
        if head.left_out and path.stem == head.chunk:  # of a page before format 3
            path.rename(path.with_stem(file_of(head)))
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return head if ordered else None


def _read_sizes(path: Path) -> dict[str, int]:
    """Read what a pack holds; nothing where it cannot be read."""
    sizes = read_first_line(path, "pictures")
    if not isinstance(sizes, dict):
        return {}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(OUR_CALL)) == OUR_CALL.encode()
