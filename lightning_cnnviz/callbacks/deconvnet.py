"""Projections of the strongest units to pixels, while training goes on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.display import chosen_normalization
from lightning_cnnviz.callbacks._base.mining import MiningMonitor
from lightning_cnnviz.callbacks._base.passes import PassOptions
from lightning_cnnviz.core.data.distributed import exchanged
from lightning_cnnviz.core.deconvnet.projection import Method, Projector, Unit
from lightning_cnnviz.core.network.layers import evenly, select_layers
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.render.deconvnet import Look, deconvnet_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Report

__all__ = ["DeconvnetMonitor"]

# Without an argument, so many convolutions are shown, from the first to the last.
_LAYERS = 4
# A strip of feature evolution holds at most so many looks; then every other one makes room.
_LOOKS = 12


class _Result(NamedTuple):
    found: TopPatches
    pixels: tuple[Tensor, ...]  # of each patch in order, the projection


class DeconvnetMonitor(MiningMonitor):
    """Shows what in the pixels caused the strongest activations (Zeiler & Fergus 2013, sections 2.1 and 4, Fig. 2).

    The k strongest units of each feature map are projected back to pixels and shown beside their patches, one sheet a
    layer under `deconvnet/<layer>`; how the strongest projection of each feature map changes from look to look (Fig. 4)
    under `deconvnet/<layer>/evolution`.

    Args:
        layers: As `TopPatchesMonitor`'s; by default four convolutions from the first to the last. A projection from a
            deep layer costs about as much as two forward passes of its image.
        k: Number of units of each feature map; 1 for top-1 sheets.
        method: `"deconvnet"`, `"guided"` or `"gradient"`, see `core.deconvnet.projection.project`.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        normalization: Mean and std to undo for display; by default found in the data set's transforms.
        options: See `PassMonitor`.

    Raises:
        ValueError: At set-up, or at the first batch: no such layer, a feature index out of range, k < 1, or a network
            that cannot be projected.
    """

    needs_whole_images = True

    def __init__(
        self,
        layers: str | list[str] | None = None,
        k: int = 9,
        *,
        method: Method = "deconvnet",
        features: int | list[int] | dict[str, list[int]] | None = 8,
        normalization: tuple[list[float], list[float]] | None = None,
        **options: Unpack[PassOptions],
    ) -> None:
        super().__init__(k, features, 1, **options)
        self.layers, self.method, self.normalization = layers, method, normalization
        self._projector: Projector | None = None
        self._checked = False
        self._shown_as: Normalization | None = None
        self._evolution: dict[str, dict[int, list[Look]]] = {}

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        if self.layers is None:
            chosen = evenly(chosen, _LAYERS)
        self.mine(network, chosen)
        self._projector = Projector(network, chosen, self.method)
        self._checked, self._shown_as, self._evolution = False, None, {}

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """As for mining; before the first batch of all, try whether the network can be projected."""
        if not self._checked:
            self._projecting.check(images[:1])
            self._checked = True
        super().start_batch(images, indices, labels)

    def finish_look(self, indices_known: bool) -> _Result:
        """Merge the ranks, and project: each rank the units of the images that it has."""
        found = self.found(indices_known)
        images = self.mining.images
        units = _units(found)
        own = [unit for unit in units if unit.image in images]
        made = (
            dict(zip(own, self._projecting.project(images, own, progress=self.progress).pixels, strict=True))
            if own
            else {}
        )
        boxes = [layer.boxes[feature, rank].tolist() for layer, feature, rank in _places(found)]
        channels = next((len(patch) for layer in found for line in layer.patches for patch in line), 1)
        whole = exchanged([made.get(unit) for unit in units], boxes, torch.empty(0, channels))
        pixels = tuple(part for part in whole if part is not None)
        return _Result(found, pixels)

    def render(self, result: _Result, loader: Any) -> Report:
        """Draw the sheets, and let the strips of evolution grow."""
        if self._shown_as is None:  # once, so that looks can be compared
            patches = [patch for layer in result.found for line in layer.patches for patch in line]
            dataset = getattr(loader, "dataset", None)
            self._shown_as = chosen_normalization(self.normalization, dataset, patches)
        for (layer, feature, rank), pixels in zip(_places(result.found), result.pixels, strict=True):
            if rank > 0:
                continue
            looks = self._evolution.setdefault(layer.layer, {}).setdefault(feature, [])
            activation, box = float(layer.activations[feature, 0]), layer.boxes[feature, 0]
            looks.append(Look(epoch=self._step.epoch, activation=activation, box=box, pixels=pixels))
            if len(looks) > _LOOKS:
                del looks[1:-1:2]
        return deconvnet_report(result.found, result.pixels, self.method, self._shown_as, self._evolution)

    @property
    def _projecting(self) -> Projector:
        assert self._projector is not None, "setup comes first"
        return self._projector


def _places(found: TopPatches) -> list[tuple[Any, int, int]]:
    return [
        (layer, feature, rank)
        for layer in found
        for feature, patches in zip(layer.features, layer.patches, strict=True)
        for rank in range(len(patches))
    ]


def _units(found: TopPatches) -> list[Unit]:
    """The units behind the kept patches, in their order."""
    return [
        Unit(
            int(layer.images[feature, rank]),
            layer.layer,
            feature,
            int(layer.rows[feature, rank]),
            int(layer.columns[feature, rank]),
            float(layer.activations[feature, rank]),
        )
        for layer, feature, rank in _places(found)
    ]
