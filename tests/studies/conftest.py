"""What the tests of several studies share."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_cnnviz.studies import training as training_module


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the trainings that are made in this process."""
    labels: list[str] = []
    fit = training_module.fit

    def counted(training: training_module.Training) -> Any:
        labels.append(training.label)
        return fit(training)

    monkeypatch.setattr(training_module, "fit", counted)
    return labels
