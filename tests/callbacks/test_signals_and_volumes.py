"""Monitors of patches and projections with networks of signals and of volumes, without arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from reference.other_axes import Branches3d, ecg_resnet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import DeconvnetMonitor, MemorySink, PageSink, TopPatchesMonitor, mine_top_patches, project
from lightning_cnnviz.callbacks.deconvnet import _units
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Gallery


class Module(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trained(net: nn.Module, inputs: Tensor, callbacks: list[Any], folder: Path) -> Module:
    L.seed_everything(1, verbose=False)
    module, data = Module(net), TensorDataset(inputs, torch.arange(len(inputs)) % 2)
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=3))
    return module


CASES = [
    pytest.param(lambda: ecg_resnet(2, 2, width=3), (2, 60), id="signals"),
    pytest.param(Branches3d, (2, 5, 18, 21), id="volumes"),
]


@pytest.mark.parametrize(("make", "size"), CASES)
def test_they_show_what_the_functions_find_and_leave_training_alone(
    make: Any, size: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    inputs, plain = torch.randn(7, *size), make()
    watched = make()
    watched.load_state_dict(plain.state_dict())
    sink = MemorySink()
    monitors = [
        TopPatchesMonitor(k=2, features=2, sinks=[sink, PageSink(tmp_path / "page")]),
        DeconvnetMonitor(k=2, features=2, sinks=[sink]),
    ]
    module = trained(watched, inputs, monitors, tmp_path)
    alone = trained(plain, inputs, [], tmp_path)
    for own, its in zip(module.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(own, its)
    module.eval()
    found = mine_top_patches(module, [inputs], k=2, features=2)
    drawn = [report for _, report in sink.reports if any(isinstance(item, Gallery) for item in report.items)]
    reports = {report.source: report for report in drawn}  # the newest
    assert reports.keys() == {"top_patches", "deconvnet"}
    galleries = {item.name: item for item in reports["top_patches"].items if isinstance(item, Gallery)}
    assert list(galleries) == [layer.layer for layer in found]
    for layer in found:
        for feature, row in zip(layer.features, galleries[layer.layer].rows, strict=True):
            for rank, tile in enumerate(row.tiles):
                assert tile.numbers["dataset index"] == int(layer.images[feature, rank])
                place = (
                    {"position": layer.columns} if layer.depths is None else {"depth": layer.depths, "row": layer.rows}
                )
                for name, values in place.items():
                    assert tile.numbers[name] == int(values[feature, rank])
                assert tile.pixels.shape == (3, *tile.size)
                assert (tile.source is not None) == (len(size) == 2)
    look = list(Record(tmp_path / "page" / "record").looks())[-1]
    kept = look.result
    assert torch.equal(kept.layers[0].boxes, found.layers[0].boxes)
    assert torch.equal(kept.layers[0].patches[0][0], found.layers[0].patches[0][0])
    assert [item.name for item in look.report().items if isinstance(item, Gallery)] == list(galleries)
    projected = project(module, inputs, _units(found), layers="conv", method="gradient")
    assert projected.boxes.shape[1] == (4 if len(size) == 2 else 6)
