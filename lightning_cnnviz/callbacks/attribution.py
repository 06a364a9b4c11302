"""Which pixels speak for a class, while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import Progress, SampleOptions
from lightning_cnnviz.callbacks._base.shown import ShownSampleMonitor
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.attribution import (
    AttributionMaps,
    AttributionMethod,
    attribute,
    check_attribution,
    check_method,
)
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.render.attribution import attribution_report
from lightning_cnnviz.report import Report

__all__ = ["AttributionMonitor"]


class AttributionMonitor(ShownSampleMonitor):
    """Shows which pixels of a few images speak for their class, by captum: one sheet under `attribution/<method>`.

    The same images at every look.

    Args:
        method: `"gradcam"`, `"integrated_gradients"`, `"saliency"` or `"guided_gradcam"`, see `attribute`.
        images: How many images are drawn; or the images `(N, C, H, W)` in the values that the network is given, or
            `(images, labels)`. Without labels, the class that the network finds is explained.
        layer: Whose feature maps Grad-CAM weighs; by default the last before the classifier.
        normalization: Mean and std of the network's input; by default found in the data set's transforms.
        class_names: Names of the classes; by default the data set's `classes`.
        options: See `SampleMonitor`.

    Raises:
        ValueError: At once, at set-up, or before the first step: there is no such method or layer, labels are out of
            range, the network does not take the images, or returns no logits.
    """

    def __init__(
        self,
        method: AttributionMethod = "gradcam",
        images: int | Tensor | tuple[Tensor, Tensor] = 5,
        *,
        layer: str | None = None,
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        **options: Unpack[SampleOptions],
    ) -> None:
        super().__init__(images, normalization=normalization, class_names=class_names, **options)
        check_method(method)
        self.method, self.layer = method, layer

    def prepare(self, network: nn.Module) -> None:
        """Try the layer's name."""
        if self.layer is not None:
            select_layers(network, self.layer)

    def check_sample(self, network: nn.Module, sample: Sample) -> None:
        """Try the network."""
        super().check_sample(network, sample)
        check_attribution(network, sample.images, sample.labels, self.method, layer=self.layer)

    def experiment_on(self, network: nn.Module, sample: Sample, progress: Progress) -> AttributionMaps:
        """Attribute."""
        return attribute(
            network,
            sample.images,
            sample.labels,
            self.method,
            layer=self.layer,
            baseline=self.shown.fill,
            progress=progress,
        )

    def merge(self, results: list[Any]) -> AttributionMaps:
        """Put the images in order."""
        return AttributionMaps.joined(results)

    def render(self, result: AttributionMaps) -> Report:
        """Draw the attributions over the images."""
        shown = self.shown
        return attribution_report(
            result,
            shown.pixels,
            shown.indices,
            class_names=self.class_names,
            notes=(shown.normalization.sentence(),),
        )
