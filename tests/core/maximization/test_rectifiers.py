"""Every spelling of a ReLU is replaced, and what replaces it has the gradient that it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.rectifiers import Rectifiers, redirected, softened

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "functional": F.relu,
    "functional in place": lambda values: F.relu(values, inplace=True),
    "functional in place by position": lambda values: F.relu(values, True),
    "functional_": F.relu_,
    "torch": torch.relu,
    "torch_": torch.relu_,
    "method": lambda values: values.relu(),
    "method_": lambda values: values.relu_(),
    "keyword": lambda values: F.relu(input=values),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_seen(spelling: str) -> None:
    values = torch.tensor([-2.0, 0.5, 3.0])
    given = values.clone()
    with Rectifiers(lambda found: found * 10):
        result = SPELLINGS[spelling](given)
    assert torch.equal(result, values * 10)
    assert torch.equal(given, values * 10 if "_" in spelling or "in place" in spelling else values)
    assert torch.equal(SPELLINGS[spelling](values.clone()), values.clamp(min=0))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_gradients_pass_through_every_spelling(spelling: str) -> None:
    leaf = torch.tensor([[-2.0, 0.5, 3.0]], requires_grad=True)
    with Rectifiers(softened(1.0)):
        result = SPELLINGS[spelling](leaf * 1)
    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    scale = leaf.detach().square().mean().sqrt()
    assert torch.allclose(gradient, torch.sigmoid(leaf / scale))


def test_redirection_helps_only_where_nothing_passes() -> None:
    values = torch.tensor([[-1.0, -2.0], [-1.0, 2.0], [-3.0, 4.0]], requires_grad=True)
    upstream = torch.tensor([[-5.0, 7.0], [-5.0, 1.0], [-5.0, 0.0]])
    result = redirected(values)
    assert torch.equal(result, values.detach().clamp(min=0))
    (gradient,) = torch.autograd.grad(result, values, upstream)
    # In the first image nothing passes: what raises its value does (a negative gradient of a loss), the other not. In
    # the third the unit above zero has no gradient to pass.
    assert gradient.tolist() == [[-5.0, 0.0], [0.0, 1.0], [-5.0, 0.0]]


def test_softening_goes_to_the_rectifier_and_has_curvature() -> None:
    values = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert torch.allclose(softened(1e-4)(values), values.clamp(min=0), atol=1e-4)
    assert torch.equal(softened(0.5)(torch.zeros(3)), torch.zeros(3))
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(softened(0.3)(leaf).sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    assert bool((curvature > 0).all())
    assert int(curvature.argmax()) == 20
