"""The feature layers of a trained network, for a detector or a segmentation head to build on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_cnnviz.core.network.layers import LayerSpec, select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps
from lightning_cnnviz.finetune.heads import sample_images

__all__ = ["BackboneFeatures"]


class _Reached(BaseException):
    """All feature maps are there: what follows need not run. No `except Exception` of a network stops it."""


class BackboneFeatures(nn.Module):
    """Takes images and returns feature maps by name, `{name: (N, C, H, W)}`; trains along with what is built on it.

    It shares its weights with the network that it is made of. The layers behind the last one that is asked for do not
    run, so that images may be of any size that the others take.

    Args:
        network: The network.
        layers: As `select_layers` takes them; or the name under which each is returned, `{"features.12": "out"}`.
        size: `(C, H, W)` of an image with which the layers are found.

    Attributes:
        channels: The number of channels of each name.
        out_channels: The same, as torchvision's detectors ask for it; only where all names have equally many.
    """

    def __init__(self, network: nn.Module, layers: LayerSpec | Mapping[str, str], size: tuple[int, int, int]) -> None:
        super().__init__()
        chosen = select_layers(network, list(layers) if isinstance(layers, Mapping) else layers)
        traced = trace_feature_maps(network, sample_images(network, size), chosen)
        names = layers if isinstance(layers, Mapping) else {}
        self.network = network
        self.names = {maps.layer: names.get(maps.layer, maps.layer) for maps in traced}
        self.channels = {self.names[maps.layer]: maps.shape[0] for maps in traced}
        if len(set(self.channels.values())) == 1:
            self.out_channels = next(iter(self.channels.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature maps, in the order in which they are computed."""
        maps: dict[str, Tensor] = {}

        def after(layer: str) -> Any:
            def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                # A ReLU that works in place would overwrite it.
                maps[self.names[layer]] = output.clone()
                if len(maps) == len(self.names):
                    raise _Reached

            return keep

        handles = [self.network.get_submodule(layer).register_forward_hook(after(layer)) for layer in self.names]
        try:
            self.network(images)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return maps
