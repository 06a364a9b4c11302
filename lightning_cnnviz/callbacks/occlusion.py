"""What the network looks at, while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.occlusion import OcclusionMaps, check_occlusion, occlude
from lightning_cnnviz.core.network.heads import ByHead, NetworkHead, join_by_head
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.network.task import Task, TaskKind

__all__ = ["OcclusionMonitor"]


class OcclusionMonitor(ExperimentMonitor):
    """Slides a gray square over images and shows what the network loses (Zeiler & Fergus 2013, section 4.2 and Fig. 7).

    For each image one picture under `occlusion/image <index>`: by the occluder's position the activation of a deep
    layer's strongest feature map, p(true class) and the most probable class, and that feature map projected to pixels;
    how much hangs on one place under `occlusion/...`. The same images at every look. A look costs a forward pass
    for each position: about 144 an image by default.

    Args:
        images: How many images are drawn; or the images `(N, C, H, W)` in the values that the network is given, or
            `(images, labels)`. Without labels, the class that the network finds is followed.
        size: Of the occluder in pixels, or its height and width; by default 50 of 224.
        stride: Its step in pixels, or down and right, up to its size; by default 16 of 224.
        layer: Whose strongest feature map is followed; by default the last before the classifier.
        options: See `DisplayedSample` and `Monitor`.

    Raises:
        ValueError: At set-up, or before the first step: the occluder is larger than the images, or the stride than the
            occluder; there is no such layer, labels are out of range, the network does not take the images, or returns
            no logits.
    """

    view = "occlusion"
    every_rank = True

    def __init__(
        self,
        images: int | Tensor | tuple[Tensor, Tensor] = 5,
        size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        *,
        layer: str | None = None,
        **options: Unpack[SampleOptions],
    ) -> None:
        sample, others = DisplayedSample.with_options(images, options)
        super().__init__(sample, **others)
        self.size, self.stride, self.layer = size, stride, layer

    def prepare(self, network: nn.Module) -> None:
        """Try the layer's name."""
        if self.layer is not None:
            select_layers(network, self.layer)

    def check(self, network: nn.Module) -> None:
        """Try the network, and the occluder."""
        sample = self.drawn.on_device_of(network)
        what: dict[str, Any] = {"size": self.size, "stride": self.stride}

        def check(head: NetworkHead, task: TaskKind | None) -> Task:
            options = {**what, "task": task, "output_fn": head.output_fn}
            return check_occlusion(network, sample.images, head.labels, self.layer, **options)

        self.drawn.settle_heads(network, check)

    def experiment(self, network: nn.Module, progress: Progress) -> OcclusionMaps | ByHead | None:
        """Occlude."""
        what: dict[str, Any] = {"size": self.size, "stride": self.stride, "fill": self.display.fill}

        def make(sample: Sample, head: NetworkHead, task: Task) -> OcclusionMaps:
            options = {**what, "task": task, "output_fn": head.output_fn, "follow": head.follow, "progress": progress}
            return occlude(network, sample.images, head.labels, self.layer, **options)

        return self.drawn.for_each_head(network, make)  # type: ignore[no-any-return]

    def merge(self, parts: list[Any]) -> Any:
        """Put the images in order."""
        return join_by_head(parts, OcclusionMaps.joined)
