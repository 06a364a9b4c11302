"""Gradients of a whole network with other rules at its nonlinearities: what a projection is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RECTIFIERS = {
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "softplus", "hardtanh", "clamp", "clamp_min", "threshold", "rrelu"),
}


class _Passed(torch.autograd.Function):
    """A value that passes the rectified gradient to its input as if it were the identity."""

    @staticmethod
    def forward(_context: Any, _given: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].relu(), None


class _Rectified(torch.autograd.Function):
    """The identity, whose gradient is rectified."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].relu()


class RectifiedGradients(TorchFunctionMode):
    """Inside the block, nonlinearities pass gradients as `"deconvnet"` or `"guided"` has it, or as they are.

    BatchNorm in eval mode is spelled out: torch's own gradients of it are wrong where they come in another order of
    memory than the maps have.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        plain = name.rstrip("_") if not name.startswith("_") else name
        if name == "batch_norm" and _is_frozen(args, kwargs):
            return _scaled(*args, **kwargs)
        if self._method == "gradient" or plain not in _RECTIFIERS or not _is_rectifier(plain, args, kwargs):
            return func(*args, **kwargs)
        given = args[0] if args else kwargs.pop("input")
        in_place = name.endswith("_") or bool(kwargs.get("inplace", False))
        if self._method == "guided":
            value = _Rectified.apply(func(given.clone(), *args[1:], **kwargs))
        else:
            value = _Passed.apply(given, func(given.detach().clone(), *args[1:], **kwargs))
        return given.copy_(value) if in_place else value


def _is_frozen(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether F.batch_norm is called with statistics that are given; torch.batch_norm passes as it is."""
    return (len(args) == 3 and not kwargs.get("training", False)) or (len(args) in (6, 7, 8) and args[5] is False)


def _scaled(maps: Tensor, mean: Tensor, variance: Tensor, *rest: Any, **named: Any) -> Tensor:
    weight, bias, _, _, eps = (*rest, *(None,) * (5 - len(rest)))
    weight, bias, eps = named.get("weight", weight), named.get("bias", bias), named.get("eps", eps) or 1e-5
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *[1] * (maps.ndim - 2))
    return maps * scale.view(shape) + shift.view(shape)


def _is_rectifier(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """A clamp is one where it begins at zero."""
    if name in ("clamp", "clamp_min"):
        return (args[1] if len(args) > 1 else kwargs.get("min")) == 0
    if name == "hardtanh":
        return (args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0
    return True
