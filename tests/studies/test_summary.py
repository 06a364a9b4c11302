"""What all studies show alike, and that a study is not lost with its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_cnnviz.report import Report
from lightning_cnnviz.studies.summary import show_study


def test_a_study_is_not_lost_with_its_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.html").mkdir()  # where the page would be
    show_study(Report("ablation", title="Ablation", items=()), tmp_path, None)
    assert [record.message for record in caplog.records if "PageSink is given up" in record.message]
