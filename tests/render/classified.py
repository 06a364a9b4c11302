"""What the tests of reports on a few images share: images with classes, and what is looked up in a report."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.report import Picture, Report, Scalar


def classified(count: int, *, labeled: bool = True) -> Classified:
    targets = torch.arange(count) % 4
    return Classified(
        targets=targets,
        labeled=labeled,
        probabilities=torch.full((count,), 0.8),
        predictions=targets.roll(1),
        classes=4,
    )


def pictures(report: Report) -> dict[str, Picture]:
    return {item.name: item for item in report.items if isinstance(item, Picture)}


def scalars(report: Report) -> dict[str, float]:
    return {item.name: item.value for item in report.items if isinstance(item, Scalar)}


def has_color(pixels: Tensor, color: tuple[float, ...]) -> bool:
    wanted = (torch.tensor(color) * 255).round().to(torch.uint8).view(3, 1, 1)
    return bool((pixels == wanted).all(0).any())


def shown(count: int = 2) -> list[Tensor]:
    return [torch.full((3, 12, 16), 90 + number, dtype=torch.uint8) for number in range(count)]
