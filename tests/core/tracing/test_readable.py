"""Networks whose weights no operation of torch shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_cnnviz.core.network.layers import SelectedLayer
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps
from lightning_cnnviz.core.tracing.readable import check_countable, check_readable


@pytest.mark.filterwarnings("ignore")
def test_quantized_networks_are_refused_and_those_with_frozen_parts_cannot_be_counted() -> None:
    quantized = nn.Sequential(nn.Conv2d(1, 2, 3), torch.ao.nn.quantized.Conv2d(2, 4, 3))
    with pytest.raises(ValueError, match=r"'1' of Sequential \(Conv2d\) is quantized: its weights are packed"):
        check_readable(quantized)
    first = SelectedLayer(name="0", module=quantized[0], literal=True)
    with pytest.raises(ValueError, match="Give the network in floating point"):
        trace_feature_maps(quantized, torch.rand(1, 1, 8, 8), [first])
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3)).eval()))
    with pytest.raises(ValueError, match=r"the network is frozen by torch\.jit"):
        check_countable(frozen)
    check_readable(frozen)
    for check in (check_countable, check_readable):
        check(nn.Sequential(nn.Conv2d(1, 2, 3)))
