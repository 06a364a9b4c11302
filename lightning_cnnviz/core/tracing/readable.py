"""Which networks cannot be read: their weights lie where no operation of torch shows them."""

from __future__ import annotations

import torch
from torch import nn

from lightning_cnnviz.core.network.layers import quantized_part

__all__ = ["check_countable", "check_readable"]


def check_readable(model: nn.Module) -> None:
    """Refuse networks that are quantized to whole numbers.

    Raises:
        ValueError: With the module, the reason and the way out.
    """
    reason = quantized_part(model)
    if reason:
        raise ValueError(reason)


def check_countable(model: nn.Module) -> None:
    """Refuse networks that are frozen by `torch.jit`, also in part: what they compute can be followed, but not counted.

    Raises:
        ValueError: With the module, the reason and the way out.
    """
    for name, module in model.named_modules():
        # Its own graph no longer has the flag, though whoever holds it may have set one on it.
        if isinstance(module, torch.jit.ScriptModule) and not module._c.hasattr("training"):
            raise ValueError(
                f"{_who(model, name)} is frozen by torch.jit: its parameters have become constants, which cannot be "
                "counted. Give the network that it was made from"
            )


def _who(model: nn.Module, name: str) -> str:
    return f"'{name}' of {type(model).__name__}" if name else "the network"
