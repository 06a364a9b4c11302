"""Top-k patches while training goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.patch_monitor import PatchMonitor, PatchOptions
from lightning_cnnviz.core.network.layers import SelectedLayer, select_layers
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.render.display import Display, class_names, file_names

__all__ = ["TopPatchesMonitor"]


class TopPatchesMonitor(PatchMonitor):
    """Shows which parts of which images drive each feature map most (Zeiler & Fergus 2013, section 4 and Fig. 2).

    For each feature map of each chosen layer, the k images with the strongest activation and the exact receptive field
    of that unit in them: one sheet a layer under `top_patches/<layer>`, dead features, stability and label purity under
    `top_patches/<layer>/...`, and at the end of the run a table of all patches.

    Args:
        layers: `"conv"` for every convolution, or names, globs and keywords (see `select_layers`).
        k: Number of patches of each feature map.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        per_image: Number of patches of one feature map that may come from one image; None for any number.
        rank_by: What ranks the images of a feature map: `"max"`, its largest activation, or `"mean"`, its mean over all
            positions; the patch is that of its largest activation in either case.
        normalization: Mean and std to undo for display; by default found in the data set's transforms.
        class_names: Names of the labels; by default the data set's `classes`.
        options: See `PatchMonitor` and `FeedMonitor`.

    Raises:
        ValueError: At set-up: no such layer (with the closest names), a feature index out of range, k < 1, no
            validation data, or nowhere to show anything.
    """

    view = "top_patches"

    def __init__(
        self,
        layers: str | list[str] = "conv",
        k: int = 9,
        *,
        features: int | list[int] | dict[str, list[int]] | None = 16,
        per_image: int | None = 1,
        rank_by: RankBy = "max",
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        **options: Unpack[PatchOptions],
    ) -> None:
        super().__init__(normalization, **options)
        self.layers, self.k, self.features, self.per_image = layers, k, features, per_image
        self.rank_by: RankBy = rank_by
        self.class_names = class_names
        self._chosen: list[SelectedLayer] = []

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers, and try the numbers."""
        super().prepare(network)
        self._chosen = select_layers(network, self.layers)
        self.running(network)

    def running(self, network: nn.Module, look: Look | None = None) -> PatchMiner:
        """Mine with empty lists."""
        options: dict[str, Any] = {"k": self.k, "features": self.features, "rank_by": self.rank_by}
        return PatchMiner(network, self._chosen, per_image=self.per_image, sources=True, **options)

    def part(self, look: Look, running: Any) -> TopPatches:
        """Return this monitor's part of what was mined: others may have wanted more."""
        own: TopPatches = running.compute().narrowed([layer.name for layer in self._chosen], self.k, self.features)
        return replace(own, indices_known=look.indices_known)

    def display_of(self, result: TopPatches) -> Display:
        """Return how patches are shown, and what is known of the images that they are from."""
        names = tuple(self.class_names) if self.class_names else class_names(self.dataset)
        files = file_names(self.dataset, result.shown_images()) if result.indices_known else {}
        return Display(normalization=self.normalization_of(result), class_names=names, files=files)
