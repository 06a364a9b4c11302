"""A network as a classifier: each image has its own row, and what is no classifier or no label says so."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.network.classification import (
    Classified,
    check_images,
    class_logits,
    classify,
    fill_values,
    interleave,
)


def network(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


class Returns(nn.Module):
    """Whatever it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Any:
        return self.value(images) if callable(self.value) else self.value


class Output(NamedTuple):
    loss: None
    logits: Tensor


def test_each_image_has_its_own_row_of_the_logits() -> None:
    model, images, labels = network(), torch.randn(7, 3, 8, 8), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    found = classify(model, images, labels, batch_size=3)
    assert found.labeled
    assert not found.probabilities.requires_grad
    assert (found.classes, found.target_name, len(found)) == (5, "true class", 7)
    for number in range(7):
        row = model(images[number : number + 1])[0].softmax(0).detach()
        assert float(found.probabilities[number]) == pytest.approx(float(row[labels[number]]), abs=1e-6)
        assert int(found.predictions[number]) == int(row.argmax())
    assert torch.equal(found.targets, labels)


def test_without_labels_the_most_probable_class_is_followed() -> None:
    model, images = network(), torch.randn(4, 3, 8, 8)
    found = classify(model, images)
    expected = model(images).softmax(1).max(1)
    assert not found.labeled
    assert found.target_name == "predicted class"
    assert torch.equal(found.targets, expected.indices)
    assert torch.equal(found.predictions, expected.indices)
    torch.testing.assert_close(found.probabilities, expected.values.detach())


def test_a_network_that_returns_probabilities_is_not_squashed_again() -> None:
    model, images = network(), torch.randn(4, 3, 8, 8)
    twice = nn.Sequential(model, nn.Softmax(1))
    plain, found = classify(model, images), classify(twice, images)
    assert (plain.normalized, found.normalized) == (False, True)
    torch.testing.assert_close(found.probabilities, plain.probabilities)
    torch.testing.assert_close(found.probabilities_of(twice(images)), plain.probabilities_of(model(images)))


def test_a_row_that_looks_like_probabilities_by_chance_is_still_one_of_logits() -> None:
    rows = torch.tensor([[0.25, 0.75], [2.0, 1.0]])
    found = classify(Returns(lambda images: rows[: len(images)]), torch.randn(2, 3, 8, 8))
    assert not found.normalized
    torch.testing.assert_close(found.probabilities_of(rows[:1]), rows[:1].softmax(1))


def test_logits_inside_of_a_larger_output_are_found() -> None:
    model, images = network(), torch.randn(2, 3, 8, 8)
    wrapped = Returns(lambda given: Output(None, model(given)))
    assert torch.equal(class_logits(wrapped, images), model(images))


def test_half_precision_is_read_as_float() -> None:
    model, images = network().to(torch.bfloat16), torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    found = classify(model, images)
    assert found.probabilities.dtype == torch.float32
    assert float(found.probabilities.max()) <= 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"scores": 1}, "returns dict for 2 images"),
        ((torch.ones(2, 3), None), "returns tuple for 2 images"),
        (torch.ones(2, 3, 4, 4), r"returns a tensor of shape \(2, 3, 4, 4\)"),
        (torch.ones(2, 1), r"logits \(2, classes\) of two or more classes are needed"),
        (torch.ones(3, 4), r"returns a tensor of shape \(3, 4\) for 2 images"),
        (torch.ones(2, 3, dtype=torch.int64), "name the submodule that returns them"),
        (None, "returns NoneType"),
    ],
)
def test_what_is_no_logits_is_refused(value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        class_logits(Returns(value), torch.ones(2, 3, 8, 8))


def test_images_that_the_network_does_not_take_are_named_with_their_shape() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(4), nn.MaxPool2d(4), nn.Flatten(), nn.LazyLinear(2))
    pooled(torch.ones(1, 3, 40, 40))
    for images in (torch.ones(2, 3, 8, 8), torch.ones(2, 1, 40, 40), torch.ones(2, 3, 80, 80)):
        shape = ", ".join(map(str, images.shape[1:]))
        with pytest.raises(ValueError, match=rf"Sequential does not take images of shape \({shape}\): "):
            classify(pooled, images)

    def asserts(images: Tensor) -> Tensor:
        raise AssertionError("Input height (8) doesn't match model (224)")

    with pytest.raises(ValueError, match=r"does not take images of shape \(3, 8, 8\): Input height"):
        classify(Returns(asserts), torch.ones(2, 3, 8, 8))


def test_running_out_of_memory_is_not_taken_for_a_wrong_image() -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        class_logits(Returns(full), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 5, 7]), r"labels \[5, 7\] are out of range: the network has 5 classes \(0 to 4\)"),
        (torch.tensor([-1, 0, 0]), r"labels \[-1\] are out of range"),
        (torch.tensor([0, 1]), r"of shape \(2,\); give one whole number for each of the 3 images"),
        (torch.tensor([0.0, 1.0, 2.0]), "labels are torch.float32"),
        (torch.zeros(3, 5, dtype=torch.int64), r"of shape \(3, 5\)"),
    ],
)
def test_labels_that_are_no_classes_of_these_images_are_refused(labels: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        classify(network(), torch.ones(3, 3, 8, 8), labels)


@pytest.mark.parametrize(
    "images", [torch.ones(3, 8, 8), torch.ones(0, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_what_is_no_batch_of_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give one or more as a float tensor \(N, C, H, W\)"):
        check_images(images)


def test_fill_is_the_mean_of_each_channel_or_what_is_given() -> None:
    images = torch.randn(2, 3, 4, 4) + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    expected = torch.stack([images[:, channel].mean() for channel in range(3)])
    torch.testing.assert_close(fill_values(images, None), expected)
    assert fill_values(images, 0.5).tolist() == [0.5] * 3
    assert fill_values(images.double(), [1, 2, 3]).dtype == torch.float64
    with pytest.raises(ValueError, match="fill has 2 values, but the images have 3 channels: give 1 or 3"):
        fill_values(images, [0.0, 1.0])


@given(st.integers(1, 5), st.integers(1, 23))
def test_shares_of_any_number_of_ranks_come_together_in_order(ranks: int, count: int) -> None:
    whole = torch.arange(count * 2).view(count, 2)
    parts = [whole[rank::ranks] for rank in range(ranks) if rank < count]
    assert torch.equal(interleave(parts), whole)
    assert torch.equal(interleave([part.T for part in parts], 1), whole.T)


def test_shares_of_a_classification_are_the_whole() -> None:
    model, images, labels = network(), torch.randn(5, 3, 8, 8), torch.tensor([0, 4, 2, 2, 1])
    whole = classify(model, images, labels)
    joined = Classified.joined([classify(model, images[rank::2], labels[rank::2]) for rank in range(2)])
    assert torch.equal(joined.targets, whole.targets)
    assert torch.equal(joined.predictions, whole.predictions)
    torch.testing.assert_close(joined.probabilities, whole.probabilities)
    assert (joined.labeled, joined.classes, joined.normalized) == (True, 5, False)
