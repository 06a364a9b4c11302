"""Which pixels speak for a class, while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.images.attribution import (
    AttributionMaps,
    AttributionMethod,
    attribute,
    check_attribution,
    check_method,
)
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.network.task import Task

__all__ = ["AttributionMonitor"]


class AttributionMonitor(ExperimentMonitor):
    """Shows which pixels of a few images speak for their class, by captum: one sheet under `attribution/<method>`.

    The same images at every look.

    Args:
        method: `"gradcam"`, `"integrated_gradients"`, `"saliency"` or `"guided_gradcam"`, see `attribute`.
        images: How many images are drawn; or the images `(N, C, H, W)` in the values that the network is given, or
            `(images, labels)`. Without labels, the class that the network finds is explained.
        layer: Whose feature maps Grad-CAM weighs; by default the last before the classifier.
        options: See `DisplayedSample` and `Monitor`.

    Raises:
        ValueError: At once, at set-up, or before the first step: there is no such method or layer, labels are out of
            range, the network does not take the images, or returns no logits.
    """

    view = "attribution"
    every_rank = True

    def __init__(
        self,
        method: AttributionMethod = "gradcam",
        images: int | Tensor | tuple[Tensor, Tensor] = 5,
        *,
        layer: str | None = None,
        **options: Unpack[SampleOptions],
    ) -> None:
        sample, others = DisplayedSample.with_options(images, options)
        super().__init__(sample, **others)
        self._task: Task | None = None
        check_method(method)
        self.method, self.layer = method, layer

    def prepare(self, network: nn.Module) -> None:
        """Try the layer's name."""
        if self.layer is not None:
            select_layers(network, self.layer)

    def check(self, network: nn.Module) -> None:
        """Try the network."""
        sample = self.drawn.on_device_of(network)
        self._task = check_attribution(
            network,
            sample.images,
            sample.labels,
            self.method,
            layer=self.layer,
            task=self.drawn.task,
            output_fn=self.drawn.output_fn,
        )

    def experiment(self, network: nn.Module, progress: Progress) -> AttributionMaps | None:
        """Attribute."""
        sample = self.drawn.part(network)
        if sample is None:
            return None
        return attribute(
            network,
            sample.images,
            sample.labels,
            self.method,
            layer=self.layer,
            baseline=self.display.fill,
            task=self._task,
            output_fn=self.drawn.output_fn,
            progress=progress,
        )

    def merge(self, parts: list[Any]) -> AttributionMaps:
        """Put the images in order."""
        return AttributionMaps.joined(parts)
