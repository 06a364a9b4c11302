"""Which networks cannot be read at all: their weights lie where no operation of torch shows them."""

from __future__ import annotations

from torch import nn

__all__ = ["check_readable"]


def check_readable(model: nn.Module) -> None:
    """Refuse networks that are frozen by `torch.jit` or quantized to whole numbers.

    Raises:
        ValueError: With the module, the reason and the way out.
    """
    for name, module in model.named_modules():
        who = f"'{name}' of {type(model).__name__}" if name else "the network"
        if not hasattr(module, "training"):
            raise ValueError(
                f"{who} is frozen by torch.jit: its parameters have become constants, which cannot be counted. Give "
                "the network that it was made from"
            )
        if ".quantized" in type(module).__module__ and hasattr(module, "_packed_params"):
            raise ValueError(
                f"{who} ({type(module).__name__}) is quantized: its weights are packed, and its operations, on whole "
                "numbers, are none that can be followed. Give the network in floating point that it was made from"
            )
