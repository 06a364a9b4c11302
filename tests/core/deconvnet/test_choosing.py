"""Which rule an operation follows."""

from __future__ import annotations

import pytest
import torch

from lightning_cnnviz.core.deconvnet.choosing import RunningCall, choose_rule
from lightning_cnnviz.core.deconvnet.projection import ProjectionError
from lightning_cnnviz.core.tracing.calls import read_operator

WHOLE = torch.randint(0, 3, (4, 2, 12, 14), generator=torch.Generator().manual_seed(2)).float()


def test_a_convolution_and_its_relu_in_one_operation_are_refused() -> None:
    call = RunningCall(
        read_operator(torch.ops.aten.cudnn_convolution_relu.default),
        (WHOLE, torch.rand(3, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 1),
        *({}, [WHOLE], "deconvnet", len(WHOLE)),
    )
    with pytest.raises(ProjectionError, match="a convolution and a ReLU in one"):
        choose_rule(call)
