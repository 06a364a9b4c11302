"""Monitors that show the images of a sample: how, and what is put where one of them is covered or ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.display import chosen_normalization
from lightning_cnnviz.callbacks._base.experiment import SampleMonitor, SampleOptions
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.network.classification import fill_values
from lightning_cnnviz.render.normalization import Normalization, find_normalization

__all__ = ["ShownSample", "ShownSampleMonitor"]


@dataclass(frozen=True, eq=False)
class ShownSample:
    """A sample of images, as people see it.

    Attributes:
        normalization: Undone for display.
        fill: `(C,)`, gray in the network's values: the mean that was subtracted where a normalization is known, else
            the sample's own mean.
        pixels: Of each image, `(3, H, W)` uint8.
        indices: Of each image.
    """

    normalization: Normalization
    fill: Tensor
    pixels: tuple[Tensor, ...]
    indices: tuple[int, ...]

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The normalization as core takes it."""
        return self.normalization.mean, self.normalization.std

    @property
    def fill_pixel(self) -> Tensor:
        """The fill as a color `(3,)` uint8."""
        return self.normalization.to_pixels(self.fill.view(-1, 1, 1).float())[:, 0, 0]


def _shown_sample(given: tuple[list[float], list[float]] | None, dataset: Any, sample: Sample) -> ShownSample:
    """Settle how a sample is shown, by a given normalization or by that of its data set."""
    normalization = chosen_normalization(given, dataset, sample.images)
    known = given is not None or find_normalization(dataset) is not None
    # Zero is the mean that was subtracted; of a normalization that subtracts none, it would be black.
    subtracts = known and any(value != 0 for value in normalization.mean)
    fill = torch.zeros(sample.images.shape[1]) if subtracts else fill_values(sample.images.float(), None)
    pixels = tuple(normalization.to_pixels(image) for image in sample.images)
    return ShownSample(normalization, fill, pixels, tuple(sample.indices.tolist()))


class ShownSampleMonitor(SampleMonitor):
    """Makes its experiment on a few images, and shows the images with what it found.

    Args:
        images: See `SampleMonitor`.
        normalization: Mean and std of the network's input; by default found in the data set's transforms.
        class_names: Names of the classes; by default the data set's `classes`.
        options: See `SampleMonitor`.
    """

    def __init__(
        self,
        images: int | Tensor | tuple[Tensor, Tensor],
        *,
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        **options: Unpack[SampleOptions],
    ) -> None:
        super().__init__(images, **options)
        self.normalization, self._names = normalization, class_names
        self._shown: ShownSample | None = None

    @property
    def class_names(self) -> Any:
        """Names of the classes: those that were given, else those of the data set, where it tells."""
        return self._names or super().class_names

    @property
    def shown(self) -> ShownSample:
        """How the images are shown, the same way at every look; there once they are drawn."""
        assert self._shown is not None, "the sample comes first"
        return self._shown

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Forget the images of an earlier run."""
        super().check_trainer(trainer, stage)
        self._shown = None

    def check_sample(self, network: nn.Module, sample: Sample) -> None:
        """Settle how the images are shown; a concrete monitor then tries its experiment."""
        self._shown = _shown_sample(self.normalization, self.dataset, self.sample)
