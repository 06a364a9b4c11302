"""Small networks of signals and of volumes, in the forms in which people write them."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

__all__ = ["Block1d", "Branches3d", "ecg_resnet", "small_r3d"]


class Block1d(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, 7, stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv1d(after, after, 5, padding=4, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Sequential(nn.Conv1d(before, after, 1, stride, bias=False), nn.BatchNorm1d(after))

    def forward(self, signals: Tensor) -> Tensor:
        """Add the shortcut."""
        inside = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(signals)))))
        return self.relu(inside + self.shortcut(signals))  # type: ignore[no-any-return]


def ecg_resnet(leads: int = 3, classes: int = 4, *, width: int = 6) -> nn.Sequential:
    """A ResNet of signals `(N, leads, L)`, as those of electrocardiograms are."""
    stem = (nn.Conv1d(leads, width, 9, stride=2, padding=4, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
    blocks = (Block1d(width, width, 1), Block1d(width, 2 * width, 2))
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, classes))
    return nn.Sequential(*stem, nn.MaxPool1d(3, 2, padding=1), *blocks, *head)


class Branches3d(nn.Module):
    """Groups, dilation, overlapping and average pooling, slices and a concatenation, over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, 4, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2))
        self.norm = nn.BatchNorm3d(4)
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.left = nn.Conv3d(4, 4, 3, padding=(2, 1, 1), dilation=(2, 1, 1), groups=2)
        self.right = nn.Conv3d(4, 4, (1, 3, 1))
        self.average = nn.AvgPool3d((2, 1, 1), stride=(2, 1, 1))
        self.last = nn.Conv3d(8, 3, (2, 2, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, volumes: Tensor) -> Tensor:
        """Join both branches."""
        stem = self.pool(self.norm(self.stem(volumes)).relu())
        left, right = self.left(stem).relu(), torch.relu_(self.right(stem))
        joined = torch.cat([left[:, :, :, 1:-1], right], 1)
        return self.head(self.last(self.average(joined)).relu().mean((2, 3, 4)))  # type: ignore[no-any-return]


def small_r3d() -> nn.Module:
    """torchvision's r3d_18, with random statistics of its BatchNorms, too."""
    torch.manual_seed(0)
    model = torchvision.models.video.r3d_18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()
