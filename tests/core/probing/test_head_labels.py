from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import called
from lightning_cnnviz.core.probing.head_labels import labels_by_head


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        means = self.scale * images.mean((2, 3))
        return {"species": means, "sex": means[:, :2]}


IMAGES = torch.rand(4, 3, 5, 5)


def names(batch: Any, model: nn.Module | None = None, batch_fn: Any = None) -> list[str]:
    return [name for name, _ in labels_by_head(Two() if model is None else model, [batch], batch_fn)]


def test_heads_are_read_with_labels_of_their_names() -> None:
    batch = {"image": IMAGES, "targets": {"sex": torch.arange(4) % 2, "species": torch.arange(4)}}
    (first, read), (second, read_second) = labels_by_head(Two(), [batch])
    assert (first, second) == ("species", "sex")
    assert read is not None
    assert read_second is not None
    assert torch.equal(read(batch)[0], IMAGES)
    assert read(batch)[1].tolist() == [0, 1, 2, 3]
    assert read_second(batch)[1].tolist() == [0, 1, 0, 1]


def test_heads_without_labels_of_their_own_are_one() -> None:
    assert names((IMAGES, torch.arange(4))) == [""]
    assert names({"image": IMAGES, "species": ["a"] * 4, "label": torch.arange(4)}) == [""]
    assert names({"image": IMAGES, "species": torch.arange(4)}) == ["species"]
    assert names({"image": IMAGES, "species": torch.arange(4)}, nn.Flatten()) == [""]
    assert [name for name, _ in labels_by_head(Two(), [])] == [""]


def test_images_may_come_by_batch_fn_and_the_network_be_called_otherwise() -> None:
    batch = {"photo": IMAGES, "species": torch.arange(4), "meta": torch.ones(4, 1)}
    assert names(batch, batch_fn=lambda batch: batch["photo"]) == ["species"]
    model = called(Two(), lambda network, batch: network(batch["photo"] * batch["meta"].view(-1, 1, 1, 1)))
    assert names(batch, model, lambda batch: batch["photo"]) == ["species"]
