"""Top-k patches: which parts of which images drive each feature map most (Zeiler & Fergus 2013, section 4, Fig. 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, indexed_batches, read_batch
from lightning_cnnviz.core.network.hooks import analysis_mode, model_device
from lightning_cnnviz.core.network.layers import FeatureSpec, LayerSpec, select_layers
from lightning_cnnviz.core.top_patches.mining import LayerTopPatches, PatchMiner, TopPatches

__all__ = ["Diagnostics", "LayerTopPatches", "TopPatches", "diagnose", "mine_top_patches", "without_patches"]


@dataclass(frozen=True)
class Diagnostics:
    """What a practitioner reads first, of one layer.

    Attributes:
        layer: The layer's name.
        dead_features: Number of feature maps that were never above zero on the whole set.
        dead_fraction: The same as a fraction of the layer, 0 to 1.
        stability: Mean Jaccard overlap, 0 to 1, of each feature map's images with those at the last look: near 1 when
            the layer has converged. NaN at the first look, and where images are not numbered as in the data set.
        label_purity: Mean share, 0 to 1, of the most frequent label among the top k, over the feature maps that are
            not dead. NaN without labels.
    """

    layer: str
    dead_features: int
    dead_fraction: float
    stability: float
    label_purity: float


def mine_top_patches(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerSpec = "conv",
    k: int = 9,
    *,
    features: FeatureSpec = 16,
    per_image: int | None = 1,
    batch_fn: BatchFn | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> TopPatches:
    """Find, for every feature map of the chosen layers, the k units with the strongest activation in a data set.

    The network is run once over the loader, in eval mode and without gradients, and left as it was. Equal activations
    rank by data-set index, then by row and column: the result does not depend on the loader's order or batch size.

    Args:
        model: Any network that takes images `(N, C, H, W)`.
        loader: A DataLoader (also a shuffled one), or any iterable of batches.
        layers: See `select_layers`; by default every convolution, read behind the BatchNorm that directly follows it.
        k: Number of units of each feature map.
        features: Whose patches are kept: the first n feature maps of each layer, a list, a list by layer, or None for
            all. Activations, images and positions are found for every feature map in any case; patches are what takes
            memory: up to an image for each of k x features.
        per_image: Number of units of a feature map that may come from one image; None for any number.
        batch_fn: Takes a batch and returns `(images, labels)`, for batches of unusual form.
        progress: Wraps the iterable of batches to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: The loader is empty, or k, per_image or features are out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> found = mine_top_patches(model, [torch.rand(32, 1, 12, 12)], k=3)
        >>> found["2"].activations.shape, found["2"].patch(0, rank=0).shape
        (torch.Size([8, 3]), torch.Size([1, 5, 5]))
    """
    miner = PatchMiner(model, select_layers(model, layers), k=k, features=features, per_image=per_image)
    device = model_device(model)
    with analysis_mode(model), miner, closing(indexed_batches(loader)) as batches:
        arrived = 0
        for batch, indices in progress(batches) if progress is not None else batches:
            images, labels = read_batch(batch, batch_fn)
            if len(images) == 0:
                continue
            if indices is None or len(indices) != len(images):
                # Behind all indices there are, where a collate function leaves images out or makes more of them.
                first = arrived if indices is None else arrived + len(loader.dataset)  # type: ignore[attr-defined]
                indices = torch.arange(first, first + len(images))
                miner.indices_known = isinstance(loader, (list, tuple))
            arrived += len(images)
            images = images.to(device)
            miner.start_batch(images, indices, labels)
            model(images)
            miner.end_batch()
        if arrived == 0:
            raise ValueError(f"the loader {type(loader).__name__} is empty: it gave no image")
        return miner.compute()


def diagnose(current: TopPatches, previous: TopPatches | None = None) -> list[Diagnostics]:
    """Sum up each layer: dead feature maps, stability since the last look, label purity of the top k."""
    before = {} if previous is None else {found.layer: found for found in previous}
    known = current.indices_known and (previous is None or previous.indices_known)
    summaries = []
    for found in current:
        dead = ~(found.activations[:, 0] > 0)
        last = before.get(found.layer) if known else None
        summaries.append(
            Diagnostics(
                found.layer,
                int(dead.sum()),
                float(dead.float().mean()),
                float("nan") if last is None else _overlap(found.images, last.images),
                _purity(found, dead),
            )
        )
    return summaries


def without_patches(found: TopPatches) -> TopPatches:
    """Return what is needed to compare later looks with this one: everything but the pixels."""
    bare = (replace(layer, patches=tuple(() for _ in layer.patches)) for layer in found)
    return replace(found, layers=tuple(bare))


def _overlap(images: Tensor, before: Tensor) -> float:
    """Mean Jaccard overlap of the lines' sets of images."""
    if images.shape[0] != before.shape[0]:
        return float("nan")
    overlaps = []
    for now, then in zip(images.tolist(), before.tolist(), strict=True):
        first, second = set(now) - {-1}, set(then) - {-1}
        if first or second:
            overlaps.append(len(first & second) / len(first | second))
    return sum(overlaps) / len(overlaps) if overlaps else float("nan")


def _purity(found: LayerTopPatches, dead: Tensor) -> float:
    if found.labels is None:
        return float("nan")
    filled = (found.images >= 0)[~dead]
    labels = found.labels[~dead]
    if not bool(filled.any()):
        return float("nan")
    same = (labels[:, :, None] == labels[:, None, :]) & filled[:, None, :] & filled[:, :, None]
    most_frequent = same.sum(2).amax(1)
    return float((most_frequent / filled.sum(1).clamp(min=1)).mean())
