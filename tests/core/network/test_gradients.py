"""Gradients that are right in any order of memory."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnviz.core.maximization.rectifiers import Rectifiers
from lightning_cnnviz.core.network.gradients import OrderedGradients, gradient_within

ORDERS = list(permutations(range(4)))


def in_order(values: Tensor, order: tuple[int, ...]) -> Tensor:
    return values.permute(order).contiguous().permute([order.index(dim) for dim in range(4)])


@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (2, 5, 1, 3), (2, 5, 3, 1), (1, 5, 1, 3), (2, 5, 3, 3)])
def test_batch_norm_gives_each_channel_its_own(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm2d(5).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    scale = (norm.running_var + norm.eps).rsqrt()[:, None, None]  # type: ignore[operator]
    gradient = torch.randn(shape)
    for own in ORDERS:
        for other in ORDERS:
            maps = in_order(torch.randn(shape), own).requires_grad_()
            with OrderedGradients():
                found = norm(maps).relu_() + 0 * maps if own == other else norm(maps)
            (result,) = torch.autograd.grad(found, maps, in_order(gradient, other))
            expected = gradient * scale
            if own == other:
                expected = expected * (norm(maps) > 0)
            torch.testing.assert_close(result, expected)


def test_what_runs_again_on_the_way_back_runs_as_it_did() -> None:
    values = torch.tensor([-1.0, 2.0], requires_grad=True)
    with Rectifiers(torch.square):
        result = checkpoint(torch.relu, values, use_reentrant=False).sum()
        found = gradient_within(result, values)
    assert found.tolist() == [-2.0, 4.0]


def test_without_a_way_the_gradient_is_zero() -> None:
    values, others = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert gradient_within(others.sum(), values).tolist() == [0.0, 0.0]
