"""What monitors of probes, maximization and layer tables show of signals and volumes comes back from their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.littlenet import quiet_trainer
from callbacks.user_modules import Classifier, labelled, of_signals, of_volumes
from torch import nn
from torch.utils.data import DataLoader

from lightning_cnnviz import LayerProbeMonitor, LayerTableMonitor, MaximizationMonitor, OnlineProbeMonitor, PageSink
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Gallery, Report


def drawn(report: Report) -> list[Any]:
    return [
        tile.pixels for item in report.items if isinstance(item, Gallery) for row in item.rows for tile in row.tiles
    ]


@pytest.mark.parametrize(
    ("net", "size"),
    [pytest.param(of_signals(), (24,), id="signals"), pytest.param(of_volumes(), (6, 6, 6), id="volumes")],
)
def test_what_is_kept_is_drawn_again(net: nn.Module, size: tuple[int, ...], tmp_path: Path) -> None:
    page = PageSink(tmp_path / "page")
    monitors = [
        LayerTableMonitor(sinks=[page], on_error="raise"),
        LayerProbeMonitor(sinks=[page], heads=["softmax"], on_error="raise"),
        OnlineProbeMonitor(sinks=[page], on_error="raise"),
        MaximizationMonitor(sinks=[page], features=1, steps=4, starts=1, on_error="raise"),
    ]
    trainer = quiet_trainer(callbacks=monitors, default_root_dir=tmp_path, max_epochs=1)
    train, test = (DataLoader(labelled(12, seed=seed, size=size), batch_size=6) for seed in (0, 1))
    trainer.fit(Classifier(net), train, test)
    looks = {look.report().view: look for look in Record(tmp_path / "page" / "record").looks()}
    assert looks.keys() == {"layer_table", "layer_probe", "online_probe", "maximization"}
    assert looks["layer_table"].result.input_size == (1, *size)
    assert [scores.layer for scores in looks["layer_probe"].result.scores] == ["net.0", "net.2"]
    tiles = drawn(looks["maximization"].report())
    assert len(tiles) >= 10  # of two layers and three classes, beside the strongest real ones
    assert all(tile.dtype == torch.uint8 and len(tile) == 3 for tile in tiles)
    first = looks["maximization"].result[0].optima
    assert first.images.shape == (1, 1, *[3] * len(size))
    assert (tmp_path / "page" / "index.html").exists()
