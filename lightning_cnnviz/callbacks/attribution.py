"""Which pixels speak for a class, while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.attribution import (
    AttributionMaps,
    AttributionMethod,
    attribute,
    check_attribution,
    check_method,
)
from lightning_cnnviz.core.network.heads import ByHead, NetworkHead, join_by_head
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.network.task import Task, TaskKind

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
        check_method(method)
        self.method, self.layer = method, layer

    def prepare(self, network: nn.Module) -> None:
        """Try the layer's name."""
        if self.layer is not None:
            select_layers(network, self.layer)

    def check(self, network: nn.Module) -> None:
        """Try the network."""
        sample = self.drawn.on_device_of(network)

        def check(head: NetworkHead, task: TaskKind | None) -> Task:
            options: dict[str, Any] = {"layer": self.layer, "task": task, "output_fn": head.output_fn}
            return check_attribution(network, sample.images, head.labels, self.method, **options)

        self.drawn.settle_heads(network, check)

    def experiment(self, network: nn.Module, progress: Progress) -> AttributionMaps | ByHead | None:
        """Attribute."""
        what: dict[str, Any] = {"layer": self.layer, "baseline": self.display.fill, "progress": progress}

        def make(sample: Sample, head: NetworkHead, task: Task) -> AttributionMaps:
            options = {**what, "task": task, "output_fn": head.output_fn, "follow": head.follow}
            return attribute(network, sample.images, head.labels, self.method, **options)

        return self.drawn.for_each_head(network, make)  # type: ignore[no-any-return]

    def merge(self, parts: list[Any]) -> Any:
        """Put the images in order."""
        return join_by_head(parts, AttributionMaps.joined)
