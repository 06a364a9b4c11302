"""Files that are whole at any moment: written beside their place, brought to the disk, and then given their name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_writable", "sweep", "whole_file", "write_file"]

_SCRATCH = re.compile(r"\.cnnviz-[0-9a-f]{16}\.tmp")
_FORGOTTEN = 3600  # seconds after which a file that never became whole is taken away
_NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_file(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file, whole or not at all; see `whole_file`.

    Raises:
        OSError: It cannot be written; what stood there before still does.
    """
    with whole_file(path, lasting=lasting) as file:
        file.write(content)


def check_writable(folder: Path) -> None:
    """Try whether files can be written in a folder, which need not be there; nothing is left behind.

    Raises:
        OSError: They cannot.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"\0" * 4096)


@contextlib.contextmanager
def whole_file(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when it has been written; whoever reads finds the old or the new.

    The new file keeps the permissions of the one whose place it takes; a link in this place is replaced, never written
    through. If anything is raised, what stood there before still does.

    Args:
        path: The file; its folder is there.
        lasting: Whether it is on the disk when this ends, so that it outlives the machine's end, too.

    Raises:
        OSError: It cannot be written.
    """
    mode = _permissions(path)

    def create(name: str, flags: int) -> int:
        # A private file's content is never to be read by others, not even for a moment.
        return os.open(name, flags, 0o666 if mode is None else 0o600)

    # Like mkstemp, but a new file is as private as the user wants new files to be. "x" follows no link.
    scratch = path.with_name(f".cnnviz-{secrets.token_hex(8)}.tmp")
    with open(scratch, "xb", opener=create) as file:
        try:
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.chmod(scratch, mode)
            yield file
            file.flush()
            if lasting:
                _bring_to_disk(file.fileno())
            file.close()  # some systems rename no open file
            scratch.replace(path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise
    if lasting:
        _bring_folder_to_disk(path.parent)


def sweep(folder: Path) -> None:
    """Take away what processes that died while they wrote have left in a folder: nothing that is being written."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _SCRATCH.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN:
                        os.unlink(entry.path)


def _permissions(path: Path) -> int | None:
    """Those of the file in this place, if there is one."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mode & 0o777 if stat.S_ISREG(status.st_mode) else None


def _bring_to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems report a full disk here, and some cannot be asked
        if error.errno not in _NOT_OFFERED:
            raise


def _bring_folder_to_disk(folder: Path) -> None:
    if os.name == "posix":
        with contextlib.suppress(OSError):  # the file itself is on the disk
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
