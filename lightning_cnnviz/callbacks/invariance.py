"""What the network does not care about, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.invariance import (
    DEFAULT_TRANSFORMS,
    InvarianceCurves,
    check_invariance,
    measure_invariance,
)
from lightning_cnnviz.core.images.transforms import Transform, resolve_transforms
from lightning_cnnviz.core.network.heads import ByHead, NetworkHead, join_by_head
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.network.task import Task, TaskKind
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.invariance import transformed_examples

__all__ = ["InvarianceMonitor"]


class InvarianceMonitor(ExperimentMonitor):
    """Shows what moving, enlarging and turning images does to features and class (Zeiler & Fergus 2013, Fig. 5).

    For each transform one picture under `invariance/<transform>`: examples along the sweep, the distance of features at
    the first and at a deep layer, p(true class); areas and half widths to be followed under `invariance/...`. The
    same images at every look. A look costs a forward pass of each transformed copy: 78 an image by default.

    Args:
        layers: Names, globs and keywords (see `select_layers`); by default the first convolution and what
            the classifier is given.
        transforms: Names among `core.images.transforms.TRANSFORMS`, or `Transform(name, function, values)` of your own.
        images: How many images are drawn; or the images `(N, C, H, W)` in the values that the network is given, or
            `(images, labels)`. Without labels, the class that the network finds is followed.
        options: See `DisplayedSample` and `Monitor`.

    Raises:
        ValueError: At set-up, or before the first step: there is no such layer or transform, labels are out of range,
            the network does not take the images, or returns no logits.
    """

    view = "invariance"
    every_rank = True

    def __init__(
        self,
        layers: str | list[str] | None = None,
        transforms: Sequence[str | Transform] = DEFAULT_TRANSFORMS,
        images: int | Tensor | tuple[Tensor, Tensor] = 5,
        **options: Unpack[SampleOptions],
    ) -> None:
        sample, others = DisplayedSample.with_options(images, options)
        super().__init__(sample, **others)
        self.layers, self.transforms = layers, transforms
        self._examples: dict[str, tuple[tuple[Tensor, ...], ...]] = {}

    def prepare(self, network: nn.Module) -> None:
        """Try the names of layers and transforms."""
        if self.layers is not None:
            select_layers(network, self.layers)
        resolve_transforms(self.transforms, torch.zeros(1, 1, 8, 8), torch.zeros(1))
        self._examples = {}

    def check(self, network: nn.Module) -> None:
        """Try the network, and the transforms."""
        sample = self.drawn.on_device_of(network)
        what: dict[str, Any] = {"normalization": self.display.mean_and_std}

        def check(head: NetworkHead, task: TaskKind | None) -> Task:
            options = {**what, "task": task, "output_fn": head.output_fn}
            return check_invariance(network, sample.images, head.labels, self.layers, self.transforms, **options)

        self.drawn.settle_heads(network, check)
        self._examples = {}

    def experiment(self, network: nn.Module, progress: Progress) -> InvarianceCurves | ByHead | None:
        """Measure."""
        what: dict[str, Any] = {"normalization": self.display.mean_and_std, "fill": self.display.fill}

        def make(sample: Sample, head: NetworkHead, task: Task) -> InvarianceCurves:
            options = {**what, "task": task, "output_fn": head.output_fn, "follow": head.follow, "progress": progress}
            return measure_invariance(network, sample.images, head.labels, self.layers, self.transforms, **options)

        return self.drawn.for_each_head(network, make)  # type: ignore[no-any-return]

    def merge(self, parts: list[Any]) -> Any:
        """Put the images in order."""
        return join_by_head(parts, InvarianceCurves.joined)

    def display_of(self, result: Any) -> Display:
        """Return how the images are shown, with examples along the sweeps."""
        if not self._examples:
            self._examples = transformed_examples(self.transforms, self.sample.images.float(), self.display)
        return replace(self.display, examples=self._examples)
