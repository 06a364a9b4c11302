"""Correlations of channels while training goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch.utils.data import DataLoader

from lightning_cnnviz import CorrelationMonitor, MemorySink
from lightning_cnnviz.core.images.correlation import channel_correlation
from lightning_cnnviz.report import Report, Scalar


def fitted(monitor: CorrelationMonitor, val: Any = None) -> LittleNet:
    model = LittleNet()
    quiet_trainer(callbacks=[monitor]).fit(model, train_loader(), val or val_loader())
    return model


def scalars(report: Report) -> dict[str, float]:
    return {item.name: item.value for item in report.items if isinstance(item, Scalar)}


def test_the_passes_of_validation_give_what_a_pass_of_its_own_finds() -> None:
    sink = MemorySink()
    model = fitted(CorrelationMonitor(threshold=0.5, sinks=[sink], on_error="raise"))
    assert [step.epoch for step, _ in sink.reports] == [1, 2]
    expected = channel_correlation(model, val_loader(), threshold=0.5)
    found = scalars(sink.reports[-1][1])
    assert {layer.layer: layer.redundant_fraction for layer in expected} == {
        layer.layer: found[f"{layer.layer}/redundant"] for layer in expected
    }
    assert any(0 < layer.redundant_fraction < 1 for layer in expected)


def test_data_without_labels_will_do() -> None:
    sink = MemorySink()
    images = DataLoader(dataset(9).tensors[0], batch_size=4)
    fitted(CorrelationMonitor("features.4", data=images, epochs=[2], sinks=[sink], on_error="raise"))
    assert len(sink.reports) == 1
    assert set(scalars(sink.reports[0][1])) == {"features.4/redundant", "features.4/constant"}


def test_wrong_arguments_are_refused_at_set_up() -> None:
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        fitted(CorrelationMonitor(threshold=1.5, sinks=[MemorySink()]))
    with pytest.raises(ValueError, match=r"no layer of LittleNet matches 'features\.9'"):
        fitted(CorrelationMonitor("features.9", sinks=[MemorySink()]))


def test_a_channel_that_copies_another_is_redundant() -> None:
    sink = MemorySink()
    monitor = CorrelationMonitor("features.0", sinks=[sink], on_error="raise")
    model = LittleNet()
    with torch.no_grad():
        model.features[0].weight[3] = model.features[0].weight[1]
        model.features[0].bias[3] = model.features[0].bias[1]
    quiet_trainer(callbacks=[monitor]).validate(model, val_loader(), verbose=False)
    assert scalars(sink.reports[0][1])["features.0/redundant"] >= 1 / 6
