"""What tests of several monitors share."""

from __future__ import annotations

import pytest


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What monitors have said by now."""
    texts: list[str] = []
    monkeypatch.setattr(
        "lightning_cnnviz.callbacks._base.monitor.printed_log.info",
        lambda text, *values: texts.append(text % values if values else text),
    )
    return texts
