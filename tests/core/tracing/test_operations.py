"""What is logged of a pass."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.tracing.operations import log_operations


class Twice(nn.Module):
    """One convolution, used twice, with a function in between and a sum behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["last"] = x
        first = self.conv(x)
        return first + F.interpolate(self.conv(F.max_pool2d(first, 2)), scale_factor=2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("values", [False, True])
def test_operations_come_in_order_with_owner_and_trail(values: bool) -> None:
    model = nn.Sequential(Twice())
    log = log_operations(model, torch.rand(1, 2, 8, 8), values=values)
    assert log.error is None
    told = [(operation.owner, operation.kind, operation.macs, operation.jump) for operation in log.operations]
    one, two = (Fraction(1), Fraction(1)), (Fraction(2), Fraction(2))
    assert told == [
        ("0.conv", "conv", 2 * 64 * 18, one),
        ("0", "pool", 0, two),
        ("0.conv", "conv", 2 * 16 * 18, two),
        ("0", "resize", 0, one),
        ("0", "join", 0, one),
    ]
    assert [operation.after for operation in log.operations] == [None, 0, 1, 2, 0]
    assert log.operations[0].parameters == ("0.conv.bias", "0.conv.weight")
    assert model[0].cache == {}


def test_a_pass_that_fails_is_logged_as_far_as_it_came() -> None:
    log = log_operations(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 3)), torch.rand(1, 1, 8, 8), values=True)
    assert [operation.owner for operation in log.operations] == ["0"]
    assert log.where == "1"
    assert "shapes cannot be multiplied" in str(log.error)
