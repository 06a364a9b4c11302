"""Convolutions whose weights are computed in each of the ways that there are, and steps of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

SPECTRAL = ("spectral_norm", "spectral_norm hook")


def conv(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, 3)


class Doubled(nn.Module):
    """A parametrization that nothing can be assigned to."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Doubled())


def hook_weight_norm(module: nn.Module, dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, dim=dim)  # type: ignore[arg-type]


def equalized(module: Any) -> nn.Module:
    """The equalized learning rate of StyleGAN's many copies, by a hook of their own."""
    weight = module.weight
    del module._parameters["weight"]
    module.weight_orig = nn.Parameter(weight.detach() * 10)
    module.weight = weight.detach()

    def scale(layer: Any, _inputs: Any) -> None:
        layer.weight = layer.weight_orig / 10

    module.register_forward_pre_hook(scale)
    return module


class Standardized(nn.Conv2d):
    """Weight standardization, as timm's networks have it."""

    def forward(self, images: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        spread = flat.std(1, keepdim=True)
        weight = ((flat - flat.mean(1, keepdim=True)) / spread).view_as(self.weight)
        return nn.functional.conv2d(images, weight, self.bias)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda module: module,
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of dim 1": lambda module: parametrizations.weight_norm(module, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "doubled": doubled,
    "weight_norm hook": hook_weight_norm,
    "weight_norm hook of all": lambda module: hook_weight_norm(module, None),
    "spectral_norm hook": nn.utils.spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "equalized": equalized,
}


def trained(net: nn.Module, images: Tensor, steps: int = 3) -> nn.Module:
    """After steps of training, the last one's weights not yet seen by any pass, and after one pass more."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(steps):
        net.train()(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net
