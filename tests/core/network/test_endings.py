"""What is computed from softmaxes and sigmoids is known to be probabilities, or not to be, by bounds of its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.network.endings import Ending, EndingMode, sums_to_one, undone
from lightning_cnnviz.core.network.task import find_ending, find_task

LOGITS = torch.tensor([[3.0, -2.0, 0.5], [-1.0, 0.2, 4.0]])


class Ensemble(nn.Module):
    """Three classifiers, whose logits a function joins."""

    def __init__(self, joined: Callable[..., Any]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(25, 3) for _ in range(3))
        self.mixing = nn.Parameter(torch.tensor([0.5, 1.0, -1.0]))
        self.joined = joined

    def forward(self, images: Tensor) -> Any:
        return self.joined(*[head(images.flatten(1)) * 4 for head in self.heads], self.mixing)


def written(a: Tensor, b: Tensor, c: Tensor, _: Tensor) -> Tensor:
    made = torch.empty(len(a), 3)
    for place, one in enumerate((a, b, c)):
        made[:, place] = one[:, 0].sigmoid()
    return made


def scaled_in_place(a: Tensor, *_: Tensor) -> Tensor:
    return a.sigmoid_().mul_(0.5).add_(0.25)


PROBABILITIES: dict[str, Callable[..., Any]] = {
    "average": lambda a, b, c, _: (a.sigmoid() + b.sigmoid() + c.sigmoid()) / 3,
    "mean of a stack": lambda a, b, c, _: torch.stack([a, b, c]).sigmoid().mean(0),
    "sum, divided": lambda a, b, c, _: sum(x.sigmoid() for x in (a, b, c)) / torch.tensor(3.0),
    "product": lambda a, b, *_: a.sigmoid() * b.sigmoid(),
    "product of all": lambda a, b, c, _: torch.stack([a, b, c]).sigmoid().prod(0),
    "maximum": lambda a, b, *_: torch.maximum(a.sigmoid(), b.sigmoid()),
    "maximum of a stack": lambda a, b, c, _: torch.stack([a, b, c]).sigmoid().amax(0),
    "maximum and its place": lambda a, b, c, _: torch.stack([a, b, c]).sigmoid().max(0).values,
    "minimum": lambda a, b, *_: torch.minimum(a.sigmoid(), b.sigmoid()),
    "complement": lambda a, *_: 1 - a.sigmoid(),
    "noisy or": lambda a, b, c, _: 1 - (1 - torch.stack([a, b, c]).sigmoid()).prod(0),
    "times one": lambda a, *_: a.sigmoid() * 1.0,
    "scaled in place": scaled_in_place,
    "weighted": lambda a, b, *_: 0.3 * a.sigmoid() + 0.7 * b.sigmoid(),
    "learned weights": lambda a, b, c, w: (w.softmax(0)[:, None, None] * torch.stack([a, b, c]).sigmoid()).sum(0),
    "experts": lambda a, b, c, _: torch.einsum("nk,knc->nc", c.softmax(1), torch.stack([a, b, c]).sigmoid()),
    "gated": lambda a, b, c, _: torch.lerp(a, b, 0.5).sigmoid() * c[:, :1].sigmoid(),
    "geometric mean": lambda a, b, *_: (a.sigmoid() * b.sigmoid()).sqrt(),
    "tempered": lambda a, *_: a.sigmoid() ** 0.5,
    "clipped": lambda a, *_: a.sigmoid().clamp(1e-6, 1 - 1e-6),
    "from tanh": lambda a, *_: (a.tanh() + 1) / 2,
    "spelled out": lambda a, *_: 1 / (1 + torch.exp(-a)),
    "exponential of the logarithm": lambda a, *_: F.logsigmoid(a).exp(),
    "masked": lambda a, *_: a.sigmoid().masked_fill(torch.tensor([False, True, False]), 0.0),
    "written one by one": written,
    "two softmaxes, maximum": lambda a, b, *_: torch.maximum(a.softmax(1), b.softmax(1)),
    "two classes together": lambda a, *_: a.softmax(1)[:, :2].sum(1, keepdim=True),
    "two classes, added": lambda a, *_: (a.softmax(1)[:, 0] + a.softmax(1)[:, 1])[:, None],
    "without one class": lambda a, *_: a.softmax(1)[:, 1:],
}  # fmt: skip
NONE: dict[str, Callable[..., Any]] = {
    "sum": lambda a, b, *_: a.sigmoid() + b.sigmoid(),
    "scaled": lambda a, *_: a.sigmoid() * 1.5,
    "capped logits": lambda a, *_: 30 * torch.tanh(a / 30),
    "centered": lambda a, *_: 2 * a.sigmoid() - 1,
    "weights the features": lambda a, b, *_: a * b.sigmoid(),
    "logarithm": lambda a, b, *_: ((a.sigmoid() + b.sigmoid()) / 2).log(),
    "logit": lambda a, *_: a.sigmoid().logit(),
    "clamped logits": lambda a, *_: a.clamp(0, 1),
    "over a half": lambda a, *_: (a.sigmoid() > 0.5).float() + a,
    "a sum of softmaxes": lambda a, b, *_: a.softmax(1) + b.softmax(1),
    "partly": lambda a, b, *_: torch.where(b > 0, a, a.sigmoid()),
}


def probabilities(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    output = model(images).detach()
    return find_task(output, labels, ending=lambda: find_ending(model, images)).read(output).probabilities


@pytest.mark.parametrize("name", PROBABILITIES)
def test_what_stays_within_zero_and_one_is_probabilities(name: str) -> None:
    torch.manual_seed(0)
    model, images = Ensemble(PROBABILITIES[name]), torch.rand(2, 1, 5, 5)
    assert find_ending(model, images) == "sigmoid"
    output = model(images).detach()
    labels = torch.ones(output.shape)
    labels[0] = 0
    torch.testing.assert_close(probabilities(model, images, labels)[:, -output.shape[1] :], output)


@pytest.mark.parametrize("name", NONE)
def test_what_may_leave_zero_and_one_is_none(name: str) -> None:
    torch.manual_seed(0)
    assert find_ending(Ensemble(NONE[name]), torch.rand(2, 1, 5, 5)) == ""


@pytest.mark.parametrize(
    "joined",
    [
        lambda a, b, *_: (a.softmax(1) + b.softmax(1)) / 2,
        lambda a, b, c, w: (w.softmax(0)[:, None, None] * torch.stack([a, b, c]).softmax(2)).sum(0),
        lambda a, *_: a.log_softmax(1).exp(),
    ],
)
def test_averages_of_softmaxes_are_a_softmax(joined: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, images = Ensemble(joined), torch.rand(2, 1, 5, 5)
    assert find_ending(model, images) == "softmax"
    torch.testing.assert_close(probabilities(model, images, torch.tensor([0, 1])), model(images).detach())


def test_a_column_of_a_softmax_is_a_yes_or_no() -> None:
    torch.manual_seed(0)
    model, images = Ensemble(lambda a, *_: a.softmax(1)[:, 1]), torch.rand(2, 1, 5, 5)
    found = probabilities(model, images, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found[:, 1], model(images).detach())


def test_values_that_are_never_negative_and_no_probabilities_are_told() -> None:
    images = torch.rand(1, 1, 5, 5)
    for name, never in (("sum", True), ("average", False), ("capped logits", False)):
        joined = {**PROBABILITIES, **NONE}[name]
        mode = EndingMode(images)
        with torch.no_grad(), mode:
            assert mode.never_negative(Ensemble(joined)(images)) is never


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("ending", "function"), [("softmax", Tensor.softmax), ("sigmoid", Tensor.sigmoid)])
def test_probabilities_are_taken_back_to_logits(ending: Ending, function: Any, dtype: torch.dtype) -> None:
    values = LOGITS.to(dtype)
    made = function(values, 1) if ending == "softmax" else function(values)
    back = undone(made, ending)
    again = back.softmax(1) if ending == "softmax" else back.sigmoid()
    torch.testing.assert_close(again.to(dtype), made)
    assert undone(LOGITS, "") is LOGITS


def test_certainty_has_finite_logits() -> None:
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    for ending in ("softmax", "sigmoid"):
        logits = undone(sure, ending)
        assert bool(logits.isfinite().all())
        assert float(F.cross_entropy(logits, torch.tensor([0]))) < 1e-6
    assert sums_to_one(sure)
    assert not sums_to_one(torch.tensor([[0.5, 0.5002]]))
    assert not sums_to_one(torch.tensor([[1.5, -0.5]]))
