"""The files of a page's folder: looks and packs of pictures, each written once, and the list of all looks."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_cnnviz.files import sweep, write_file
from lightning_cnnviz.sinks._page_items import to_json
from lightning_cnnviz.sinks._page_series import Head, list_looks, may_leave, series_of

__all__ = ["PageFolder"]

_PACK_BYTES = 500_000  # a unit's pictures may lie in as many packs as it has patches
_LEAST_USE = 0.25
_NAME = re.compile(r"[0-9a-z-]+\.js")
_FORGOTTEN = 3600  # seconds after which a file that never became part of the page is taken away


class PageFolder:
    """The looks of a folder and their pictures, whoever wrote them.

    A picture is taken from a pack that an earlier look brought, where that look and this one have at least a quarter of
    the pack in common; else it is stored again, so that no look makes a reader load much that it does not show.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.heads: dict[str, Head] = {}
        self._stamps: dict[str, tuple[int, int]] = {}  # time of change and size of each chunk that was read
        self._packs: dict[str, dict[str, int]] = {}  # length of each picture of a pack, by name
        self._new: list[str] = []  # packs of the chunk that is being written

    def scan(self) -> bool:
        """Read the heads of all chunks that are new; say whether anything has changed."""
        found = {}
        with suppress(FileNotFoundError), os.scandir(self.directory / "looks") as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        found[entry.name.removesuffix(".js")] = _stamp(entry.stat())
        if found == self._stamps:
            return False
        heads = {chunk: self.heads.get(chunk) for chunk in found}
        for chunk in found:
            if self._stamps.get(chunk) != found[chunk]:
                heads[chunk] = _read_head(self._look(chunk))
        self.heads = {chunk: head for chunk, head in heads.items() if head is not None}
        self._stamps = found
        return True

    def sweep(self) -> None:
        """Take away what processes that died have left: files half written, and packs that no look came to use."""
        used = {name for head in self.heads.values() for name in (*head.packs, *head.parts)}
        for place in (self.directory, *(self.directory / part for part in ("looks", "parts", "pictures"))):
            sweep(place)
        for path in (*(self.directory / "pictures").glob("*"), *(self.directory / "parts").glob("*")):
            if path.suffix in (".js", ".gone") and path.stem not in used:
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _FORGOTTEN:
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
            _write(self._part(name), [f'cnnviz.part("{name}",\n', text, ");\n"])

    def add(self, head: Head, body: str) -> None:
        """Write a chunk; `body` is JSON."""
        path = self._look(head.chunk)
        _write(path, _chunk_text(head, body))
        self.heads[head.chunk], self._stamps[head.chunk] = head, _stamp(path.stat())

    def has_packs(self, head: Head) -> bool:
        """Whether all packs of a chunk are there."""
        return all(self._pack(pack).exists() for pack in head.packs)

    def files_of(self, chunk: str) -> set[Path]:
        """Return the files of a chunk: itself, its parts and the packs of its pictures."""
        head = self.heads[chunk]
        return {self._look(chunk), *map(self._part, head.parts), *map(self._pack, head.packs)}

    def write_list(self) -> None:
        """Write the list of the looks that were found by now."""
        _write(self.directory / "looks.js", [f"cnnviz.list({to_json(list_looks(self.heads.values()))});\n"])
        self._new = []

    def catch_up(self) -> None:
        """Write the list again for chunks that came since it was begun: another process may not have seen ours."""
        while self.scan():
            self.write_list()

    def take_back(self, chunk: str) -> None:
        """Delete a chunk that is not in the list, its parts, and its new packs."""
        self.heads.pop(chunk, None)
        self._stamps.pop(chunk, None)
        parts = (self.directory / "parts").glob(f"{chunk}-*.js")
        for path in (self._look(chunk), *parts, *map(self._pack, self._new)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for pack in self._new:
            self._packs.pop(pack, None)
        self._new = []

    def thin(self, most_bytes: float, keep: str) -> bool:
        """Leave looks out, but for their scalars, until the data is small enough; say whether any went."""
        sizes = self._sizes()
        total = sum(sizes.values())
        if total <= most_bytes:
            return False
        users = {path: {chunk for chunk in self.heads if path in self.files_of(chunk)} for path in sizes}
        gone: set[str] = set()
        for look in may_leave(series_of(self.heads.values()), keep):
            chunks = {head.chunk for head in look.heads}
            gone |= chunks
            total -= sum(sizes[path] for path in sizes if users[path] & chunks and users[path] <= gone)
            if total <= most_bytes:
                break
        for chunk in gone:
            parts = self.heads[chunk].parts
            self.add(replace(self.heads[chunk], left_out=True, packs=(), parts=()), "null")
            for part in parts:
                self._part(part).unlink(missing_ok=True)
        self._delete_unused([path for path in users if path.parent.name == "pictures" and users[path] <= gone])
        return bool(gone)

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
                self._packs.pop(path.stem, None)

    def _sizes(self) -> dict[Path, int]:
        sizes = {}
        for path in {path for chunk in self.heads for path in self.files_of(chunk)}:
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def _find(self, pictures: Mapping[str, str]) -> dict[str, str]:
        """Return the pack of each picture that need not be stored again."""
        wanted: dict[str, int] = {}
        for pack in {pack for head in self.heads.values() for pack in head.packs}:
            if pack not in self._packs:
                self._packs[pack] = _read_sizes(self._pack(pack))
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
        _write(self._pack(pack), [f'cnnviz.pictures("{pack}",{to_json(sizes)},\n[', lines, "]);\n"])
        self._packs[pack] = sizes
        return dict.fromkeys(uris, pack)

    def _look(self, chunk: str) -> Path:
        return self.directory / "looks" / f"{chunk}.js"

    def _part(self, part: str) -> Path:
        return self.directory / "parts" / f"{part}.js"

    def _pack(self, pack: str) -> Path:
        return self.directory / "pictures" / f"{pack}.js"


def _write(path: Path, pieces: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(pieces).encode())


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size


def _chunk_text(head: Head, body: str) -> list[str]:
    told = asdict(head)
    return [f'cnnviz.look("{told.pop("chunk")}",{to_json(told)},\n', body, ");\n"]


def _read_head(path: Path) -> Head | None:
    """Read the first line of a chunk; None where it is none."""
    told = _read_first_line(path, "look")
    try:
        # Of older pages, whose looks stay: without layers, and in one part.
        contents = ((kind, name, *layer) if layer else (kind, name, "") for kind, name, *layer in told["contents"])
        told["contents"] = tuple((str(kind), str(name), str(layer)) for kind, name, layer in contents)
        told["scalars"] = tuple(None if value is None else float(value) for value in told["scalars"])
        for files in ("packs", "parts"):
            told[files] = tuple(name for name in told.get(files, ()) if _NAME.fullmatch(f"{name}.js"))
        head = Head(chunk=path.stem, **told)
        ordered = (
            head.time + head.step + head.epoch,
            "".join((head.writer, head.source, head.title, head.label, head.run, head.stage, head.data, head.network)),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return head if ordered else None


def _read_sizes(path: Path) -> dict[str, int]:
    """Read what a pack holds; nothing where it cannot be read."""
    sizes = _read_first_line(path, "pictures")
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _read_first_line(path: Path, call: str) -> dict[str, Any]:
    """Read the JSON object in the first line of one of our files; an empty one where there is none."""
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        found = json.loads(file.readline().removeprefix(f'cnnviz.{call}("{path.stem}",').rstrip().removesuffix(","))
        return found if isinstance(found, dict) else {}
    return {}
