"""What a look costs by default, as images that are run through the network: what the docs say is the most."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import quiet_trainer
from callbacks.user_modules import CLASSES, labelled
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz import InvarianceMonitor, MaximizationMonitor, MemorySink, OcclusionMonitor


class Counted(pl.LightningModule):
    """Counts the images that it is given, without and with gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images = [0, 0]
        self.net = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(4, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        self.images[torch.is_grad_enabled()] += len(images)
        scores: Tensor = self.net(images)
        return scores

    def validation_step(self, batch: Any, _: int) -> None:
        self.net(batch[0])


@pytest.mark.parametrize(
    ("monitor", "forward", "gradients"),
    [
        # An image: 78 copies; a pass to classify it, one for its own features, one to try it; and some that trace.
        (InvarianceMonitor, 5 * (78 + 3) + 20, 0),
        # An image: 121 positions and itself; and some that trace, and project.
        (OcclusionMonitor, 5 * (121 + 3) + 30, 0),
        # 3 layers of 6, 6 and 4 feature maps, and 3 classes, 2 starts of 32 steps; about 3 optima 48 steps, and one for
        # the Hessian; angles of 12 directions; and some that trace, and that look for the strongest of 5 images.
        (MaximizationMonitor, 3 * 12 * 7 + 4 * 5 + 130, (16 + 3) * 2 * 32 + 3 * (48 + 4)),
    ],
)
def test_no_look_runs_more_images_than_is_said(monitor: Any, forward: int, gradients: int) -> None:
    module, sink = Counted(), MemorySink()
    trainer = quiet_trainer(callbacks=[monitor(sinks=[sink], on_error="raise")])
    trainer.validate(module, DataLoader(labelled(5, size=(24, 24)), batch_size=5), verbose=False)
    assert len(sink.reports) == 1
    assert forward * 0.5 < module.images[0] <= forward, module.images
    assert gradients * 0.5 <= module.images[1] <= gradients, module.images
