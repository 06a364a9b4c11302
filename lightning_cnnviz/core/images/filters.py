"""A convolution's filters as they are: their kernels, how strong each one is, and the paper's remedy for a few strong.

Zeiler & Fergus (2013), section 3.1: in the first layer of AlexNet "a few of them dominate"; filters whose RMS value
exceeds a fixed radius are scaled back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_cnnviz.core.network.layers import (
    FeatureSpec,
    LayerNotFoundError,
    LayerSpec,
    resolve_features,
    select_layers,
)
from lightning_cnnviz.core.network.weights import scale_filters_, used_weight

__all__ = ["DOMINANT", "NEAR_ZERO", "LayerFilters", "convolutions", "layer_filters", "renormalize_"]

DOMINANT = 10.0
"""A filter dominates if its RMS is above so many times the median of its layer."""

NEAR_ZERO = 0.01
"""A filter is near zero if its RMS is at most so much of the median of its layer."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerFilters:
    """The filters of one convolution.

    Attributes:
        layer: The layer's name.
        features: Which filters are kept, ascending: filter n makes feature map n.
        kernels: `(len(features), C, H, W)` float32; C is the number of input channels that one filter sees.
        rms: `(F,)` float32, root mean square of the weights of every filter of the layer, without bias.
    """

    layer: str
    features: tuple[int, ...]
    kernels: Tensor
    rms: Tensor

    def __post_init__(self) -> None:
        if self.kernels.ndim != 4 or len(self.kernels) != len(self.features):
            raise ValueError(f"{len(self.features)} filters need kernels (n, C, H, W), not {tuple(self.kernels.shape)}")

    @property
    def median_rms(self) -> float:
        """Median RMS; of an even number of filters the mean of the two in the middle."""
        return float(self.rms.quantile(0.5))

    @property
    def dominant(self) -> Tensor:
        """Which filters dominate, `(F,)` bool; see `DOMINANT`."""
        return self.rms > DOMINANT * self.median_rms

    @property
    def near_zero(self) -> Tensor:
        """Which filters are near zero, `(F,)` bool; see `NEAR_ZERO`."""
        return self.rms <= NEAR_ZERO * self.median_rms


def convolutions(model: nn.Module, layers: LayerSpec | None = None) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions that `layers` means; the network's first one for None.

    Raises:
        LayerNotFoundError: A part of `layers` matches nothing, or nothing but other kinds of layers.
    """
    chosen = select_layers(model, "conv" if layers is None else layers)
    chosen_convolutions = [(layer.name, layer.module) for layer in chosen if isinstance(layer.module, nn.Conv2d)]
    if not chosen_convolutions:
        kinds = ", ".join(sorted({type(layer.module).__name__ for layer in chosen}))
        raise LayerNotFoundError(f"layers={layers!r}: filters are those of a Conv2d, and these are {kinds}")
    return chosen_convolutions[:1] if layers is None else chosen_convolutions


def layer_filters(
    model: nn.Module, layers: LayerSpec | None = None, features: FeatureSpec = None
) -> tuple[LayerFilters, ...]:
    """Return the filters of convolutions as their next pass in eval mode uses them, as copies on the CPU.

    Args:
        model: The network.
        layers: Its first convolution by default; or as in `select_layers`.
        features: Which filters to keep of each layer: the first n, a list of them, either by layer, or None for all.

    Raises:
        LayerNotFoundError: See `convolutions`.
        ValueError: A filter is asked for that is not there, or a layer's weights are not known; see `used_weight`.

    Example:
        >>> (first,) = layer_filters(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Conv2d(8, 4, 3)))
        >>> first.layer, tuple(first.kernels.shape), tuple(first.rms.shape)
        ('0', (8, 3, 5, 5), (8,))
    """
    results = []
    for name, module in convolutions(model, layers):
        weight = used_weight(module).float().cpu()
        chosen = resolve_features(name, len(weight), features)
        results.append(LayerFilters(layer=name, features=chosen, kernels=weight[list(chosen)], rms=_rms(weight)))
    return tuple(results)


@torch.no_grad()
def renormalize_(modules: nn.Module | Sequence[nn.Module], radius: float) -> int:
    """Scale back, in place, each filter whose RMS exceeds `radius`, and return how many there were.

    The weights are those that a layer uses: where weight_norm, pruning or a parametrization computes them, what they
    are computed from is changed.

    Args:
        modules: Convolutions; their biases stay as they are.
        radius: The largest RMS that a filter keeps.

    Raises:
        TypeError: A module is no convolution or linear layer, or has no weights yet. Nothing has changed then.
        ValueError: The radius is not positive, or what computes a layer's weights undoes it (spectral_norm); such a
            layer has not changed.

    Example:
        >>> conv = nn.Conv2d(3, 8, 5)
        >>> _ = nn.init.constant_(conv.weight, 0.5)
        >>> renormalize_([conv], 0.1), round(conv.weight.max().item(), 6)
        (8, 0.1)
    """
    if not radius > 0:
        raise ValueError(f"radius={radius}: give a positive number; the paper's is 0.1")
    modules = [modules] if isinstance(modules, nn.Module) else modules
    for module in modules:
        has = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        if not has or is_lazy(module.weight):  # type: ignore[arg-type]
            what = "has no weights before its first pass" if has else "has no filters"
            raise TypeError(
                f"modules: {type(module).__name__} {what}; give convolutions, as "
                "[module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]"
            )
    scaled = 0
    for module in modules:
        rms = _rms(used_weight(module))
        over = rms > radius
        if bool(over.any()):
            # Where a filter is within the radius, the factor is exactly one.
            scale_filters_(module, torch.where(over, radius / rms, torch.ones_like(rms)))
            scaled += int(over.sum())
    return scaled


def _rms(weight: Tensor) -> Tensor:
    return weight.detach().float().flatten(1).square().mean(1).sqrt()
