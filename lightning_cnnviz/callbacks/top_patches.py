"""Top-k patches while training goes on."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.display import chosen_normalization, class_names
from lightning_cnnviz.callbacks._base.mining import MiningMonitor
from lightning_cnnviz.callbacks._base.passes import PassOptions
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.core.top_patches.search import diagnose, without_patches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.top_patches import top_patches_report, top_patches_table
from lightning_cnnviz.report import Report

__all__ = ["TopPatchesMonitor"]


class TopPatchesMonitor(MiningMonitor):
    """Shows which parts of which images drive each feature map most (Zeiler & Fergus 2013, section 4 and Fig. 2).

    For each feature map of each chosen layer, the k images with the strongest activation and the exact receptive field
    of that unit in them: one sheet a layer under `top_patches/<layer>`, dead features, stability and label purity under
    `top_patches_stats/<layer>/...`, and at the end of the run a table of all patches.

    Args:
        layers: `"conv"` for every convolution, or names, globs and keywords (see `select_layers`).
        k: Number of patches of each feature map.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        per_image: Number of patches of one feature map that may come from one image; None for any number.
        normalization: Mean and std to undo for display; by default found in the data set's transforms.
        class_names: Names of the labels; by default the data set's `classes`.
        options: See `PassMonitor`.

    Raises:
        ValueError: At set-up: no such layer (with the closest names), a feature index out of range, k < 1, no
            validation data, or nowhere to show anything.
    """

    def __init__(
        self,
        layers: str | list[str] = "conv",
        k: int = 9,
        *,
        features: int | list[int] | dict[str, list[int]] | None = 16,
        per_image: int | None = 1,
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        **options: Unpack[PassOptions],
    ) -> None:
        super().__init__(k, features, per_image, **options)
        self.layers = layers
        self.normalization, self.class_names = normalization, class_names
        self._before: TopPatches | None = None
        self._shown_as: Normalization | None = None
        self._report: Report | None = None

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        self.mine(network, select_layers(network, self.layers))
        self._before = self._shown_as = self._report = None

    def render(self, result: TopPatches, loader: Any) -> Report:
        """Draw the patches, and compare with the last look."""
        dataset = getattr(loader, "dataset", None)
        if self._shown_as is None:  # once, so that looks can be compared
            patches = [patch for layer in result for line in layer.patches for patch in line]
            self._shown_as = chosen_normalization(self.normalization, dataset, patches)
        names = self.class_names or class_names(dataset)
        self._report = top_patches_report(result, diagnose(result, self._before), self._shown_as, class_names=names)
        self._before = without_patches(result)
        return self._report

    def last_report(self) -> Report | None:
        """Return the table of the last look's patches."""
        if self._report is None:
            return None
        assert self._before is not None
        table = top_patches_table(self._before, self._report)
        return Report(self._report.view, title=self._report.title, items=(table,), notes=self._report.notes)
