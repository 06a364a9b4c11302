"""The feature maps that images give, strongest channels first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network import classification
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked
from lightning_cnnviz.core.network.layers import FeatureSpec, LayerSpec, resolve_features, select_for_views
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = ["ActivationMaps", "activation_maps", "find_maps", "interleave_maps"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ActivationMaps:
    """The strongest feature maps of one layer, image by image.

    Attributes:
        layer: The layer's name.
        channels: Number of feature maps that the layer has.
        features: `(N, K)` int64, which feature maps are kept of each image, strongest first.
        peaks: `(N, K)` float32, their largest activations; NaN where a map holds NaN.
        maps: `(N, K, H, W)` float32.
    """

    layer: str
    channels: int
    features: Tensor
    peaks: Tensor
    maps: Tensor

    def __post_init__(self) -> None:
        if self.maps.ndim != 4 or not self.features.shape == self.peaks.shape == self.maps.shape[:2]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (self.features, self.peaks, self.maps))
            raise ValueError(f"features (N, K), peaks (N, K) and maps (N, K, H, W) do not go together: {shapes}")


def find_maps(model: nn.Module, image: Tensor, layers: LayerSpec = "conv") -> list[FeatureMaps]:
    """Return the layers that `layers` means and that have maps of more than one unit, in the order in which they run.

    Args:
        model: The network.
        image: `(1, C, H, W)`, on the network's device.
        layers: As in `select_layers`. The feature map of a convolution that is chosen by kind is read after the
            BatchNorm that directly follows it.

    Raises:
        LayerNotFoundError: See `select_layers` and `trace_feature_maps`.
        ValueError: A layer that was chosen by name, or every layer, has one unit a channel.
    """
    chosen = select_for_views(model, layers)
    literal = {layer.name for layer in chosen if layer.literal}
    traced = trace_feature_maps(model, image, chosen)
    flat = [layer.layer for layer in traced if layer.shape[1:] == (1, 1)]
    refused = next((name for name in flat if name in literal or len(flat) == len(traced)), None)
    if refused is not None:
        raise (WrongArgumentError if refused in literal else ValueError)(
            f"layer '{refused}' gives one value a channel for an image of {image.shape[-2]} x {image.shape[-1]}, "
            "which is no map: choose layers before the pooling, or larger images"
        )
    return [layer for layer in traced if layer.layer not in flat]


def activation_maps(
    model: nn.Module, images: Tensor, layers: LayerSpec = "conv", *, k: int = 15, features: FeatureSpec = None
) -> tuple[ActivationMaps, ...]:
    """Run images through the network, once, and keep the strongest feature maps of each layer.

    A feature map is as strong as its largest activation, as in mining. The network runs in eval mode and is left as it
    was.

    Args:
        model: The network.
        images: `(N, C, H, W)`, in the values that the network is given, on its device.
        layers: See `find_maps`.
        k: How many feature maps are kept of each image and layer; all where there are fewer.
        features: Choose among these alone: the first n, a list of them, either by layer, or None for all.

    Raises:
        LayerNotFoundError: See `select_layers` and `trace_feature_maps`.
        ValueError: k is below 1, a feature is out of range, there is no image, or see `find_maps`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> (maps,) = activation_maps(model, torch.rand(2, 1, 8, 8), "conv", k=3)
        >>> maps.layer, tuple(maps.maps.shape)
        ('0', (2, 3, 6, 6))
    """
    if k < 1:
        raise ValueError(f"k={k}: keep 1 feature map or more")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images are (N, C, H, W), not {tuple(images.shape)}")
    traced = find_maps(model, images[:1], layers)
    choices = {layer.layer: resolve_features(layer.layer, layer.shape[0], features) for layer in traced}
    kept: dict[str, ActivationMaps] = {}

    def keep(name: str, value: Tensor) -> None:
        kept[name] = _strongest(name, value, choices[name], k)

    sites: dict[str, Site] = {layer.layer: layer.site for layer in traced}
    with analysis_mode(model), hooked(sites, keep):
        model(images.detach().clone())
    return tuple(kept[layer.layer] for layer in traced)


def interleave_maps(parts: Sequence[Sequence[ActivationMaps]]) -> tuple[ActivationMaps, ...]:
    """Return the maps of all images, where part r of R has those of the images r, r + R, ....

    Raises:
        ValueError: The parts are not of the same layers.
    """
    if len({tuple(layer.layer for layer in part) for part in parts}) != 1:
        raise ValueError("the parts are of different layers")

    return tuple(
        ActivationMaps(
            layer=same[0].layer,
            channels=same[0].channels,
            features=classification.interleave([part.features for part in same]),
            peaks=classification.interleave([part.peaks for part in same]),
            maps=classification.interleave([part.maps for part in same]),
        )
        for same in zip(*parts, strict=True)
    )


def _strongest(name: str, value: Tensor, chosen: Sequence[int], k: int) -> ActivationMaps:
    value = value.detach().float()
    candidates = torch.tensor(chosen, device=value.device)
    peaks = value[:, candidates].amax((2, 3))
    # NaN would come first.
    order = peaks.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
    features = candidates[order]
    images = torch.arange(len(value), device=value.device)[:, None]
    return ActivationMaps(
        layer=name,
        channels=value.shape[1],
        features=features.cpu(),
        peaks=peaks.gather(1, order).cpu(),
        maps=value[images, features].cpu().clone(),
    )
