"""A few images, drawn once: the same at every call, of different classes, and without trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_cnnviz.core.data.sample import draw_sample


class Numbered(Dataset[Any]):
    """Images that hold their index, noise by every generator, and a label in four classes."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(1) + float(np.random.rand()) + random.random()
        return torch.full((1, 4, 4), float(index)) + 0.1 * noise, index % 4


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.full((1, 4, 4), float(number)) for number in range(10))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_same_images_every_time_with_their_own_pixels(shuffle: bool, workers: int) -> None:
    loader = DataLoader(Numbered(), batch_size=7, shuffle=shuffle, num_workers=workers)
    first, second = draw_sample(loader, 5), draw_sample(loader, 5)
    assert torch.equal(first.images, second.images)
    assert first.indices.tolist() == second.indices.tolist()
    assert [int(image.mean()) for image in first.images] == first.indices.tolist()
    assert first.labels is not None
    assert first.labels.tolist() == [index % 4 for index in first.indices.tolist()]
    assert set(first.labels.tolist()) == {0, 1, 2, 3}
    assert draw_sample(loader, 5, seed=1).indices.tolist() != first.indices.tolist()


def test_chance_and_loader_stay_as_they_were() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(Numbered(), batch_size=7, shuffle=True, generator=generator)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state(), generator.get_state()
    draw_sample(loader, 3)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state(), generator.get_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert torch.equal(before[3], after[3])


def test_fewer_where_there_are_no_more() -> None:
    images = torch.rand(3, 1, 4, 4)
    drawn = draw_sample(DataLoader(TensorDataset(images), batch_size=2), 5)
    assert sorted(drawn.indices.tolist()) == [0, 1, 2]
    assert drawn.labels is None
    assert torch.equal(drawn.images, images[drawn.indices])


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=3),
        [
            torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 4, 4)[:4],
            torch.arange(4.0, 6.0).view(2, 1, 1, 1) * torch.ones(1, 1, 4, 4),
        ],
    ],
    ids=["stream", "list"],
)
def test_the_first_images_where_there_are_no_indices(loader: Any) -> None:
    drawn = draw_sample(loader, 5)
    assert drawn.images[:, 0, 0, 0].tolist() == drawn.indices.tolist() == [0, 1, 2, 3, 4]


def test_a_part_keeps_what_belongs_together() -> None:
    drawn = draw_sample(DataLoader(Numbered(), batch_size=7), 5)
    part = drawn.part(slice(1, None, 2))
    assert len(part) == 2
    assert part.indices.tolist() == drawn.indices[[1, 3]].tolist()
    assert torch.equal(part.images, drawn.images[[1, 3]])


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="the loader list is empty"):
        draw_sample([], 3)
    with pytest.raises(ValueError, match="0 images asked for"):
        draw_sample([torch.rand(2, 1, 4, 4)], 0)
    with pytest.raises(TypeError, match="no images found"):
        draw_sample(["text"], 1)


def test_images_of_several_labels_come_first_and_those_without_a_class_last() -> None:
    rows = torch.nn.functional.one_hot(torch.arange(40) % 4, 4)
    rows[::4] = torch.tensor([1, 0, 1, 1])
    sample = draw_sample(DataLoader(TensorDataset(torch.rand(40, 1, 4, 4), rows), batch_size=8), 4)
    assert sample.labels is not None
    assert sample.labels[0].tolist() == [1, 0, 1, 1]
    assert len(sample.labels.unique(dim=0)) == 4
    numbers = torch.arange(40) % 4
    numbers[numbers == 3] = -100
    sample = draw_sample(DataLoader(TensorDataset(torch.rand(40, 1, 4, 4), numbers), batch_size=8), 8)
    assert sample.labels is not None
    assert -100 not in sample.labels
