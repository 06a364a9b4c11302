"""Rectifiers replaced while a network runs, however they are spelled: module, function, method or in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Rectifiers", "redirected", "softened"]

_IN_PLACE = {torch.relu_, F.relu_, Tensor.relu_}
_SPELLINGS = {torch.relu, F.relu, Tensor.relu, *_IN_PLACE}


class Rectifiers(TorchFunctionMode):
    """Replace every ReLU that is computed inside the block by another function.

    Example:
        >>> with Rectifiers(lambda values: values.abs()):
        ...     torch.nn.ReLU()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def __init__(self, replacement: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._replacement = replacement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _SPELLINGS:
            return func(*args, **kwargs)
        values = args[0] if args else kwargs["input"]
        if not values.is_floating_point():
            return func(*args, **kwargs)
        in_place = func in _IN_PLACE or kwargs.get("inplace", args[1] if len(args) > 1 else False)
        if not in_place:
            return self._replacement(values)
        # Others may read the tensor that was written to; what the gradient needs is kept in a copy.
        return values.copy_(self._replacement(values.clone()))


def redirected(values: Tensor) -> Tensor:
    """Rectify; where no gradient at all would pass to an image, let through what raises its inputs.

    So a unit that the first noise leaves below zero can be found at all. As in lucid's redirected ReLU. The gradient is
    that of a loss: what is negative pushes up.
    """
    result: Tensor = _Redirected.apply(values)
    return result


def softened(width: float) -> Callable[[Tensor], Tensor]:
    """Return a smooth rectifier, softplus, as wide as a part of the root mean square of what it is given.

    A network of rectifiers is piecewise linear, and its Hessian is zero almost everywhere: the bends between the
    pieces are what it has of curvature. This one is the rectifier averaged over a neighborhood.
    """

    def soften(values: Tensor) -> Tensor:
        scale = width * float(values.detach().float().pow(2).mean().sqrt())
        return F.relu(values) if scale == 0 else F.softplus(values, beta=1 / scale)

    return soften


class _Redirected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,), (gradient,) = ctx.saved_tensors, gradients
        below = values < 0
        passed = gradient.masked_fill(below, 0)
        dead = ~passed.flatten(1).any(1) if passed.ndim > 1 else ~passed.any()
        if not bool(dead.any()):
            return passed
        rescued = gradient.masked_fill(below & (gradient > 0), 0)
        return torch.where(dead.view(-1, *[1] * (passed.ndim - 1)), rescued, passed)
