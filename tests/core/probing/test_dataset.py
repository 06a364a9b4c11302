from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_cnnviz.core.probing.dataset import dataset_labels, drawn_images


class Telling(Dataset[tuple[Tensor, int]]):
    def __init__(self, targets: Any, transform: Any = None) -> None:
        self.targets, self.target_transform = targets, transform

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 4, 4), int(self.targets[index])


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Telling([2, 0, 1]), [2, 0, 1]),
        (Telling(np.array([2, 0, 1])), [2, 0, 1]),
        (Subset(Telling(torch.tensor([2, 0, 1])), [2, 0]), [1, 2]),
        (TensorDataset(torch.rand(3, 1), torch.tensor([5, 6, 7])), [5, 6, 7]),
        (Telling([2, 0, 1], transform=lambda label: 2 - label), None),
        (Telling([2, 0]), None),
        (Telling(["a", "b", "c"]), None),
        (Telling([0.5, 1.0, 2.0]), None),
        (Telling([[0, 1], [1, 0], [1, 1]]), None),
        (Telling(None), None),
    ],
)
def test_labels_that_a_data_set_tells(dataset: Any, expected: list[int] | None) -> None:
    labels = dataset_labels(DataLoader(dataset, batch_size=2))
    assert (None if labels is None else labels.tolist()) == expected


class Stream(IterableDataset[Any]):
    targets = (0, 1)

    def __iter__(self) -> Any:
        return iter(self.targets)


def test_a_stream_tells_nothing() -> None:
    assert dataset_labels(DataLoader(Stream())) is None
    assert dataset_labels([(torch.rand(1, 1, 4, 4), torch.tensor([1]))]) is None


def test_images_are_drawn_by_the_seed_alone() -> None:
    first, again, other = (drawn_images(100, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, first.unique())
    assert torch.equal(drawn_images(5, None, 0), torch.arange(5))
