"""Gradients through a network that are right whatever order they come in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

__all__ = ["OrderedGradients", "gradient_within"]


_SPELLINGS = {torch.batch_norm, F.batch_norm}


class OrderedGradients(TorchFunctionMode):
    """Give gradients to BatchNorm in the order of memory of its own result, for what is computed inside the block.

    In eval mode torch mistakes one order for another where an image, a row or a column stands alone, in either
    direction: a gradient of ones through `BatchNorm2d` with distinct scales comes back in the wrong channels.

    Example:
        >>> norm = torch.nn.BatchNorm2d(2, eps=0).eval()
        >>> _ = norm.running_var.copy_(torch.tensor([1.0, 4.0]))
        >>> images = torch.ones(1, 2, 1, 2, requires_grad=True)
        >>> with OrderedGradients():
        ...     result = norm(images)
        >>> gradient = torch.ones(1, 1, 2, 2).permute(0, 2, 1, 3)
        >>> torch.autograd.grad(result, images, gradient)[0].flatten()
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SPELLINGS and result.requires_grad:
            result.register_hook(partial(_in_order, result.stride()))
        return result


def gradient_within(
    value: Tensor, where: Tensor, outer: Tensor | None = None, *, create_graph: bool = False, retain_graph: bool = False
) -> Tensor:
    """Return the gradient of a value, times `outer` where it is no number; zeros where it does not depend on `where`.

    As `torch.autograd.grad`, which leaves the block of a function mode, though: a checkpointed part of a network, which
    runs again on the way back, would run as it is outside, and its gradient would be another function's.
    """
    outer = torch.ones_like(value) if outer is None else outer
    start, end = get_gradient_edge(value), get_gradient_edge(where)
    (gradient,) = torch.autograd.grad(
        [start], [end], [outer], create_graph=create_graph, retain_graph=retain_graph or create_graph, allow_unused=True
    )
    return torch.zeros_like(where) if gradient is None else gradient


def _in_order(stride: tuple[int, ...], gradient: Tensor) -> Tensor:
    if gradient.stride() == stride:
        return gradient
    return torch.empty_strided(gradient.shape, stride, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
