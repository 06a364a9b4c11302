"""Which networks cannot be read: their weights lie where no operation of torch shows them."""

from __future__ import annotations

from torch import nn

__all__ = ["check_countable", "check_readable"]


def check_readable(model: nn.Module) -> None:
    """Refuse networks that are quantized to whole numbers.

    Raises:
        ValueError: With the module, the reason and the way out.
    """
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__ and hasattr(module, "_packed_params"):
            raise ValueError(
                f"{_who(model, name)} ({type(module).__name__}) is quantized: its weights are packed, and its "
                "operations, on whole numbers, are none that can be followed. Give the network in floating point that "
                "it was made from"
            )


def check_countable(model: nn.Module) -> None:
    """Refuse networks that are frozen by `torch.jit`, also in part: what they compute can be followed, but not counted.

    Raises:
        ValueError: With the module, the reason and the way out.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "training"):
            raise ValueError(
                f"{_who(model, name)} is frozen by torch.jit: its parameters have become constants, which cannot be "
                "counted. Give the network that it was made from"
            )


def _who(model: nn.Module, name: str) -> str:
    return f"'{name}' of {type(model).__name__}" if name else "the network"
