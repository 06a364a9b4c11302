"""What outputs and labels mean is found from them, or told: probabilities against plain computations of each kind."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.network.endings import Ending
from lightning_cnnviz.core.network.task import (
    Task,
    TaskKind,
    find_ending,
    find_task,
    output_tensor,
)

LOGITS = torch.tensor([[3.0, -2.0, 0.5], [-1.0, 0.2, 4.0]])
ONE = torch.tensor([[0.7], [-3.0]])
INTS = torch.tensor([0, 2])
MULTI_HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@dataclass
class Held:
    logits: Tensor
    features: Tensor


class Named(NamedTuple):
    aux_logits: Tensor | None
    logits: Tensor


# Which part of an output is the scores


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (LOGITS, ""),
        ({"loss": torch.tensor(1.0), "logits": LOGITS}, "logits"),
        (OrderedDict(out=LOGITS, aux=LOGITS + 1), "out"),  # torchvision's segmentation
        ({"features": torch.zeros(2, 9), "scores": LOGITS}, "scores"),
        (Held(LOGITS, torch.zeros(2, 9)), "logits"),
        (Named(LOGITS + 1, LOGITS), "logits"),
        (SimpleNamespace(logits=LOGITS, hidden_states=None), "logits"),
        ({"species": LOGITS}, "species"),
        ((LOGITS, None), "0"),
        ([LOGITS], "0"),
        ({"species": LOGITS, "boxes": torch.zeros(2, 4, dtype=torch.int64)}, "species"),
    ],
)
def test_the_scores_are_found_in_the_output(output: Any, part: str) -> None:
    found, name = output_tensor(output)
    assert found is LOGITS
    assert name == part


@pytest.mark.parametrize(
    ("output", "match"),
    [
        (
            {"species": LOGITS, "sex": ONE},
            r"2 tensors \('species', 'sex'\).*output_fn=lambda output: output\['species'\]",
        ),
        ((LOGITS, ONE), r"tuple of 2 tensors \(0, 1\).*output_fn=lambda output: output\[0\]"),
        (None, "NoneType, in which there is no tensor of scores; output_fn=... takes it"),
        ({"boxes": 3}, "dict, in which there is no tensor of scores"),
    ],
)
def test_an_output_that_leaves_it_open_says_how_to_tell(output: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        output_tensor(output)


# What is found


def sigmoid() -> Ending:
    return "sigmoid"


MAPS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("output", "labels", "kind", "normalized"),
    [
        (LOGITS, None, "multiclass", False),
        (LOGITS, INTS, "multiclass", False),
        (LOGITS, torch.tensor([-100, 2]), "multiclass", False),
        (LOGITS, F.one_hot(INTS, 3).float(), "multiclass", False),
        (LOGITS, torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]), "multiclass", False),  # as mixup makes them
        (LOGITS.softmax(1), INTS, "multiclass", True),
        (LOGITS, MULTI_HOT, "multilabel", False),
        (LOGITS, MULTI_HOT.bool(), "multilabel", False),
        (LOGITS, MULTI_HOT.long(), "multilabel", False),
        (LOGITS, torch.tensor([[1.0, float("nan"), 1.0], [0.0, 0.0, 1.0]]), "multilabel", False),
        (LOGITS, torch.tensor([[0.3, 12.0, 1.5], [-2.0, 0.1, 7.0]]), "regression", False),
        (ONE, torch.tensor([0, 1]), "binary", False),
        (ONE[:, 0], torch.tensor([0.0, 1.0]), "binary", False),
        (ONE, torch.tensor([[1.0], [0.0]]), "binary", False),
        (ONE, torch.tensor([37.5, 12.0]), "regression", False),
        (ONE, torch.tensor([37, 12]), "regression", False),
        (ONE, None, "regression", False),
        (MAPS, torch.zeros(2, 4, 5, dtype=torch.int64), "segmentation", False),
        (MAPS, None, "segmentation", False),
        (MAPS.softmax(1), None, "segmentation", True),
        (MAPS[:, :, :1, :1], INTS, "multiclass", False),  # a fully convolutional classifier
        ({"logits": LOGITS.to(torch.bfloat16).softmax(1)}, INTS, "multiclass", True),
    ],
)
def test_the_task_is_found(output: Any, labels: Tensor | None, kind: str, normalized: bool) -> None:
    found = find_task(output, labels)
    assert (found.kind, found.normalized, found.told) == (kind, normalized, False)


@pytest.mark.parametrize(
    ("output", "labels", "kind"),
    [
        (LOGITS.sigmoid(), INTS, "multiclass"),
        (LOGITS.sigmoid(), MULTI_HOT, "multilabel"),
        (LOGITS.sigmoid(), F.one_hot(INTS, 3), "multilabel"),
        (ONE.sigmoid(), None, "binary"),
        (ONE.sigmoid(), INTS.clamp(max=1), "binary"),
    ],
)
def test_what_a_sigmoid_made_is_probabilities(output: Tensor, labels: Tensor | None, kind: str) -> None:
    found = find_task(output, labels, ending=sigmoid)
    assert (found.kind, found.normalized) == (kind, True)


def test_values_that_lie_within_0_and_1_by_chance_are_logits() -> None:
    assert not find_task(LOGITS.sigmoid(), INTS, ending=lambda: "").normalized


def test_the_end_of_the_network_is_asked_for_only_where_values_leave_it_open() -> None:
    def refuse() -> Ending:
        raise AssertionError("asked")

    find_task(LOGITS, INTS, ending=refuse)
    find_task(LOGITS.softmax(1), INTS, ending=refuse)
    with pytest.raises(AssertionError, match="asked"):
        find_task(LOGITS.sigmoid(), INTS, ending=refuse)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression"])
def test_what_the_user_tells_stands(kind: TaskKind) -> None:
    found = find_task(LOGITS, INTS, kind=kind)
    assert (found.kind, found.told) == (kind, True)
    assert f"({kind}, as told)" in found.sentence()
    assert "task=" in find_task(LOGITS, INTS).sentence()


@pytest.mark.parametrize(
    ("output", "options", "match"),
    [
        (LOGITS, {"kind": "multi"}, r"task='multi': it is one of 'multiclass', 'multilabel'"),
        (LOGITS, {"kind": "binary"}, r"a tensor of shape \(2, 3\): a yes or no has one score"),
        (ONE, {"kind": "multiclass"}, r"one score is no choice between classes; task=\"binary\""),
        (LOGITS, {"kind": "segmentation"}, r"does not fit task=\"segmentation\""),
        (MAPS, {"kind": "multilabel"}, r"does not fit task=\"multilabel\": maps of scores are of \"segmentation\""),
        (MAPS, {"labels": INTS}, r"a score for each pixel, where labels are \(2,\); give task=\"segmentation\""),
        (MAPS, {"labels": 0.5 + torch.zeros_like(MAPS)}, "with labels that are pictures, as an autoencoder has"),
        (MAPS, {"image_shape": (3, 4, 5)}, "of the images' own shape, as an autoencoder has"),
        (torch.zeros(2, 3, 4), {}, r"a tensor of shape \(2, 3, 4\); scores are floats \(N, classes\)"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, r"a torch.int64 tensor of shape \(2, 3\); scores are floats"),
    ],
)
def test_what_does_not_fit_is_refused(output: Tensor, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        find_task(output, **options)


# What scores and probabilities are


@pytest.mark.parametrize(
    ("task", "output", "scores", "probabilities"),
    [
        (Task(), LOGITS, LOGITS, LOGITS.softmax(1)),
        (Task(), {"out": LOGITS, "aux": ONE}, LOGITS, LOGITS.softmax(1)),
        (Task(normalized=True), LOGITS.softmax(1), LOGITS.softmax(1), LOGITS.softmax(1)),
        (Task(kind="multilabel"), LOGITS, LOGITS, LOGITS.sigmoid()),
        (Task(kind="binary"), ONE, torch.cat([-ONE, ONE], 1), torch.cat([1 - ONE.sigmoid(), ONE.sigmoid()], 1)),
        (Task(kind="binary"), ONE[:, 0], torch.cat([-ONE, ONE], 1), torch.cat([1 - ONE.sigmoid(), ONE.sigmoid()], 1)),
        (Task(kind="regression"), ONE, ONE, ONE),
        (Task(), LOGITS[:, :, None, None], LOGITS, LOGITS.softmax(1)),
        (Task(), LOGITS.half(), LOGITS.half().float(), LOGITS.half().float().softmax(1)),
    ],
)
def test_scores_and_probabilities_by_task(task: Task, output: Any, scores: Tensor, probabilities: Tensor) -> None:
    found = task.read(output)
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.probabilities, probabilities)


def test_of_maps_scores_and_probabilities_are_means_over_a_region() -> None:
    regions = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) > 0.6
    found = Task(kind="segmentation").read(MAPS, regions)
    for image in range(2):
        inside = regions[image]
        assert 0 < int(inside.sum()) < 20
        torch.testing.assert_close(found.scores[image], MAPS[image][:, inside].mean(1))
        torch.testing.assert_close(found.probabilities[image], MAPS[image].softmax(0)[:, inside].mean(1))
    whole = Task(kind="segmentation").read(MAPS)
    torch.testing.assert_close(whole.scores, MAPS.mean((2, 3)))
    assert Task(kind="segmentation").read(MAPS, torch.zeros_like(regions)).scores.eq(0).all()


def test_a_map_of_one_logit_stands_for_two_classes() -> None:
    one = MAPS[:, :1]
    found = Task(kind="segmentation").by_pixel(one)
    torch.testing.assert_close(found.probabilities, torch.cat([1 - one.sigmoid(), one.sigmoid()], 1))


# What a network ends in


def little(*tail: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), *tail)


class Does(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Any:
        return self.function(values)


@pytest.mark.parametrize(
    ("tail", "ending"),
    [
        ([nn.Softmax(1)], "softmax"),
        ([nn.Sigmoid()], "sigmoid"),
        ([Does(torch.sigmoid)], "sigmoid"),
        ([Does(lambda x: x.sigmoid_())], "sigmoid"),
        ([nn.Hardsigmoid()], "sigmoid"),
        ([Does(lambda x: {"scores": x.sigmoid()[:, None].squeeze(1).double().clamp(1e-6, 1).contiguous()})], "sigmoid"),
        ([Does(lambda x: torch.cat([part.sigmoid() for part in x.split(1, 1)], 1))], "sigmoid"),
        ([nn.LogSoftmax(1)], ""),
        ([nn.Softmax(1), Does(lambda x: x * 2)], ""),
        ([nn.Sigmoid(), nn.Linear(3, 3)], ""),
        ([Does(lambda x: torch.cat([x.sigmoid(), x], 1))], ""),
        ([], ""),
    ],
)
def test_the_function_that_a_network_ends_in_is_told(tail: list[nn.Module], ending: str) -> None:
    model = little(*tail).train()
    assert find_ending(model, torch.rand(1, 1, 5, 5)) == ending
    assert all(module.training for module in model.modules())
