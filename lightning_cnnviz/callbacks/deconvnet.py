"""Projections of the strongest units to pixels, while training goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.patch_monitor import PatchMonitor, PatchOptions
from lightning_cnnviz.core.deconvnet.projection import Method, Projection, Projector, Unit
from lightning_cnnviz.core.network.calling import needs_rows
from lightning_cnnviz.core.network.inputs import all_as_floats, as_floats
from lightning_cnnviz.core.network.layers import SelectedLayer, evenly, select_layers
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.render.display import Display, file_names

__all__ = ["DeconvnetMonitor"]

# Without an argument, so many convolutions are shown.
_LAYERS = 4


class DeconvnetMonitor(PatchMonitor):
    """Shows what in the pixels caused the strongest activations (Zeiler & Fergus 2013, sections 2.1 and 4, Fig. 2).

    The k strongest units of each feature map are projected back to pixels and shown beside their patches, one sheet a
    layer under `deconvnet/<layer>`; how the strongest projection of each feature map changes from look to look (Fig. 4)
    under `deconvnet/<layer>/evolution`.

    Args:
        layers: As `TopPatchesMonitor`'s; by default four convolutions from the first to the last. A projection from a
            deep layer costs about as much as two forward passes of its image.
        k: Number of units of each feature map; 1 for top-1 sheets.
        method: `"deconvnet"`, `"guided"` or `"gradient"`, see `project`.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        rank_by: See `TopPatchesMonitor`.
        normalization: Mean and std to undo for display; by default found in the data set's transforms.
        options: See `PatchMonitor` and `FeedMonitor`.

    Raises:
        ValueError: At set-up, or at the first batch: no such layer, a feature index out of range, k < 1, or a network
            that cannot be projected.
    """

    view = "deconvnet"
    every_rank = True

    def __init__(
        self,
        layers: str | list[str] | None = None,
        k: int = 9,
        *,
        method: Method = "deconvnet",
        features: int | list[int] | dict[str, list[int]] | None = 8,
        rank_by: RankBy = "max",
        normalization: tuple[list[float], list[float]] | None = None,
        **options: Unpack[PatchOptions],
    ) -> None:
        super().__init__(normalization, **options)
        self.layers, self.k, self.method, self.features = layers, k, method, features
        self.rank_by: RankBy = rank_by
        self._chosen: list[SelectedLayer] = []
        self._projector: Projector | None = None

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers, and try the numbers."""
        super().prepare(network)
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        self._chosen = evenly(chosen, _LAYERS) if self.layers is None else chosen
        self._projector = Projector(network, self._chosen, self.method)
        self.running(network)

    def running(self, network: nn.Module, look: Look | None = None) -> PatchMiner:
        """Mine with empty lists, and keep the images that patches are from: they are projected."""
        what: dict[str, Any] = {"k": self.k, "features": self.features, "rank_by": self.rank_by}
        return PatchMiner(network, self._chosen, per_image=1, whole_images=True, sources=True, **what)

    def try_image(self, network: nn.Module, image: Tensor) -> None:
        """Try whether the network can be projected."""
        self._projecting.check(as_floats(network, image))
        if needs_rows(network, image):
            raise ValueError(
                f"{self._who} projects images of which it keeps the pixels alone, and {type(network).__name__} says "
                "something else of an image with the other inputs of another one; there is no projection of it"
            )

    def part(self, look: Look, running: Any) -> tuple[TopPatches | None, list[int], Projection]:
        """Project the units of the images that this rank has seen, by their places among all units."""
        own: TopPatches = running.compute().narrowed([layer.name for layer in self._chosen], self.k, self.features)
        images = running.images
        units = {place: unit for place, unit in enumerate(_units(own)) if unit.image in images}
        projection = Projection.joined(self.method, [])
        if units:
            network = self.network_of(look.trainer.lightning_module)
            floats = all_as_floats(network, images)
            wanted = list(units.values())
            projection = self._projecting.project(floats, wanted, progress=self.progress, for_pictures=True)
        patches = replace(own, indices_known=look.indices_known) if look.trainer.is_global_zero else None
        return patches, list(units), projection

    def merge(self, parts: list[Any]) -> tuple[TopPatches, Projection]:
        """Put the ranks' projections in order; of those that several have made, the first rank's."""
        return parts[0][0], Projection.joined(self.method, [(places, made) for _, places, made in parts])

    def display_of(self, result: tuple[TopPatches, Projection]) -> Display:
        """Return how patches are shown, and the files of their images."""
        patches, _ = result
        files = file_names(self.dataset, patches.shown_images()) if patches.indices_known else {}
        return Display(normalization=self.normalization_of(patches), files=files)

    @property
    def _projecting(self) -> Projector:
        assert self._projector is not None, "set-up comes first"
        return self._projector


def _places(patches: TopPatches) -> list[tuple[Any, int, int]]:
    return [
        (layer, feature, rank)
        for layer in patches
        for feature, line in zip(layer.features, layer.patches, strict=True)
        for rank in range(len(line))
    ]


def _units(patches: TopPatches) -> list[Unit]:
    """The units behind the kept patches, in their order."""
    return [
        Unit(
            int(layer.images[feature, rank]),
            layer.layer,
            feature,
            int(layer.rows[feature, rank]),
            int(layer.columns[feature, rank]),
            float(layer.activations[feature, rank]),
            None if layer.depths is None else int(layer.depths[feature, rank]),
        )
        for layer, feature, rank in _places(patches)
    ]
