"""The monitor's own: units and projections belong together, and strips of evolution grow."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import nn

from lightning_cnnviz import DeconvnetMonitor, MemorySink, TopPatchesMonitor
from lightning_cnnviz.core.network.layers import evenly, select_layers
from lightning_cnnviz.report import Gallery


def fitted(monitors: list[Any], **options: Any) -> LittleNet:
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=monitors, **options).fit(model, train_loader(), val_loader())
    return model


def test_projections_stand_beside_the_patches_of_the_same_units() -> None:
    ours, patches = MemorySink(), MemorySink()
    fitted(
        [
            DeconvnetMonitor("conv", k=4, features=3, sinks=[ours], on_error="raise"),
            TopPatchesMonitor("conv", k=4, features=3, sinks=[patches], on_error="raise"),
        ]
    )
    assert len(ours.reports) == len(patches.reports[: len(ours.reports)]) > 1
    for (step, report), (other_step, other) in zip(ours.reports, patches.reports, strict=False):
        assert step == other_step
        theirs = {item.name: item for item in other.items if isinstance(item, Gallery)}
        for gallery in (item for item in report.items if isinstance(item, Gallery)):
            if gallery.name.endswith("/evolution"):
                continue
            for row, patch_row in zip(gallery.rows, theirs[gallery.name].rows, strict=True):
                # Two projections, then two patches, line by line.
                shown = [tile for place, tile in enumerate(row.tiles) if place // 2 % 2 == 1]
                assert len(shown) == len(patch_row.tiles) == 4
                for tile, expected in zip(shown, patch_row.tiles, strict=True):
                    assert torch.equal(tile.pixels, expected.pixels)
                    assert tile.numbers["dataset index"] == expected.numbers["dataset index"]


def test_strips_grow_with_the_looks_and_lose_none() -> None:
    sink, looks_taken = MemorySink(), 14
    fitted([DeconvnetMonitor(k=1, features=2, sinks=[sink], on_error="raise")], max_epochs=looks_taken)
    strips = [[item for item in report.items if item.name.endswith("/evolution")] for _, report in sink.reports]
    assert strips[0] == []  # one look is no evolution
    epochs = [[tile.numbers["epoch"] for tile in looks[0].rows[0].tiles] for looks in strips[1:]]  # type: ignore[union-attr]
    assert epochs == [list(range(1, newest + 1)) for newest in range(2, looks_taken + 1)]


def test_a_network_that_cannot_be_projected_is_refused_before_training() -> None:
    class Linear(LittleNet):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images)  # type: ignore[no-any-return]

    monitor = DeconvnetMonitor(sinks=[MemorySink()], on_error="raise")
    with pytest.raises(ValueError, match="no ReLU or similar"):
        quiet_trainer(callbacks=[monitor]).fit(Linear(), train_loader(), val_loader())


def test_a_few_layers_from_the_first_to_the_last() -> None:
    net = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(11)))
    assert [layer.name for layer in evenly(select_layers(net), 4)] == ["0", "3", "7", "10"]
    assert len(evenly(select_layers(net)[:3], 4)) == 3
