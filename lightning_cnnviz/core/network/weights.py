"""Whether weights have changed between two moments."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["weights_fingerprint"]


def weights_fingerprint(network: nn.Module) -> Tensor:
    """Return one number for each parameter and buffer, `(P,)` float64 on the CPU, which changes when its values do.

    It also tells of values that were written behind autograd's back, as averaging callbacks do it.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> before = weights_fingerprint(network)
        >>> network.weight.data[0, 0] += 1
        >>> torch.equal(before, weights_fingerprint(network))
        False
    """
    weights = chain(network.parameters(), network.buffers())
    sums = [weight.detach().sum(dtype=torch.float64) for weight in weights]
    return torch.stack(sums).cpu() if sums else torch.empty(0, dtype=torch.float64)
