"""Rules, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_cnnviz.core.deconvnet.rules import _in_phases


@pytest.mark.parametrize("stride", [(1, 2), (2, 2), (3, 2), (4, 4), (5, 7)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 4), (3, 3), (7, 5), (11, 11)])
def test_phases_are_a_transposed_convolution(kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    values = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64)
    expected = nn.functional.conv_transpose2d(values, weight, stride=stride)
    torch.testing.assert_close(_in_phases(values, weight, stride), expected, rtol=1e-12, atol=1e-12)
