"""Texts by their names, more than there is memory for."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import IO, Any

__all__ = ["Texts"]

_MOST_HELD = 32_000_000  # bytes in memory


class Texts(Mapping[str, str]):
    """Texts in ASCII, each under a name; what is more than 32 MB lies in a temporary file.

    Where no such file can be written, texts stay in memory. Pickled, it is a plain dictionary.

    Example:
        >>> texts = Texts()
        >>> texts.add("a", "one")
        >>> dict(texts)
        {'a': 'one'}
    """

    def __init__(self, most_held: int = _MOST_HELD) -> None:
        self._most_held, self._held = most_held, 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self._texts: dict[str, str | tuple[int, int]] = {}  # or where it begins in the file, and how long it is

    def add(self, name: str, text: str) -> None:
        """Keep a text under a name that is new."""
        if self._held + len(text) > self._most_held:
            try:
                self._texts[name] = self._written(text.encode("ascii"))
                return
            except OSError:
                pass
        self._texts[name] = text
        self._held += len(text)

    def _written(self, content: bytes) -> tuple[int, int]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the texts
            weakref.finalize(self, self._file.close)
        self._file.seek(self._end)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]
        place, self._end = (self._end, len(content)), self._end + len(content)
        return place

    def __getitem__(self, name: str) -> str:
        text = self._texts[name]
        if isinstance(text, str):
            return text
        assert self._file is not None, "it has been written to"
        self._file.seek(text[0])
        return self._file.read(text[1]).decode("ascii")

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
