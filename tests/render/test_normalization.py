"""Inputs as pictures: found, given or guessed, the pixels come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision.transforms as v1
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.transforms import v2

from lightning_cnnviz.render.normalization import (
    Normalization,
    check_channels,
    chosen_normalization,
    find_normalization,
    normalization_from_range,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@given(st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_undoing_gives_the_pixels_back(seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (channels, 5, 6), dtype=torch.uint8, generator=generator)
    mean, std = list(MEAN[:channels]), list(STD[:channels])
    given_to_network = v2.functional.normalize(pixels.float() / 255, mean, std)
    shown = Normalization(tuple(mean), tuple(std)).to_pixels(given_to_network)
    assert torch.equal(shown, pixels.expand(3, -1, -1))


def wrapped(transform: Any) -> list[Any]:
    data = TensorDataset(torch.zeros(4, 1))
    data.transform = transform  # type: ignore[attr-defined]
    return [data, Subset(data, [0, 1]), ConcatDataset([data, data]), SimpleNamespace(dataset=Subset(data, [0]))]


@pytest.mark.parametrize(
    "transform",
    [
        v2.Normalize(list(MEAN), list(STD)),
        v2.Compose([v2.ToImage(), v2.Compose([v2.Normalize(list(MEAN), list(STD))])]),
        v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        torch.nn.Sequential(v1.Normalize(MEAN, STD)),
        v2.RandomApply([v2.Normalize(list(MEAN), list(STD))]),
    ],
    ids=["alone", "nested", "version 1", "sequential", "random apply"],
)
@pytest.mark.parametrize("place", range(4))
def test_found_in_the_data_set(transform: Any, place: int) -> None:
    found = find_normalization(wrapped(transform)[place])
    assert found is not None
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)
    assert "found" in found.sentence()


@pytest.mark.parametrize("dataset", [None, [], TensorDataset(torch.zeros(2)), *wrapped(v2.ToImage())])
def test_nothing_to_find(dataset: Any) -> None:
    assert find_normalization(dataset) is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0, 1.0, "as they are"),
        (0.0, 255.0, "0 and 255"),
        (0.0, 1.5, "from their range 0 to 1.5"),
        (-2.5, 2.0, "from their range -2.5 to 2"),
    ],
)
def test_guessed_from_the_range(low: float, high: float, words: str) -> None:
    image = torch.linspace(low, high, 16).view(1, 4, 4)
    guessed = normalization_from_range([image])
    assert words in guessed.sentence()
    shown = guessed.to_pixels(image)
    assert (int(shown.min()), int(shown.max())) == (0, 255)


def test_other_channels_and_types() -> None:
    plain = Normalization((0.0,), (1.0,))
    assert plain.to_pixels(torch.ones(5, 2, 2)).shape == (3, 2, 2)
    two = plain.to_pixels(torch.ones(2, 2, 2))
    assert two[:, 0, 0].tolist() == [255, 255, 255]
    raw = torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8)
    assert torch.equal(Normalization(MEAN, STD).to_pixels(raw), raw)
    assert plain.to_pixels(torch.full((1, 1, 1), float("nan"))).tolist() == [[[0]], [[0]], [[0]]]


def test_a_std_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="std not zero"):
        Normalization((0.5,), (0.0,))


@pytest.mark.parametrize(("channels", "of"), [((), 4), ((3, 1, 0), 4), ((2,), 4), ((2, 1, 0), 3), ((), 3), ((), 1)])
def test_pixels_come_back_through_a_network_input_that_is_shown_so(channels: tuple[int, ...], of: int) -> None:
    normalization = Normalization(
        tuple(0.1 * n for n in range(of)), tuple(0.2 + n for n in range(of)), "", channels, of
    )
    pixels = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if len(channels or (0,) * (3 if of == 3 else 1)) == 1:
        pixels = pixels[:1].expand(3, -1, -1)
    given = normalization.from_pixels(pixels, of)
    assert given.shape == (of, 5, 6)
    assert torch.equal(normalization.to_pixels(given), pixels)


@pytest.mark.parametrize("channels", [(0, 1), 4, -1, (0, 1, 4), ()])
def test_channels_that_cannot_be_shown_are_refused(channels: Any) -> None:
    with pytest.raises(ValueError, match="give one, or three as red, green and blue"):
        check_channels(channels, 4)


def test_a_normalization_of_other_channels_is_refused_where_it_is_told_and_not_taken_where_it_is_found() -> None:
    patches = [torch.rand(4, 3, 3)]
    with pytest.raises(ValueError, match="does not fit images of 4 channels: give 1 or 4 values"):
        chosen_normalization((MEAN, STD), None, patches)
    found = chosen_normalization(None, wrapped(v2.Normalize(list(MEAN), list(STD)))[0], patches)
    assert found.mean == (0.0,)
    with pytest.raises(ValueError, match="a normalization of 3 channels"):
        Normalization(MEAN, STD).to_pixels(patches[0])
