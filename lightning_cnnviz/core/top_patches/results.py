"""What mining returns: for each feature map the units that rank first, and the patches behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from lightning_cnnviz.core.network.layers import FeatureSpec, resolve_features

__all__ = ["LayerTopPatches", "RankBy", "TopPatches"]

RankBy = Literal["max", "mean"]
"""What ranks images for a feature map: its largest activation, or the mean of all its activations."""


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
        rows: `(C, k)` int64, the units' rows in the feature map.
        columns: `(C, k)` int64.
        boxes: `(C, k, 4)` int64, receptive fields in the image: top, left, bottom, right, half-open, clipped.
        maxima: `(C,)`, the largest activation of each feature map on the whole set, whatever ranks; -inf where there
            was none.
        features: Feature maps whose patches were kept, ascending.
        patches: For each of `features` its patches `(image channels, bottom - top, right - left)`, in the values that
            the network was given, best first (fewer than k where there were fewer units).
        nonfinite: The lowest index of an image with a feature map whose largest activation is NaN or infinite, or None.
            Such activations are never ranked.
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

    def __post_init__(self) -> None:
        shape: tuple[int, ...] = tuple(self.scores.shape)
        if len(shape) != 2:
            raise ValueError(f"layer '{self.layer}': scores must be (C, k), not {shape}")
        expected: dict[str, tuple[int, ...]] = {"boxes": (*shape, 4), "maxima": shape[:1]}
        expected |= dict.fromkeys(("activations", "images", "labels", "rows", "columns"), shape)
        for name, wanted in expected.items():
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != wanted:
                raise ValueError(
                    f"layer '{self.layer}': {name} must be {wanted} to fit scores {shape}, not {tuple(part.shape)}"
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
            for patch, (top, left, bottom, right) in zip(patches, self.boxes[feature].tolist(), strict=False):
                if patch.ndim != 3 or tuple(patch.shape[1:]) != (bottom - top, right - left):
                    box = f"({top}, {left}, {bottom}, {right})"
                    raise ValueError(
                        f"layer '{self.layer}', feature {feature}: a patch {tuple(patch.shape)} does not fit box {box}"
                    )

    def patch(self, feature: int, rank: int = 0) -> Tensor:
        """Return one patch `(image channels, height, width)`.

        Raises:
            KeyError: The patches of this feature map were not kept, or there are fewer.
        """
        if feature not in self.features or rank >= len(self.patches[self.features.index(feature)]):
            raise KeyError(f"layer '{self.layer}' has no patch {rank} of feature {feature}; kept are {self.features}")
        return self.patches[self.features.index(feature)][rank]

    @property
    def dead(self) -> Tensor:
        """`(C,)` bool, which feature maps were never above zero on the whole set."""
        return ~(self.maxima > 0)

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
            boxes=self.boxes[:, :k],
            features=kept,
            patches=tuple(patches[feature][:k] for feature in kept),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TopPatches:
    """What `mine_top_patches` returns, layer by layer in the order in which they run.

    Attributes:
        layers: One entry a layer.
        k: Number of units asked for, of each feature map.
        indices_known: Whether images are numbered as in the data set; else as they arrived.
    """

    layers: tuple[LayerTopPatches, ...]
    k: int
    indices_known: bool = True

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
        return replace(self, layers=kept, k=min(k, self.k))
