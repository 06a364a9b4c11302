from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from torch import Tensor

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.activation_maps import ActivationMapMonitor
from lightning_cnnviz.report import Gallery, Report


def fitted(monitor: ActivationMapMonitor, **options: Any) -> LittleNet:
    pl.seed_everything(5, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=[monitor], **options).fit(model, train_loader(), val_loader())
    return model


def sheets(report: Report) -> dict[str, Gallery]:
    return {item.name: item for item in report.items if isinstance(item, Gallery)}


def test_a_sheet_a_layer_with_the_same_images_at_each_look() -> None:
    sink = MemorySink()
    fitted(ActivationMapMonitor(images=3, k=5, sinks=[sink], on_error="raise"))
    (first, before), (second, after) = sink.reports
    assert (first.epoch, second.epoch) == (1, 2)
    assert list(sheets(before)) == list(sheets(after)) == ["features.0", "features.4"]
    for name, sheet in sheets(before).items():
        later = sheets(after)[name]
        assert len(sheet.rows) == 3
        assert [row.caption for row in sheet.rows] == [row.caption for row in later.rows]
        for row, again in zip(sheet.rows, later.rows, strict=True):
            assert len(row.tiles) == 6
            assert torch.equal(row.tiles[0].pixels, again.tiles[0].pixels)


def test_the_peaks_are_those_of_the_trained_network() -> None:
    sink = MemorySink()
    own = dataset(2, seed=3).tensors[0]
    model = fitted(ActivationMapMonitor("features.4", k=3, images=own, sinks=[sink], on_error="raise"))
    found = sheets(sink.reports[-1][1])["features.4"].rows[1].tiles[1:]
    with torch.no_grad():
        model.eval()
        expected = model.features[:5](own)[1].amax((1, 2)).sort(descending=True)
    assert [tile.numbers["feature"] for tile in found] == expected.indices[:3].tolist()
    assert [tile.numbers["max activation"] for tile in found] == pytest.approx(expected.values[:3].tolist(), rel=1e-4)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages(stage: str) -> None:
    sink = MemorySink()
    trainer = quiet_trainer(callbacks=[ActivationMapMonitor(sinks=[sink])])
    getattr(trainer, stage)(LittleNet(), val_loader(), verbose=False)
    ((step, report),) = sink.reports
    assert step.stage == stage
    assert [len(sheet.rows) for sheet in sheets(report).values()] == [4, 4]


def test_class_names_that_are_given_are_used() -> None:
    sink = MemorySink()
    images: tuple[Tensor, Tensor] = (torch.rand(1, 1, 14, 14), torch.tensor([2]))
    monitor = ActivationMapMonitor(images=images, class_names=["a", "b", "c", "d"], sinks=[sink], on_error="raise")
    fitted(monitor)
    assert sheets(sink.reports[0][1])["features.0"].rows[0].numbers["label"] == "c"


def test_wrong_arguments_stop_the_run_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="k=0: show 1 feature map or more"):
        ActivationMapMonitor(k=0)
    with pytest.raises(ValueError, match=r"no layer of LittleNet matches 'features\.9'"):
        fitted(ActivationMapMonitor("features.9", sinks=[MemorySink()]))
    with pytest.raises(ValueError, match=r"features=\[6\] asked for, but layer 'features\.0' has 6 feature maps"):
        fitted(ActivationMapMonitor(features=[6], sinks=[MemorySink()]))
    with pytest.raises(ValueError, match="layer 'head' gives one value a channel"):
        fitted(ActivationMapMonitor("head", sinks=[MemorySink()]))
