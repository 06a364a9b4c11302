"""Texts come back as they were, from memory or from a file."""

from __future__ import annotations

import pickle
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_cnnviz.sinks._texts import Texts


@given(st.dictionaries(st.text(max_size=3), st.text(st.characters(max_codepoint=127), max_size=40)), st.integers(0, 90))
def test_texts_come_back_wherever_they_lie(expected: dict[str, str], most_held: int) -> None:
    texts = Texts(most_held)
    for name, text in expected.items():
        assert name not in texts
        texts.add(name, text)
        assert texts[name] == text
    assert dict(texts) == expected
    assert pickle.loads(pickle.dumps(texts)) == expected


def test_memory_is_bounded() -> None:
    texts = Texts(1000)
    for number in range(50):
        texts.add(str(number), "x" * 100)
    assert sum(len(text) for text in texts._texts.values() if isinstance(text, str)) == 1000


def test_without_room_for_a_file_they_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: Any) -> Any:
        raise OSError("No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    texts = Texts(10)
    texts.add("a", "x" * 100)
    assert dict(texts) == {"a": "x" * 100}
