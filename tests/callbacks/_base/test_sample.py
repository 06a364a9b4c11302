"""A few images, and how they are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions


def trainer() -> Any:
    strategy = SimpleNamespace(broadcast=lambda value: value, batch_to_device=lambda batch: batch)
    return SimpleNamespace(global_rank=1, world_size=3, strategy=strategy, state=SimpleNamespace(stage=None))


def drawn(images: Any, **options: Any) -> DisplayedSample:
    sample = DisplayedSample(images, **options)
    sample.draw("Me", trainer(), torch.nn.Identity())
    return sample


def test_options_are_told_apart_from_those_of_the_monitor() -> None:
    options: SampleOptions = {"seed": 3, "class_names": ["a"], "every_n_epochs": 2, "name": "x"}
    sample, rest = DisplayedSample.with_options(torch.rand(2, 1, 4, 4), options)
    assert rest == {"every_n_epochs": 2, "name": "x"}
    sample.draw("Me", trainer(), torch.nn.Identity())
    assert sample.display.class_names == ("a",)


def test_ranks_share_the_images() -> None:
    images = torch.rand(5, 1, 4, 4)
    sample = drawn((images, torch.arange(5)))
    part = sample.part(torch.nn.Linear(1, 1).double())
    assert part is not None
    assert part.images.dtype == torch.float64
    assert part.indices.tolist() == [1, 4]
    assert torch.equal(part.images.float(), images[[1, 4]])
    assert drawn(images[:1]).part(torch.nn.Identity()) is None


def test_gray_is_the_mean_that_was_subtracted_or_that_of_the_images() -> None:
    images = torch.rand(3, 3, 4, 4)
    assert torch.equal(drawn(images, normalization=([0.5] * 3, [0.2] * 3)).display.fill, torch.zeros(3))
    expected = images.mean((0, 2, 3))
    assert torch.allclose(drawn(images, normalization=([0.0] * 3, [1.0] * 3)).display.fill, expected, atol=1e-6)


def test_a_loader_gives_different_images_by_its_seed() -> None:
    data = TensorDataset(torch.rand(40, 1, 4, 4), torch.arange(40) % 4)
    first, again, other = (drawn(4, data=DataLoader(data, batch_size=8), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.sample.images, again.sample.images)
    assert not torch.equal(first.sample.images, other.sample.images)
    first.forget()
    assert not first.is_drawn


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images=0"):
        DisplayedSample(0)
    with pytest.raises(ValueError, match=r"Me\(images=...\).*give \(N, C, H, W\)"):
        drawn(torch.rand(2, 4, 4))
