from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from core.probing.test_probe import problem

from lightning_cnnviz.core.probing.probe import probe
from lightning_cnnviz.core.probing.probed import ProbedLabels, ProbedValues
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.settling import drawn_splits, probed_of, settled


def test_classes_in_any_form_give_the_same_probes() -> None:
    features, labels = problem(80, 10, 4)
    wanted = probe(features, labels, Protocol(per_class=8, splits=2))
    mixed = 0.9 * F.one_hot(labels, 4) + 0.025
    for form in (F.one_hot(labels, 4), F.one_hot(labels, 4).float(), mixed, labels.to(torch.uint8)):
        found = probe(features, form, Protocol(per_class=8, splits=2))
        assert (found.measure, found.digest) == ("accuracy", wanted.digest)
        assert torch.equal(found.accuracy, wanted.accuracy)
    two = probe(features, labels % 2, Protocol(per_class=8, splits=2))
    assert torch.equal(probe(features, (labels % 2).float(), Protocol(per_class=8, splits=2)).accuracy, two.accuracy)


def test_training_and_test_labels_settle_on_one_form() -> None:
    ones, several = torch.eye(3, dtype=torch.int8), torch.ones(2, 3, dtype=torch.int8)
    assert [part.shape for part in settled(ones, several) if part is not None] == [(3, 3), (2, 3)]
    assert [part.tolist() for part in settled(ones, ones[1:]) if part is not None] == [[0, 1, 2], [1, 2]]
    with pytest.raises(ValueError, match="give both in one form"):
        settled(ones, torch.arange(3))
    with pytest.raises(ValueError, match=r"labels are torch.float32 of shape \(2, 1, 4, 4\)"):
        settled(torch.rand(2, 1, 4, 4), None)


def test_what_does_not_vary_is_not_told() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.int8)
    probed, targets, wanted = probed_of(labels, labels[1:], Protocol())
    assert isinstance(probed, ProbedLabels)
    assert wanted is not None
    # The third is there in all that are tested.
    assert (probed.count, probed.chance, targets.tolist(), wanted.tolist()) == (1, 0.5, [[1], [0], [1]], [[0], [1]])
    values, *_ = probed_of(torch.tensor([[1.5, 2.0], [1.5, 3.0]]), None, Protocol())
    assert isinstance(values, ProbedValues)
    assert values.count == 1


def test_pixels_of_a_class_that_is_not_learned_are_not_tested() -> None:
    targets, tested = torch.arange(20) % 2, torch.tensor([0, 5, 1, 1])
    manifest = drawn_splits(targets, Protocol(splits=1), test_targets=tested, pixels=2)
    assert manifest.splits[0].test.tolist() == [0, 2, 3]
