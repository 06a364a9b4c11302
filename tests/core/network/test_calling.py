"""Networks of several inputs, or of unusual call: the other inputs of each image stay beside it in every view."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_cnnviz.core.data.sample import draw_sample
from lightning_cnnviz.core.images.attribution import attribute, check_attribution
from lightning_cnnviz.core.images.invariance import measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.images.transforms import TRANSFORMS
from lightning_cnnviz.core.maximization.maximize import strongest_images
from lightning_cnnviz.core.maximization.objectives import ClassScore
from lightning_cnnviz.core.network.calling import GivenBatch, called, give, needs_rows, rows_of
from lightning_cnnviz.core.network.twins import random_twin

SIZE = 12
Pair = namedtuple("Pair", "first second")


class Conditioned(nn.Module):
    """What it says of an image depends on three numbers that come with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(7, 3)
        nn.init.normal_(self.head.weight)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.conv(images).relu().mean((2, 3)), meta], 1))
        return scores


def batch_of(count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, SIZE, SIZE, generator=generator)
    return {"image": images, "meta": torch.randn(count, 3, generator=generator), "label": torch.arange(count) % 3}


def network_of(batch: Any) -> Any:
    model = called(Conditioned(), lambda network, batch: network(batch["image"], batch["meta"]))
    give(model, batch, batch["image"])
    return model


@torch.no_grad()
def test_every_view_runs_each_image_with_what_belongs_to_it() -> None:
    batch = batch_of()
    model, (images, meta, labels) = network_of(batch), batch.values()
    plain = model.network
    p = plain(images, meta).softmax(1)
    found = occlude(model, images, labels, "conv", size=6, stride=6, fill=0.25)
    torch.testing.assert_close(found.untouched.probabilities, p[range(4), labels])
    covered = images.clone()
    covered[:, :, :6, 6:] = 0.25
    torch.testing.assert_close(found.probabilities[:, 0, 1], plain(covered, meta).softmax(1)[range(4), labels])
    curves = measure_invariance(model, images, labels, "conv", "brightness", batch_size=3)
    transform = TRANSFORMS["brightness"]((SIZE, SIZE), [0.0])
    for place in (0, 3):
        expected = plain(transform.apply(images.clone(), transform.values[place]), meta).softmax(1)[range(4), labels]
        torch.testing.assert_close(curves.sweeps[0].probabilities[:, place], expected, atol=1e-5, rtol=1e-4)
    strongest = strongest_images(model, [ClassScore(1)], images, batch_size=2)
    assert int(strongest.numbers[0]) == int(plain(images, meta)[:, 1].argmax())


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "gradcam", "guided_gradcam"])
def test_attributions_are_of_the_image_with_its_own_inputs(method: Any) -> None:
    class Squared(Conditioned):
        def forward(self, images: Tensor, meta: Tensor) -> Tensor:
            return super().forward(images, meta).square()  # so that gradients depend on the inputs

    batch = batch_of()
    images, meta, labels = batch.values()
    model = called(Squared(), lambda network, batch: network(batch["image"], batch["meta"]))
    give(model, batch, images)
    options: dict[str, Any] = {"layer": "conv"} if "gradcam" in method else {}
    found = attribute(model, images, labels, method, baseline=0.0, batch_size=3, **options)
    check_attribution(model, images, labels, method, **options)
    for number in range(4):

        class Alone(nn.Module):
            def __init__(self, row: int) -> None:
                super().__init__()
                self.conv, self.rest, self.row = model.network.conv, model.network, row

            def forward(self, given: Tensor) -> Any:
                return self.rest(given, meta[self.row : self.row + 1].expand(len(given), -1))

        one = slice(number, number + 1)
        plain = attribute(Alone(number), images[one], labels[one], method, baseline=0.0, **options)
        torch.testing.assert_close(found.maps[one], plain.maps)


def test_layers_names_and_weights_are_the_networks_own() -> None:
    batch = batch_of()
    model = network_of(batch)
    plain = model.network
    assert type(model).__name__ == "Conditioned"
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.conv is plain.conv
    twin = random_twin(model)
    images, meta, _ = batch.values()
    assert not torch.equal(twin(images), model(images))
    assert twin.network is not plain
    torch.testing.assert_close(twin(images), twin.network(images, meta))
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_rows_are_those_that_are_said_or_follow_from_the_number_of_images() -> None:
    batch = batch_of()
    model = network_of(batch)
    images, meta, _ = batch.values()
    plain = model.network
    torch.testing.assert_close(model(images), plain(images, meta))
    torch.testing.assert_close(model(images[2:3]), plain(images[2:3], meta[:1]))
    with rows_of(model, slice(1, 4)):
        torch.testing.assert_close(model(images[1:4]), plain(images[1:4], meta[1:4]))
        twice = images[1:4].repeat(2, 1, 1, 1)
        torch.testing.assert_close(model(twice), plain(twice, meta[1:4].repeat(2, 1)))
        with rows_of(model, 1):
            torch.testing.assert_close(model(images), plain(images, meta[2].expand(4, -1)))
        with rows_of(model, torch.tensor([2, 0])):
            torch.testing.assert_close(model(images[:2]), plain(images[:2], meta[[3, 1]]))
    assert needs_rows(model, images[:1])
    alone = called(nn.Conv2d(1, 2, 3), lambda network, batch: network(batch["image"]))
    give(alone, batch, images)
    assert not needs_rows(alone, images[:1])
    assert not needs_rows(nn.Identity(), images[:1])
    give(model, None)
    with pytest.raises(ValueError, match="runs the network on batches, and there is none"):
        model(images)


@dataclass(frozen=True)
class Held:
    image: Tensor
    other: Any


IMAGES = torch.rand(3, 1, 4, 4)


@pytest.mark.parametrize(
    "form",
    [
        lambda other: {"image": IMAGES, "other": other},
        lambda other: (IMAGES, other),
        lambda other: [IMAGES, other],
        lambda other: Pair(IMAGES, other),
        lambda other: Held(IMAGES, other),
        lambda other: ({"deep": [other, {"image": IMAGES}]}, other),
    ],
)
def test_images_are_exchanged_in_batches_of_any_form(form: Any) -> None:
    other = {"number": torch.tensor([1, 2, 3]), "names": ["a", "b", "c"], "scale": torch.tensor(7), "flag": True}
    batch = form(other)
    changed = torch.zeros(2, 1, 4, 4)
    made = GivenBatch.of(batch, IMAGES).with_images(changed, torch.tensor([2, 0]))
    assert type(made) is type(batch)

    def everything(value: Any) -> list[Any]:
        if isinstance(value, Held):
            value = vars(value)
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)) and not all(isinstance(each, str) for each in value):
            return [leaf for each in value for leaf in everything(each)]
        return [value.tolist() if isinstance(value, Tensor) and value.ndim < 2 else value]

    leaves = everything(made)
    assert [leaf for leaf in leaves if isinstance(leaf, list)][:2] == [[3, 1], ["c", "a"]]
    assert [leaf for leaf in leaves if leaf is changed] == [changed]
    assert 7 in [leaf for leaf in leaves if isinstance(leaf, int)]
    with pytest.raises(ValueError, match="is no tensor of the"):
        GivenBatch.of(batch, IMAGES.clone())


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return {"image": torch.full((1, 4, 4), float(index)), "meta": torch.tensor([10.0 * index]), "file": str(index)}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (Samples()[index] for index in range(10))


@pytest.mark.parametrize("dataset", [Samples(), Stream()])
def test_a_sample_keeps_what_belongs_to_its_images(dataset: Any) -> None:
    sample = draw_sample(DataLoader(dataset, batch_size=3), 5).part(slice(1, None, 2))
    assert sample.given is not None
    held = sample.given.batch
    numbers = [int(image.mean()) for image in sample.images]
    assert held["meta"].flatten().tolist() == [10.0 * number for number in numbers]
    assert held["file"] == [str(number) for number in numbers]
    assert torch.equal(held["image"], sample.images)
