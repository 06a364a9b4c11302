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
    Scorer,
    check_images,
    classify,
    fill_values,
    interleave,
    run_network,
)
from lightning_cnnviz.core.network.task import TaskKind


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
    assert (plain.task.normalized, found.task.normalized) == (False, True)
    torch.testing.assert_close(found.probabilities, plain.probabilities)
    again = Scorer(twice, found.task)(images).probabilities
    torch.testing.assert_close(again, Scorer(model, plain.task)(images).probabilities)


def test_a_row_that_looks_like_probabilities_by_chance_is_still_one_of_logits() -> None:
    rows = torch.tensor([[0.25, 0.75], [2.0, 1.0]])
    model = Returns(lambda images: rows[: len(images)])
    found = classify(model, torch.randn(2, 3, 8, 8))
    assert not found.task.normalized
    torch.testing.assert_close(Scorer(model, found.task)(torch.randn(1, 3, 8, 8)).probabilities, rows[:1].softmax(1))


def test_sigmoids_of_the_classes_are_probabilities() -> None:
    model, images, labels = network(), torch.randn(4, 3, 8, 8), torch.tensor([0, 4, 2, 1])
    found = classify(nn.Sequential(model, nn.Sigmoid()), images, labels)
    torch.testing.assert_close(found.probabilities, model(images).sigmoid().detach()[range(4), labels])
    assert torch.equal(found.predictions, model(images).argmax(1))
    assert (found.target_name, found.key, found.quantity) == ("true class", "p_true", "p(true class)")


def test_of_several_labels_the_most_probable_is_followed() -> None:
    model, images = network(), torch.randn(4, 3, 8, 8)
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    found = classify(model, images, labels)
    p = model(images).sigmoid().detach()
    assert found.task.kind == "multilabel"
    assert found.all_probabilities is not None
    assert found.present is not None
    torch.testing.assert_close(found.all_probabilities, p)
    assert torch.equal(found.present, labels > 0)
    for row in range(4):
        there = labels[row].nonzero().flatten().tolist() or list(range(5))
        best = max(there, key=lambda place: float(p[row, place]))
        assert int(found.targets[row]) == best
        assert float(found.probabilities[row]) == pytest.approx(float(p[row, best]))
    assert found.unlabeled is not None
    assert found.unlabeled.tolist() == [False, False, True, False]


@pytest.mark.parametrize("ending", [nn.Identity(), nn.Sigmoid()])
def test_one_logit_is_a_yes_or_no(ending: nn.Module) -> None:
    model, images, labels = network(1), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    found = classify(nn.Sequential(model, ending), images, labels.float()[:, None])
    yes = model(images)[:, 0].sigmoid().detach()
    torch.testing.assert_close(found.probabilities, torch.where(labels == 1, yes, 1 - yes))
    assert torch.equal(found.predictions, (yes > 0.5).long())
    assert (found.classes, found.task.kind) == (2, "binary")


def test_a_value_is_followed_as_it_is() -> None:
    model, images = network(1), torch.randn(3, 3, 8, 8)
    found = classify(model, images, torch.tensor([37.5, 20.0, 3.0]))
    torch.testing.assert_close(found.probabilities, model(images)[:, 0].detach())
    assert (found.labeled, found.key, found.quantity) == (False, "value", "value")
    assert found.targets.tolist() == [0, 0, 0]


def test_of_a_label_map_the_largest_class_but_the_background_is_followed() -> None:
    torch.manual_seed(0)
    model, images = nn.Conv2d(3, 4, 3, padding=1), torch.randn(3, 3, 8, 8)
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[0, :3, :2], labels[0, 5, 5] = 2, 1  # six pixels of 2, one of 1
    labels[1] = 255
    labels[1, 0, 0] = 3
    labels[2] = -100
    found = classify(model, images, labels)
    p = model(images).softmax(1).detach()
    assert found.targets[:2].tolist() == [2, 3]
    assert float(found.probabilities[0]) == pytest.approx(float(p[0, 2, :3, :2].mean()))
    assert float(found.probabilities[1]) == pytest.approx(float(p[1, 3, 0, 0]))
    assert found.present is not None
    assert found.present[:2].tolist() == [[True, True, True, False], [False, False, False, True]]
    assert found.unlabeled is not None
    assert found.unlabeled.tolist() == [False, False, True]
    seen = p[2].argmax(0)  # without labels, the network's own map
    largest = max(range(1, 4), key=lambda number: int((seen == number).sum()))
    assert int(found.targets[2]) == largest
    assert float(found.probabilities[2]) == pytest.approx(float(p[2, largest][seen == largest].mean()))
    half = classify(nn.Sequential(model, nn.MaxPool2d(2)), images, labels)  # maps of another size
    assert half.regions is not None
    assert tuple(half.regions.shape) == (3, 4, 4)


@pytest.mark.parametrize("sign", [-1, -100])
def test_an_image_without_a_label_follows_the_predicted_class(sign: int) -> None:
    model, images, labels = network(), torch.randn(4, 3, 8, 8), torch.tensor([sign, 4, 2, sign])
    found, predicted = classify(model, images, labels), model(images).argmax(1)
    assert found.targets.tolist() == [int(predicted[0]), 4, 2, int(predicted[3])]
    assert found.target_name == "true class, predicted where there is no label"
    none = classify(model, images, torch.full((4,), sign))
    assert (none.labeled, none.unlabeled, none.target_name) == (False, None, "predicted class")


def test_what_is_told_is_taken() -> None:
    model, images, labels = network(), torch.randn(4, 3, 8, 8), torch.eye(5)[:4]
    heads = Returns(lambda given: {"species": model(given), "sex": model(given)[:, :2]})
    found = classify(heads, images, labels, task="multilabel", output_fn=lambda output: output["species"])
    torch.testing.assert_close(found.probabilities, model(images).sigmoid().detach().diagonal())
    assert found.task.told
    with pytest.raises(ValueError, match=r"Returns returns, for 4 images, dict of 2 tensors.*output_fn=lambda"):
        classify(heads, images)


def test_logits_inside_of_a_larger_output_are_found() -> None:
    model, images = network(), torch.randn(2, 3, 8, 8)
    wrapped = Returns(lambda given: Output(None, model(given)))
    found = classify(wrapped, images)
    assert found.task.part == "logits"
    assert torch.equal(Scorer(wrapped, found.task)(images).scores, model(images))


def test_half_precision_is_read_as_float() -> None:
    model, images = network().to(torch.bfloat16), torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    found = classify(model, images)
    assert found.probabilities.dtype == torch.float32
    assert float(found.probabilities.max()) <= 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"scores": 1}, "Returns returns, for 2 images, dict, in which there is no tensor of scores"),
        ((torch.ones(2, 3), torch.ones(2, 4)), "tuple of 2 tensors"),
        (torch.ones(2, 3, 8, 8), r"a tensor of shape \(2, 3, 8, 8\), of the images' own shape"),
        (torch.ones(3, 4), r"for 2 images, a tensor of shape \(3, 4\)"),
        (torch.ones(2, 3, dtype=torch.int64), "torch.int64 tensor"),
        (None, "for 2 images, NoneType"),
    ],
)
def test_what_is_no_scores_is_refused(value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        classify(Returns(value), torch.ones(2, 3, 8, 8))


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
        run_network(Returns(full), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 5, 7]), r"labels \[5, 7\] are out of range: the network has 5 classes \(0 to 4\)"),
        (torch.tensor([-2, 0, 0]), r"labels \[-2\] are out of range"),
        (torch.tensor([0, 1]), r"of shape \(2,\); give one whole number for each of the 3 images"),
        (torch.tensor([0.5, 1.0, 2.0]), "labels are torch.float32"),
        (torch.zeros(3, 4, dtype=torch.int64), r"of shape \(3, 4\)"),
    ],
)
def test_labels_that_are_no_classes_of_these_images_are_refused(labels: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        classify(network(), torch.ones(3, 3, 8, 8), labels)


@pytest.mark.parametrize(
    "images", [torch.ones(3, 8, 8), torch.ones(0, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64)]
)
def test_what_is_no_batch_of_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give one or more as a float or uint8 tensor \(N, C, H, W\)"):
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


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 4, 2, 2, 1]),
        torch.tensor([-1, 4, -1, 2, -1]),  # one rank has no label at all
        torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]),
    ],
)
def test_shares_of_a_classification_are_the_whole(labels: Tensor) -> None:
    model, images = network(), torch.randn(5, 3, 8, 8)
    kind: TaskKind = "multilabel" if labels.ndim == 2 else "multiclass"
    whole = classify(model, images, labels)
    joined = Classified.joined([classify(model, images[rank::2], labels[rank::2], task=kind) for rank in range(2)])
    assert torch.equal(joined.targets, whole.targets)
    assert torch.equal(joined.predictions, whole.predictions)
    torch.testing.assert_close(joined.probabilities, whole.probabilities)
    assert (joined.labeled, joined.classes, joined.task.kind) == (True, 5, kind)
    for name in ("unlabeled", "present", "all_probabilities"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
