"""Feature maps of a few images while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.images.activation_maps import ActivationMaps, activation_maps, find_maps, interleave_maps
from lightning_cnnviz.core.network.layers import resolve_features, select_layers

__all__ = ["ActivationMapMonitor"]


class ActivationMapMonitor(ExperimentMonitor):
    """Shows the feature maps of a few images, the same ones at every look, strongest channels first.

    One sheet a layer under `activation_maps/<layer>`, in it a block an image: the image, and the feature maps with the
    largest activations on one common scale.

    Args:
        layers: `"conv"` for every convolution, or names, globs and keywords (see `select_layers`). The
            feature map of a convolution that is chosen by kind is read after the BatchNorm that directly follows it.
        k: Number of feature maps that are shown of each image and layer.
        features: Choose among these alone: the first n of each layer, a list of them, a list by layer, None for all.
        images: How many images are drawn; or the images themselves.
        options: See `DisplayedSample` and `Monitor`.

    Raises:
        ValueError: At set-up: no such layer (with the closest names), or k < 1; before training: a feature out of
            range, a layer without maps, or no images.
    """

    view = "activation_maps"
    of_convolutions = True
    every_rank = True

    def __init__(
        self,
        layers: str | list[str] = "conv",
        k: int = 15,
        *,
        features: int | list[int] | dict[str, list[int]] | None = None,
        images: int | Tensor | tuple[Tensor, Tensor] = 4,
        **options: Unpack[SampleOptions],
    ) -> None:
        sample, others = DisplayedSample.with_options(images, options)
        super().__init__(sample, **others)
        if k < 1:
            raise ValueError(f"k={k}: show 1 feature map or more")
        self.layers, self.k, self.features = layers, k, features

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        select_layers(network, self.layers)

    def check(self, network: nn.Module) -> None:
        """Find the maps."""
        sample = self.drawn.on_device_of(network)
        for layer in find_maps(network, sample.images[:1], self.layers):
            resolve_features(layer.layer, layer.shape[0], self.features)

    def experiment(self, network: nn.Module, progress: Progress) -> tuple[ActivationMaps, ...] | None:
        """Run the images through the network."""
        sample = self.drawn.part(network)
        if sample is None:
            return None
        return activation_maps(network, sample.images, self.layers, k=self.k, features=self.features)

    def merge(self, parts: list[Any]) -> tuple[ActivationMaps, ...]:
        """Put the images of the ranks in order."""
        return interleave_maps(parts)
