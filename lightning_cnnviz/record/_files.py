"""Files of a record: written whole, and read with suspicion."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from lightning_cnnviz.files import whole_file, write_file
from lightning_cnnviz.record._tensors import tensor_name, write_tensors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Packs",
    "check_header",
    "check_json_size",
    "locked",
    "open_tensors",
    "read_json",
    "read_tensor",
    "write_json",
    "write_pack",
]

# What is larger is refused before it costs memory; a result of 100 layers with 4,608 patches each stays below.
_MOST_JSON = 64_000_000
_MOST_NODES = 4_000_000
_MOST_HEADER = 100_000_000

_PATIENCE = 10.0  # seconds
_MOST_OPEN = 32  # packs at a time


@contextlib.contextmanager
def locked(path: Path, *, alone: bool) -> Iterator[None]:
    """Hold a folder's lock, alone or beside others who do not ask to be; where the system has none, hold nothing.

    Raises:
        BlockingIOError: Somebody else has held it for ten seconds.
    """
    if fcntl is None:
        yield
        return
    until = time.monotonic() + _PATIENCE
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise BlockingIOError(error.errno, "another process holds it", str(path)) from error
                time.sleep(0.02)
            except OSError:  # a file system without locks
                break
        yield


def write_json(path: Path, value: Any, *, lasting: bool = True) -> int:
    """Write JSON, last of all that belongs together; return how many bytes it has.

    Raises:
        ValueError: It could not be read again: it is too large.
        OSError: It cannot be written.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    check_json_size(text)
    content = text.encode()
    write_file(path, content, lasting=lasting)
    return len(content)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or too large.
    """
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"{path} has more than {_MOST_JSON} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        check_json_size(text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_json_size(text: str) -> None:
    """Refuse JSON that would take much memory.

    Raises:
        ValueError: It is too large.
    """
    nodes = text.count(",") + text.count("[") + text.count("{")
    if len(text) > _MOST_JSON or nodes > _MOST_NODES:
        raise ValueError(
            f"{len(text)} characters and {nodes} parts of JSON; at most {_MOST_JSON} and {_MOST_NODES} are read"
        )


def write_pack(path: Path, tensors: Mapping[str, Tensor], *, lasting: bool = True) -> int:
    """Write tensors by their names; return how many bytes the file has.

    Raises:
        OSError: It cannot be written.
    """
    with whole_file(path, lasting=lasting) as file:
        return write_tensors(file, tensors)


class Packs:
    """Reads tensors of the packs in a folder; each pack stays open until this is left, so that its header is read once.

    Args:
        folder: Where the packs are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Packs:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def tensor(self, name: str, pack: str) -> Tensor:
        """Return a tensor of a pack.

        Raises:
            FileNotFoundError: There is no such pack.
            ValueError: It is damaged; or the tensor is not there, or its content is not the one that its name stands
                for.
        """
        path = self._folder / f"{pack}.safetensors"
        try:
            if pack not in self._open:
                if len(self._open) >= _MOST_OPEN:
                    self._close()
                self._open[pack] = _opened_pack(path)
            return read_tensor(self._open[pack], name)
        except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def _close(self) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()


def check_header(path: Path) -> None:
    """Compare what a safetensors file says of itself with its size, before anything is read.

    Raises:
        ValueError: It is cut off, or claims more than is ever read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if size < 8 or claimed > size - 8:
        raise ValueError(f"it is no safetensors file, or is cut off: {size} bytes, of which {claimed} of header")
    if claimed > _MOST_HEADER:
        raise ValueError(f"its header has {claimed} bytes; at most {_MOST_HEADER} are read")


def read_tensor(file: Any, name: str) -> Tensor:
    """Read a tensor of an open safetensors file.

    Raises:
        ValueError: Its content is not the one that its name stands for.
    """
    # A copy: the file is mapped, and whoever cuts it off would end this process at the next look.
    values: Tensor = file.get_tensor(name).clone()
    if tensor_name(values) != name:
        raise ValueError(f"tensor {name} is damaged: its content has changed")
    return values


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, whatever its name; gives a context.

    Raises:
        FileNotFoundError: There is no such file.
        safetensors.SafetensorError: It is damaged.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # safetensors takes no path that is not UTF-8
        with path.open("rb") as file:
            return safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt")
    return safetensors.safe_open(path, framework="pt")


def _opened_pack(path: Path) -> Any:
    check_header(path)
    return open_tensors(path).__enter__()
