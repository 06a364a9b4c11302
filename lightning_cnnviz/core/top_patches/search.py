"""Top-k patches: which parts of which images drive each feature map most (Zeiler & Fergus 2013, section 4, Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, numbered_batches
from lightning_cnnviz.core.data.distributed import together
from lightning_cnnviz.core.network.calling import give, rows_of
from lightning_cnnviz.core.network.hooks import analysis_mode, model_device
from lightning_cnnviz.core.network.layers import FeatureSpec, LayerSpec, image_axes, select_for_views
from lightning_cnnviz.core.network.memory import in_chunks
from lightning_cnnviz.core.top_patches._units import NO_LABEL
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, RankBy, TopPatches

__all__ = ["Diagnostics", "diagnose", "mine_top_patches", "without_patches"]


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What a practitioner reads first, of one layer.

    Attributes:
        layer: The layer's name.
        dead_features: Number of feature maps that were never above zero on the whole set; NaN where activations are
            not finite, so that nobody knows.
        dead_fraction: The same as a fraction of the layer, 0 to 1.
        stability: Mean Jaccard overlap, 0 to 1, of each feature map's images with those at the last look: near 1 once
            the layer has converged. NaN at the first look, if images are not numbered as in the data set, and if at
            either look nobody knows which feature maps are dead.
        label_purity: Mean fraction, 0 to 1, of the top k that has the most frequent label, over the feature maps that
            are not dead. NaN without labels, and where nobody knows which are dead.
        channel_stability: The overlap of each feature map; NaN where there is none.
        channel_purity: The fraction of each feature map; NaN for a dead one, too.
    """

    layer: str
    dead_features: float
    dead_fraction: float
    stability: float
    label_purity: float
    channel_stability: tuple[float, ...] = field(default=(), compare=False, repr=False)
    channel_purity: tuple[float, ...] = field(default=(), compare=False, repr=False)


def mine_top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerSpec = "conv",
    k: int = 9,
    *,
    features: FeatureSpec = 16,
    per_image: int | None = 1,
    rank_by: RankBy = "max",
    sources: bool = False,
    batch_fn: BatchFn | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> TopPatches:
    """Find, for every feature map of the chosen layers, the k units with the strongest activation in a data set.

    The network is run once over the loader, in eval mode and without gradients, and left as it was. Units that score
    the same rank by data-set index, then by row and column: the result does not depend on the loader's order or batch
    size.

    Args:
        model: Any network that takes images `(N, C, H, W)`, signals `(N, C, L)`, or clips and volumes
            `(N, C, D, H, W)`; which of them, its convolutions say.
        loader: A DataLoader (also a shuffled one), or any iterable of batches.
        layers: See `select_layers`; by default every convolution, read behind the BatchNorm that directly follows it.
        k: Number of units of each feature map.
        features: The feature maps whose patches are kept: the first n of each layer, a list, a list by layer, or None
            for all. Activations, images and positions are returned for every feature map in any case; patches are what
            takes memory, up to one image for each of k x features.
        per_image: Number of units of a feature map that may come from one image; None for any number.
        rank_by: `"max"` ranks units by their activation. `"mean"` ranks images by the mean of the feature map over all
            its positions, and takes from each image the strongest unit. If `per_image` allows several, those of one
            image stand together, the strongest first.
        sources: Whether the images of the kept patches are kept, too, in 8 bits: `TopPatches.sources`.
        batch_fn: Takes a batch and returns `(images, labels)`, for batches of unusual form.
        progress: Wraps the iterable of batches to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: The loader is empty, or k, per_image, rank_by or features are out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> layer = mine_top_patches(model, [torch.rand(32, 1, 12, 12)], k=3)["2"]
        >>> layer.activations.shape, layer.patch(0, rank=0).shape
        (torch.Size([8, 3]), torch.Size([1, 5, 5]))
    """
    chosen = select_for_views(model, layers, axes=(1, 2, 3))
    miner = PatchMiner(model, chosen, k=k, features=features, per_image=per_image, rank_by=rank_by, sources=sources)
    device = model_device(model)
    with together("mining patches"), analysis_mode(model):
        for images, labels, indices, known, given, _ in numbered_batches(
            loader, batch_fn, progress, axes={2, image_axes(model)}
        ):
            miner.indices_known &= known
            give(model, given, images)
            images = images.to(device)

            def mine(
                part: slice, images: Tensor = images, indices: Tensor = indices, labels: Tensor | None = labels
            ) -> None:
                own = None if labels is None else labels[part]
                with rows_of(model, part), miner.batch(images[part], indices[part], own):
                    model(images[part].clone())

            in_chunks(mine, len(images))
        miner.merge()
        return miner.compute()


def diagnose(current: TopPatches, previous: TopPatches | None = None) -> list[Diagnostics]:
    """Sum up each layer: dead feature maps, stability since the last look, label purity of the top k."""
    comparable = previous is not None and current.indices_known and previous.indices_known
    before = {layer.layer: layer for layer in previous} if previous is not None and comparable else {}
    return [_diagnosed(layer, before.get(layer.layer)) for layer in current]


def without_patches(result: TopPatches) -> TopPatches:
    """Return everything but the pixels."""
    return replace(result, layers=tuple(replace(layer, patches=tuple(() for _ in layer.patches)) for layer in result))


def _diagnosed(layer: LayerTopPatches, before: LayerTopPatches | None) -> Diagnostics:
    overlaps, purities = _overlaps(layer, before), _purities(layer)
    unknown = bool(layer.maxima.isnan().any())  # nobody knows which are dead
    incomparable = unknown or (before is not None and bool(before.maxima.isnan().any()))
    return Diagnostics(
        layer=layer.layer,
        dead_features=math.nan if unknown else int(layer.dead.sum()),
        dead_fraction=math.nan if unknown else float(layer.dead.float().mean()),
        stability=math.nan if incomparable else float(torch.tensor(overlaps, dtype=torch.float64).nanmean()),
        label_purity=math.nan if unknown else float(purities.nanmean()),
        channel_stability=tuple(overlaps),
        channel_purity=tuple(purities.tolist()),
    )


def _overlaps(layer: LayerTopPatches, before: LayerTopPatches | None) -> list[float]:
    """Jaccard overlap of each line's set of images with that before; NaN for two empty ones."""
    if before is None or layer.images.shape[0] != before.images.shape[0]:
        return [math.nan] * layer.images.shape[0]
    overlaps = []
    for now, then in zip(layer.images.tolist(), before.images.tolist(), strict=True):
        first, second = set(now) - {-1}, set(then) - {-1}
        overlaps.append(len(first & second) / len(first | second) if first or second else math.nan)
    return overlaps


def _purities(layer: LayerTopPatches) -> Tensor:
    """`(C,)`, the fraction of each line that has its most frequent label; NaN for dead ones, and without labels."""
    filled = (layer.images >= 0) & ~layer.dead[:, None]
    if layer.labels is None or not filled.shape[1]:
        return torch.full((len(filled),), math.nan)
    labels = layer.labels
    filled &= labels != NO_LABEL
    same = (labels[:, :, None] == labels[:, None, :]) & filled[:, None, :] & filled[:, :, None]
    return same.sum(2).amax(1) / torch.where(filled.any(1), filled.sum(1), math.nan)
