from __future__ import annotations

import torch
from torch import nn

from lightning_cnnviz.core.network.weights import weights_fingerprint


def test_it_changes_with_any_parameter_or_buffer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).half()
    before = weights_fingerprint(net)
    assert torch.equal(before, weights_fingerprint(net))
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.view(-1)[:1] += 1
        after = weights_fingerprint(net)
        assert int((before != after).sum()) == 1
        before = after
    assert before.dtype == torch.float64
    assert len(weights_fingerprint(nn.ReLU())) == 0
