"""What mining returns: for each feature map the units that rank first, and the patches behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnviz.core.network.layers import FeatureSpec, resolve_features
from lightning_cnnviz.core.top_patches.activity import FeatureActivity
from lightning_cnnviz.core.tracing.boxes import box_size

__all__ = ["LayerTopPatches", "RankBy", "SourceImage", "TopPatches"]

RankBy = Literal["max", "mean"]
"""What ranks images for a feature map: its largest activation, or the mean of all its activations."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SourceImage:
    """A whole image that patches were cut from, in 8 bits: for people to see, and a quarter of the memory.

    Each channel has a scale of its own, from its smallest value to its largest, so that an image that was read from 8
    bits comes back as it was.

    Attributes:
        index: Its data-set index.
        levels: `(C, H, W)` uint8, of signals `(C, L)`, of volumes `(C, D, H, W)`; 0 stands for `low`, 255 for `high`.
        low: `(C,)` float32.
        high: `(C,)` float32.
    """

    index: int
    levels: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, index: int, image: Tensor) -> SourceImage:
        """Take an image, signal or volume `(C, ...)` as the network is given it; what is not finite counts as 0."""
        values = image.detach().float().nan_to_num(0.0, 0.0, 0.0).cpu()
        low, high = values.flatten(1).amin(1), values.flatten(1).amax(1)
        span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        column = (-1, *[1] * (values.ndim - 1))
        levels = ((values - low.view(column)) * (255 / span).view(column)).round_().to(torch.uint8)
        return cls(index=index, levels=levels, low=low, high=high)

    def values(self) -> Tensor:
        """Return the image `(C, ...)` float32 in the values that the network was given, to half a level."""
        column = (-1, *[1] * (self.levels.ndim - 1))
        low, high = self.low.view(column), self.high.view(column)
        return self.levels.float() * ((high - low) / 255) + low


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTopPatches:
    """The k units of every feature map of one layer that rank first, best first.

    Attributes:
        layer: The layer's name.
        rank_by: What `scores` are.
        scores: `(C, k)`, what ranks: with "max" the unit's activation, with "mean" the mean of the feature map on the
            unit's image; -inf where there were fewer than k units.
        activations: `(C, k)`, how strong the units are; -inf likewise.
        images: `(C, k)` int64, data-set indices; -1 where empty.
        labels: `(C, k)` int64, or None where the data has none.
        rows: `(C, k)` int64, the units' rows in the feature map; 0 in one of signals, which has one row.
        columns: `(C, k)` int64; of signals the positions.
        depths: `(C, k)` int64, of clips and volumes: the slices; else None.
        boxes: `(C, k, 4)` int64, receptive fields in the image: top, left, bottom, right, half-open, clipped. A signal
            is an image of one row. Of volumes `(C, k, 6)`: front, top, left, back, bottom, right.
        maxima: `(C,)`, the largest activation of each feature map on the whole set, whatever ranks; -inf where there
            was none. Of a map that is NaN or infinite on some images the largest finite one, and NaN where none of
            these is above zero: then nobody knows whether the map is dead.
        features: Feature maps whose patches were kept, ascending.
        patches: For each of `features` its patches `(image channels, bottom - top, right - left)`, in the values that
            the network was given, best first (fewer than k where there were fewer units). Those of signals are
            `(image channels, right - left)`, of volumes `(image channels, depth, height, width)`.
        nonfinite: The lowest index of an image with a feature map whose largest activation is NaN or infinite, or None.
            Such activations are never ranked.
        activity: What drives `features` over the whole set, where that is known.
    """

    layer: str
    rank_by: RankBy = "max"
    scores: Tensor
    activations: Tensor
    images: Tensor
    labels: Tensor | None
    rows: Tensor
    columns: Tensor
    boxes: Tensor
    maxima: Tensor
    features: tuple[int, ...]
    patches: tuple[tuple[Tensor, ...], ...]
    nonfinite: int | None = None
    activity: FeatureActivity | None = None
    depths: Tensor | None = None

    def __post_init__(self) -> None:
        shape: tuple[int, ...] = tuple(self.scores.shape)
        if len(shape) != 2:
            raise ValueError(f"layer '{self.layer}': scores must be (C, k), not {shape}")
        expected: dict[str, tuple[int, ...]] = {"boxes": (*shape, 4 if self.depths is None else 6), "maxima": shape[:1]}
        expected |= dict.fromkeys(("activations", "images", "labels", "rows", "columns", "depths"), shape)
        for name, wanted in expected.items():
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != wanted:
                raise ValueError(
                    f"layer '{self.layer}': {name} must be {wanted} to fit scores {shape}, not {tuple(part.shape)}"
                )
        if self.activity is not None and self.activity.features != self.features:
            raise ValueError(
                f"layer '{self.layer}': activity is of {self.activity.features}, patches of {self.features}"
            )
        if len(self.features) != len(self.patches):
            counts = f"{len(self.patches)} lists of patches for {len(self.features)} features"
            raise ValueError(f"layer '{self.layer}': there are {counts}")
        for feature, patches in zip(self.features, self.patches, strict=True):
            if not 0 <= feature < shape[0] or len(patches) > shape[1]:
                raise ValueError(
                    f"layer '{self.layer}', feature {feature}: {len(patches)} patches of {shape[1]} units, "
                    f"feature {feature} of {shape[0]}"
                )
            for patch, box in zip(patches, self.boxes[feature].tolist(), strict=False):
                axes = patch.ndim - 1
                least = 1 if self.depths is None else 3
                if not least <= axes <= len(box) // 2 or tuple(patch.shape[1:]) != box_size(box)[-axes:]:
                    raise ValueError(
                        f"layer '{self.layer}', feature {feature}: a patch {tuple(patch.shape)} does not fit box "
                        f"({', '.join(map(str, box))})"
                    )

    def patch(self, feature: int, rank: int = 0) -> Tensor:
        """Return one patch `(image channels, height, width)`; of signals and volumes see `patches`.

        Raises:
            KeyError: The patches of this feature map were not kept, or there are fewer.
        """
        if feature not in self.features or rank >= len(self.patches[self.features.index(feature)]):
            raise KeyError(f"layer '{self.layer}' has no patch {rank} of feature {feature}; kept are {self.features}")
        return self.patches[self.features.index(feature)][rank]

    @property
    def dead(self) -> Tensor:
        """`(C,)` bool, which feature maps were never above zero on the whole set; not those where that is unknown."""
        return self.maxima <= 0

    def narrowed(self, k: int, features: FeatureSpec) -> LayerTopPatches:
        """Return what mining fewer units and feature maps would have found."""
        patches = dict(zip(self.features, self.patches, strict=True))
        wanted = resolve_features(self.layer, len(self.scores), features)
        kept = tuple(feature for feature in wanted if feature in patches)
        return replace(
            self,
            scores=self.scores[:, :k],
            activations=self.activations[:, :k],
            images=self.images[:, :k],
            labels=None if self.labels is None else self.labels[:, :k],
            rows=self.rows[:, :k],
            columns=self.columns[:, :k],
            depths=None if self.depths is None else self.depths[:, :k],
            boxes=self.boxes[:, :k],
            features=kept,
            patches=tuple(patches[feature][:k] for feature in kept),
            activity=None if self.activity is None else self.activity.of(kept),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TopPatches:
    """What `mine_top_patches` returns, layer by layer in the order in which they run.

    Attributes:
        layers: One entry a layer.
        k: Number of units asked for, of each feature map.
        indices_known: Whether images are numbered as in the data set; else as they arrived.
        sources: The images that the patches were cut from, by ascending index, where they were asked for.
    """

    layers: tuple[LayerTopPatches, ...]
    k: int
    indices_known: bool = True
    sources: tuple[SourceImage, ...] = ()

    def __getitem__(self, name: str) -> LayerTopPatches:
        for layer in self.layers:
            if layer.layer == name:
                return layer
        raise KeyError(f"no layer '{name}'; there are {[layer.layer for layer in self.layers]}")

    def __iter__(self) -> Iterator[LayerTopPatches]:
        return iter(self.layers)

    def narrowed(self, layers: Iterable[str], k: int, features: FeatureSpec) -> TopPatches:
        """Return what mining fewer layers, units and feature maps would have found."""
        chosen = set(layers)
        kept = tuple(layer.narrowed(k, features) for layer in self.layers if layer.layer in chosen)
        result = replace(self, layers=kept, k=min(k, self.k))
        shown = set(result.shown_images())
        return replace(result, sources=tuple(source for source in self.sources if source.index in shown))

    def all_patches(self) -> Iterator[Tensor]:
        """Go over the kept patches: layer by layer, feature map by feature map, best first."""
        for layer in self.layers:
            for patches in layer.patches:
                yield from patches

    def shown_images(self) -> list[int]:
        """Return the indices of the images that kept patches are from, ascending."""
        kept = (
            layer.images[feature, : len(patches)].tolist()
            for layer in self.layers
            for feature, patches in zip(layer.features, layer.patches, strict=True)
        )
        return sorted({index for indices in kept for index in indices})
