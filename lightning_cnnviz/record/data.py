"""Results to and from files: safetensors, with one tree of JSON in its header, and never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from lightning_cnnviz import __version__
from lightning_cnnviz.files import whole_file
from lightning_cnnviz.record._files import check_header, check_json_size, open_tensors, read_tensor
from lightning_cnnviz.record._plain import plain
from lightning_cnnviz.record._tensors import write_tensors
from lightning_cnnviz.record._tree import SCHEMA, from_tree, to_tree

__all__ = ["SCHEMA", "from_tree", "load", "plain", "save", "to_tree"]

_SUFFIX = ".safetensors"
_KEY = "lightning_cnnviz"  # of the header's metadata


def save(result: Any, path: str | os.PathLike[str]) -> Path:
    """Write a result, or plain values that hold some, to one file.

    Args:
        result: As in `lightning_cnnviz.record.data.to_tree`.
        path: The file; `.safetensors` is added to its name where it is not there. A reader finds what was there before,
            or all that is new.

    Returns:
        The file's path.

    Raises:
        TypeError: Something in it is neither a result, a tensor nor plain.
        ValueError: It is too large or too deep to be read again, or its values are not in memory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save({"accuracy": (0.5, 0.75)}, f"{folder}/found")
        ...     path.name, load(path)
        ('found.safetensors', {'accuracy': (0.5, 0.75)})
    """
    path = _file(path)
    tree, tensors = to_tree(result)
    text = json.dumps({"schema": SCHEMA, "version": __version__, "value": tree}, allow_nan=False)
    try:
        check_json_size(text)
        with whole_file(path) as file:
            write_tensors(file, tensors, {_KEY: text})
            file.flush()
            check_header(Path(file.name))
    except ValueError as error:
        raise ValueError(f"{path} could not be read again, and is not written: {error}") from error
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """Return what `save` has written; nothing in the file is ever run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It was written by no `save`, is damaged, or is of a newer version; the file is named.
    """
    path = _file(path)
    # Header and tensors are read one after the other by the file's name: another process may put a new file there.
    while True:
        found = _identity(path)
        try:
            check_header(path)
            with open_tensors(path) as file:
                return _value(file)
        except (ValueError, safetensors.SafetensorError, RecursionError) as error:
            if _identity(path) == found:
                raise ValueError(f"{path} cannot be loaded: {error}") from error


def _identity(path: Path) -> tuple[int, int, int]:
    """Tell a file from another one of its name."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == _SUFFIX else path.with_name(path.name + _SUFFIX)


def _value(file: Any) -> Any:
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise ValueError("it was not written by lightning_cnnviz.save")
    check_json_size(text)
    content = json.loads(text, parse_constant=_refused)
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int) or "value" not in content:
        raise ValueError("its description is not that of a result")
    if content["schema"] > SCHEMA:
        raise ValueError(
            f"it needs lightning_cnnviz {str(content.get('version'))[:40]} or newer (schema {content['schema']}); "
            f"this is {__version__} (schema {SCHEMA})"
        )
    names = set(file.keys())

    def tensor(name: str) -> Tensor:
        if name not in names:
            raise KeyError(name)
        return read_tensor(file, name)

    return from_tree(content["value"], tensor, schema=content["schema"])


def _refused(constant: str) -> Any:
    raise ValueError(f"it holds the number {constant}, which JSON does not have")
