"""Keeps looks while a run goes on: a disk that is full, or read-only, costs neither the run nor the looks."""

from __future__ import annotations

import logging
import secrets
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.render.views import Drawable
from lightning_cnnviz.report import Report

__all__ = ["Keeper", "new_run"]

log = logging.getLogger("lightning_cnnviz")

_MOST_HELD = 256_000_000  # bytes of looks that wait in memory for room on the disk


@dataclass
class _Held:
    identity: LookIdentity
    seen: Drawable | Report
    bytes: int


def new_run() -> str:
    """Return a name for a run that begins."""
    return secrets.token_hex(6)


class Keeper:
    """Adds looks to a record; where it cannot be written, holds them and tries again with the next one.

    Args:
        folder: The record's folder; None for one that lasts as long as this object.
        who: Whose looks they are, for messages.

    Raises:
        ValueError: The folder is no record, or needs a newer version.
    """

    def __init__(self, folder: Path | None, *, who: str = "lightning_cnnviz") -> None:
        self.lasting = folder is not None
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="cnnviz-", ignore_cleanup_errors=True)
            weakref.finalize(self, temporary.cleanup)
            folder = Path(temporary.name)
        self.record = Record(folder, lasting=self.lasting)
        self._who = who
        self._held: list[_Held] = []
        self._is_failing = False
        self._lost = 0

    def keep(self, identity: LookIdentity, seen: Drawable | Report) -> RecordedLook | None:
        """Add a look to the record; None where it is held in memory for now.

        Raises:
            TypeError: The result is none that can be kept as data.
        """
        if self._write_held():
            try:
                return self.record.add(identity, seen)
            except OSError as error:
                self._announce(error)
        self._hold(_Held(identity, seen, _size_of(seen)))
        return None

    def close(self) -> None:
        """Try a last time to write what is held, and say what is lost."""
        if not self._write_held():
            self._lost += len(self._held)
            self._held.clear()
        if self._lost:
            log.error("%s: %d looks are lost: %s could not be written", self._who, self._lost, self.record.folder)
        self._lost, self._is_failing = 0, False

    def _write_held(self) -> bool:
        """Write what is held, oldest first; say whether all of it is written."""
        while self._held:
            first = self._held[0]
            try:
                self.record.add(first.identity, first.seen)
            except OSError as error:
                self._announce(error)
                return False
            del self._held[0]
        if self._is_failing:
            log.warning("%s: %s can be written again; what was held is written", self._who, self.record.folder)
            self._is_failing = False
        return True

    def _hold(self, look: _Held) -> None:
        self._held.append(look)
        while len(self._held) > 1 and sum(held.bytes for held in self._held) > _MOST_HELD:
            del self._held[0]
            self._lost += 1

    def _announce(self, error: OSError) -> None:
        if not self._is_failing:
            log.error(
                "%s: the record cannot be written, the run goes on: %s. Looks are held in memory, up to %d MB, and "
                "written when that is possible again",
                self._who,
                error,
                _MOST_HELD // 1_000_000,
            )
        self._is_failing = True


def _size_of(value: Any) -> int:
    """About how many bytes a value's tensors take."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_size_of(held) for held in value.values())
    if isinstance(value, (tuple, list)):
        return sum(_size_of(held) for held in value)
    if is_dataclass(value):
        return sum(_size_of(getattr(value, field.name)) for field in fields(value))
    return 0
