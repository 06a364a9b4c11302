from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.network import memory
from lightning_cnnviz.core.network.memory import images_at_once, numbers_at_once


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def test_more_memory_takes_more_images_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    image, counts = torch.rand(1, 3, 32, 32), []
    for free in (0, 8_000_000, 16_000_000, 10**12):
        monkeypatch.setattr(memory, "_free_bytes", lambda device, free=free: free)
        counts.append(images_at_once(net(), image))
    assert counts[0] == 1
    assert counts[0] < counts[1] < counts[2] < counts[3] == 16  # on a CPU, larger batches are no faster
    assert abs(counts[2] - 2 * counts[1]) <= 1


def test_gradients_need_more_and_so_do_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 12_000_000)
    model, image = net(), torch.rand(1, 3, 32, 32)
    assert images_at_once(model, image, gradients=True) < images_at_once(model, image)
    assert images_at_once(model, torch.rand(1, 3, 64, 64)) < images_at_once(model, image)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"does not take images of shape \(1, 32, 32\)"):
        images_at_once(model, torch.rand(1, 1, 32, 32))


def test_numbers_in_proportion_to_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert numbers_at_once(cpu) > 2**10  # of this machine
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**20)
    assert numbers_at_once(cpu, 4) == 2 * numbers_at_once(cpu, 8) == 2**13
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 0)
    assert numbers_at_once(cpu) == 1


class Functional(nn.Module):
    """Everything but the layers with weights is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.deep(F.relu(self.stem(images)))), 2)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_as_many_images_as_a_part_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
    image = torch.ones(1, 3, 32, 32)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**40)
    assert images_at_once(model, image) == 16
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 20 * 2**20)
    few = images_at_once(model, image)
    # Four times 64 maps of 30 x 30 and sixteen images, four bytes a value, in a quarter of it.
    assert few == 20 * 2**20 // 4 // (4 * (4 * 64 * 900 + 16 * 3 * 1024))
    assert 1 <= images_at_once(model, image, gradients=True) < few
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 0)
    assert images_at_once(model, image) == 1


def test_free_memory_is_a_plausible_number() -> None:
    assert 2**20 < memory._free_bytes(torch.device("cpu")) < 2**50


def test_an_image_that_the_network_does_not_take_is_no_question_of_memory() -> None:
    with pytest.raises(ValueError, match=r"Functional does not take images of shape \(3, 4, 4\)"):
        images_at_once(Functional(), torch.ones(1, 3, 4, 4))
