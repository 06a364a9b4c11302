"""Which images of two data sets linear probes read, and the probes fitted on them, look after look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, has_indices
from lightning_cnnviz.core.network.layers import SelectedLayer
from lightning_cnnviz.core.network.twins import random_twin
from lightning_cnnviz.core.probing.dataset import dataset_labels, drawn_images
from lightning_cnnviz.core.probing.features import Features, merge_features
from lightning_cnnviz.core.probing.probe import LayerProbe, probe_layers
from lightning_cnnviz.core.probing.protocols import Manifest, Protocol, draw_splits, restricted
from lightning_cnnviz.core.probing.tap import FeatureTap, tap_features

__all__ = ["FeatureSets", "ProbePlan"]

FeatureSets = tuple[Features, Features | None]
"""Features of the images to learn from, and of those of a test set of its own, where there is one."""

_TRIED = 8


class ProbePlan:
    """Says which images are read, reads their features, and fits probes on them; the same images at every look.

    Where data sets tell their labels without reading images, splits are drawn at once, and only images that they need
    are read.

    Args:
        network: The network; a few images of each set are tried on it.
        layers: From `select_layers`.
        protocol: How probes are fitted and tested.
        learned: The loader of the images to learn from and, without a second one, to test on.
        tested: The loader of a test set of its own, or None.
        pool: See `tap_features`.
        limit: Up to how many images of each set are drawn from; None for all.
        batch_fn: See `read_batch`.
        seed: Which images are read.

    Raises:
        ValueError: No images, no class labels, or, where data sets tell their labels, too few images of a class.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[SelectedLayer],
        protocol: Protocol,
        learned: Any,
        tested: Any = None,
        *,
        pool: int | None,
        limit: int | None = None,
        batch_fn: BatchFn | None = None,
        seed: int = 0,
    ) -> None:
        self._layers, self._protocol = layers, protocol
        self._loaders = (learned,) if tested is None else (learned, tested)
        self._pool, self._limit, self._batch_fn, self._seed = pool, limit, batch_fn, seed
        self._manifest: Manifest | None = None
        self._wanted: tuple[Tensor | None, ...] = (None, None)  # indices of the images that the manifest needs
        options: dict[str, Any] = {"pool": pool, "limit": _TRIED, "batch_fn": batch_fn, "seed": seed, "refuses": False}
        self._draw([tap_features(network, loader, layers, **options) for loader in self._loaders])

    def split_manifest(self) -> dict[str, Any] | None:
        """Return the data-set indices of each split's images, as plain values; None where labels are not told."""
        learned, tested = self._wanted
        if self._manifest is None or learned is None:
            return None
        of_test = learned if tested is None else tested
        splits = [
            {
                "train": learned[split.train].tolist(),
                "held out to choose C": learned[split.held_out].tolist(),
                "test": of_test[split.test].tolist(),
            }
            for split in self._manifest.splits
        ]
        return {"protocol": asdict(self._protocol), "digest": self._manifest.digest, "splits": splits}

    def tap(self, network: nn.Module, loader: Any) -> FeatureTap | None:
        """Return a running computation for passes over one of the plan's loaders that somebody else makes.

        None where these cannot serve: they are over another loader, its data set does not number its images, or whole
        feature maps are asked for, which are read in the order of the data set.
        """
        if self._pool is None or not has_indices(loader) or not any(loader is own for own in self._loaders):
            return None
        wanted = self._wanted[0 if loader is self._loaders[0] else 1]
        if wanted is None:
            wanted = drawn_images(len(loader.dataset), self._limit, self._seed)
        return FeatureTap(network, self._layers, wanted=wanted, pool=self._pool, refuses=False)

    def read(
        self,
        network: nn.Module,
        *,
        given: tuple[Any, Features] | None = None,
        part: tuple[int, int] = (0, 1),
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> FeatureSets:
        """Return the features of a network's chosen layers, in passes over the loaders.

        Args:
            network: The network, or one that is built the same.
            given: One of the loaders, and its features that `tap` has gathered with this very network: they are not
                read again.
            part: `(rank, ranks)`, see `tap_features`.
            progress: Wraps the iterable of batches to show progress.

        Raises:
            ValueError: See `tap_features`.
        """
        sets = [
            given[1]
            if given is not None and given[0] is loader
            else tap_features(
                network,
                loader,
                self._layers,
                pool=self._pool,
                limit=self._limit,
                indices=wanted,
                part=part,
                batch_fn=self._batch_fn,
                seed=self._seed,
                refuses=False,
                progress=progress,
            )
            for loader, wanted in zip(self._loaders, self._wanted, strict=False)
        ]
        return sets[0], sets[1] if len(sets) > 1 else None

    def read_control(
        self,
        network: nn.Module,
        features: FeatureSets,
        *,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> FeatureSets:
        """Return the features of a copy of a network with random weights, see `random_twin`.

        Args:
            network: The network.
            features: Its own features, of the same part.
            seed: Of the weights.
            part: `(rank, ranks)`.
            progress: Wraps the iterable of batches to show progress.

        Raises:
            ValueError: No weights can be made anew, or a layer with weights has the features that it had: part of what
                it computes with is beyond reach, and it would be no control.
        """
        control = self.read(random_twin(network, seed), part=part, progress=progress)
        weighted = [layer for layer in self._layers if next(layer.module.parameters(), None) is not None]
        for layer in weighted or self._layers:
            own, other = features[0][layer.name], control[0][layer.name]
            if own.images and all(torch.equal(a, b) for a, b in zip(own.chunks(), other.chunks(), strict=True)):
                raise ValueError(
                    f"layer '{layer.name}' of {type(network).__name__} computes the same with weights made anew: what "
                    "it works with is no parameter that can be reached, so that there is no random control of it"
                )
        return control

    def fit(self, parts: Sequence[FeatureSets]) -> LayerProbe:
        """Fit probes on the features that the ranks have read.

        Raises:
            ValueError: See `probe_layers`.
        """
        train = merge_features([learned for learned, _ in parts])
        tests = [tested for _, tested in parts if tested is not None]
        test = merge_features(tests) if tests else None
        # Images may be missing where a loader leaves some out: then splits are drawn from those that have come.
        pairs = zip((train, test), self._wanted, strict=False)
        whole = all(part is None or wanted is None or torch.equal(part.indices, wanted) for part, wanted in pairs)
        return probe_layers(train, self._protocol, test=test, manifest=self._manifest if whole else None)

    def _draw(self, tried: Sequence[Features]) -> None:
        """Draw the splits, where data sets tell labels that are right for the images that were tried."""
        drawn, labels = [], []
        for loader, features in zip(self._loaders, tried, strict=True):
            told = dataset_labels(loader) if features.labels.ndim == 1 and not features.pixels else None
            if told is None or not torch.equal(told[features.indices], features.labels):
                return
            chosen = drawn_images(len(told), self._limit, self._seed)
            drawn.append(chosen[told[chosen] >= 0])
            labels.append(told[drawn[-1]])
        test_labels, test_indices = (labels[1], drawn[1]) if len(labels) > 1 else (None, None)
        manifest = draw_splits(
            labels[0], self._protocol, indices=drawn[0], test_labels=test_labels, test_indices=test_indices
        )
        self._manifest, learned, tested = restricted(manifest, own_test=test_labels is not None)
        self._wanted = (drawn[0][learned], None if tested is None or test_indices is None else test_indices[tested])
