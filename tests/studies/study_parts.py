"""Tiny networks and tiny image folders for the tests of studies, in a module that worker processes can import."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_cnnviz.studies.results import AblationStudy, AblationVariant, SampleEfficiency

QUICK = {
    "image_size": 16,
    "crop": 1.0,
    "augment": "none",
    "batch_size": 8,
    "accelerator": "cpu",
    "progress": False,
    "threads": 1,
}


class TinyNet(nn.Module):
    def __init__(self, num_classes: int = 3, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                *(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4)),
                *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
            )
            self.hidden = nn.Linear(6, 5)
            self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(self.features(images).mean((2, 3)))))
        return logits


class TinyResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        logits: Tensor = self.head((maps + self.inner(maps)).mean((2, 3)))
        return logits


def image_folder(folder: Path, *, train: int = 6, test: int = 4, classes: int = 3, side: int = 16) -> Path:
    """Classes differ in color, which noise hides a little."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(classes):
            home = folder / part / f"class{number}"
            home.mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 160, (side, side, 3))
                pixels[..., number % 3] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(home / f"{image}.png")
    return folder


def ablation_result(seeds: tuple[int, ...] = (0, 1)) -> AblationStudy:
    changed = ("a removed: Conv2d(3 to 8, 3x3) → Identity",)
    variants = (
        AblationVariant(name="the whole network", parameters=1000, paper=40.5),
        AblationVariant(name="without a", remove=("a",), parameters=400, changes=changed, paper=45.4),
        AblationVariant(name="b of 9", resize={"b": 9}, parameters=1200, changes=("b resized",)),
    )
    error = torch.tensor([[0.2, 0.4], [0.3, 0.5], [0.1, 0.2]], dtype=torch.float64)
    return AblationStudy(
        data="photos",
        backbone="alexnet",
        variants=variants,
        seeds=seeds,
        error=error,
        class_error=error / 2,
        classes=3,
        test_images=12,
        budget="2 steps",
        source="A paper",
    )


def sample_efficiency_result(
    data: str = "Caltech101", classes: int = 101, seeds: int = 3, per_class: tuple[int, ...] = (5, 15, 30)
) -> SampleEfficiency:
    shape = (2, len(per_class), seeds)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return SampleEfficiency(
        data=data,
        backbone="squeezenet1_0",
        variants=("pretrained-full", "scratch"),
        per_class=per_class,
        seeds=tuple(range(seeds)),
        class_mean=values,
        top1=values.flip(0),
        steps=torch.full(shape[:2], 7),
        classes=classes,
        test_images=500,
        budget="20 epochs",
        notes=("A note.",),
    )
