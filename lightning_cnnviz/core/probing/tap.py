"""Gathering the features of a data set's images, from passes of any maker or in one pass of its own."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz.core.data.batches import BatchFn, has_indices, numbered_batches
from lightning_cnnviz.core.data.distributed import gathered, ranks
from lightning_cnnviz.core.network.calling import give, rows_of
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import (
    LayerNotFoundError,
    LayerSpec,
    SelectedLayer,
    image_axes,
    select_for_views,
)
from lightning_cnnviz.core.network.memory import in_chunks
from lightning_cnnviz.core.probing.dataset import NO_LABELS, drawn_images, why_no_labels
from lightning_cnnviz.core.probing.features import Features, LayerFeatures, merge_features
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.targets import draw_pixels, have_targets, pixel_numbers, probe_targets

__all__ = ["DIMENSIONS", "FeatureTap", "tap_features"]

DIMENSIONS = 9216
"""Up to how many dimensions a layer's features are pooled by default, as VISSL does it."""


def tap_features(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerSpec | Sequence[SelectedLayer] = "conv",
    *,
    pool: int | None = DIMENSIONS,
    rectify: bool = True,
    limit: int | None = None,
    indices: Tensor | None = None,
    folder: Path | None = None,
    batch_fn: BatchFn | None = None,
    part: tuple[int, int] = (0, 1),
    seed: int = 0,
    refuses: bool = True,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Features:
    """Read the features of all chosen layers in one pass over a data set.

    The network is run in eval mode and left as it was, as are the loader and all random number generators. A loader of
    a map-style data set is not asked for its order: its images are read in the order of their indices, by a loader of
    our own with the same transforms, where random ones give the same pixels at each call.

    Args:
        model: Any network that takes images `(N, C, H, W)`, signals `(N, C, L)` or volumes `(N, C, D, H, W)`.
        loader: A DataLoader, or any iterable of batches with labels.
        layers: See `select_layers`, or what that has selected. A convolution chosen by kind is read behind the
            BatchNorm that directly follows it.
        pool: Feature maps are average-pooled, along all of their axes, to the finest grid with at most so many
            features; None keeps them whole, on disk.
        rectify: Whether convolutions chosen by kind are read behind a ReLU, as Zeiler & Fergus (2013, Table 7) do: what
            an average pooling leaves of unrectified maps is linear in the layer below. A layer chosen by name is read
            as it is.
        limit: At most so many images, drawn by `seed` where the data set has indices, else the first ones.
        indices: `(M,)` int64, ascending: only these images of the data set, which must have indices.
        folder: Where features that are not pooled are written, one file a layer; by default a temporary folder that is
            gone with the result.
        batch_fn: See `read_batch`.
        part: `(rank, ranks)`: read only every ranks-th image, from the rank-th on; see `merge_features`.
        seed: Of the draw and of random transforms.
        refuses: Whether features that are not finite are refused; else they are kept as they are.
        progress: Wraps the iterable of batches to show progress.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: No image, no labels to learn from, features that are not finite (names the layer and the image), or
            a `pool` or `limit` below 1.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> features = tap_features(model, [(torch.rand(6, 1, 12, 12), torch.arange(6) % 2)], pool=100)
        >>> features["0"].pooled, features["2"].values.shape
        ((5, 5), torch.Size([6, 96]))
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give 1 or more images, or None for all")
    indexed = has_indices(loader)
    if indices is not None and not indexed:
        raise ValueError(
            f"indices={tuple(indices.shape)}: the loader {type(loader).__name__} has no indices to choose by"
        )
    tap = FeatureTap(model, _selected(model, layers), pool=pool, rectify=rectify, folder=folder, refuses=refuses)
    parameter = next(model.parameters(), torch.empty(0))
    with analysis_mode(model):
        torch.manual_seed(seed)  # for random transforms; analysis_mode restores the state
        source = _in_order(loader, limit, indices, part, seed) if indexed else loader
        axes = {2, image_axes(model)}
        for batch in numbered_batches(source, batch_fn, progress, axes=axes) if source is not None else ():
            targets = probe_targets(batch.given_labels)
            if targets is None:
                raise ValueError(why_no_labels(batch.given, batch_fn))
            # Of a data set that is read by our own loader, only chosen images arrive.
            places = torch.arange(len(batch.images)) if indexed else _chosen(batch.indices, limit, part)
            if len(places):
                images = batch.images[places.to(batch.images.device)].to(parameter.device)
                if images.is_floating_point():
                    images = images.to(parameter.dtype)  # as the trainer does with half and double precision
                labels = targets[places.to(targets.device)]
                tap.indices_known &= batch.indices_known
                own = batch.indices[places]
                give(model, batch.given, batch.images)

                def read(
                    part: slice,
                    images: Tensor = images,
                    own: Tensor = own,
                    labels: Tensor = labels,
                    places: Tensor = places,
                ) -> None:
                    with rows_of(model, places[part]), tap.batch(images[part], own[part], labels[part]):
                        model(images[part].clone())

                in_chunks(read, len(images))
        return tap.compute()


class FeatureTap:
    """Gathers features, batch by batch, in passes that somebody else makes.

        with tap.batch(images, indices, labels):
            network(images)

    Args:
        model: The network.
        layers: From `select_layers`.
        wanted: `(M,)` int64: data-set indices of the images whose features are kept; None for all.
        pool: See `tap_features`.
        rectify: See `tap_features`.
        folder: See `tap_features`.
        refuses: Whether features that are not finite are refused; else they are kept as they are.

    Attributes:
        indices_known: Whether the indices that it is given are those of the data set.

    Raises:
        ValueError: `pool` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SelectedLayer],
        *,
        wanted: Tensor | None = None,
        pool: int | None = DIMENSIONS,
        rectify: bool = True,
        folder: Path | None = None,
        refuses: bool = True,
    ) -> None:
        self.indices_known = True
        self._reader = MapReader(model, layers, pool=pool, rectify=rectify)
        self._wanted, self._on_disk, self._folder, self._refuses = wanted, pool is None, folder, refuses
        self._pixels = 0
        self._keeper: Any = None
        self._merged: Features | None = None
        self._rows: dict[str, list[Tensor]] = {}
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> Iterator[None]:
        """Read the one forward pass that is made inside; hooks are gone on leaving.

        Args:
            images: `(N, C, H, W)`, or signals or volumes, on the network's device.
            indices: `(N,)` int64.
            labels: What `probe_targets` made of them; images that have none are left out. Of maps of classes, some
                pixels are read, see `draw_pixels`.

        Raises:
            ValueError: There are no labels, or features are not finite (names the layer and the image); see
                `MapReader.reading`.
        """
        if labels is None:
            raise ValueError(NO_LABELS)
        indices, labels, places = indices.cpu(), labels.cpu(), None
        wanted = torch.ones(len(labels), dtype=torch.bool)
        if self._wanted is not None:
            wanted = torch.isin(indices, self._wanted)
        if labels.ndim == 3:
            places, labels = draw_pixels(labels, indices)
            count, labels = labels.shape[1], labels.flatten()
            self._pixels = count
            wanted, indices = wanted.repeat_interleave(count), pixel_numbers(indices, count)
        wanted &= have_targets(labels)
        kept = None if bool(wanted.all()) else wanted.nonzero().flatten()
        with self._reader.reading(images, places=places):
            yield
        numbers = indices if kept is None else indices[kept]
        blocks = {}
        for maps in self._reader.maps:
            rows = self._reader.values.pop(maps.layer)
            rows = rows if kept is None else rows[kept.to(rows.device)]
            blocks[maps.layer] = rows.float().cpu()
            if self._refuses:
                _check_finite(blocks[maps.layer], maps.layer, numbers)
        for layer, rows in blocks.items():
            self._keep(layer, rows)
        self._indices.append(numbers)
        self._labels.append(labels if kept is None else labels[kept])

    def merge(self) -> None:
        """Bring the ranks together, each of which calls this; then every rank has the features of all images.

        Raises:
            ValueError: A rank has made no pass, or features are on disk.
        """
        if ranks() == 1:
            return
        own = self.compute()
        if len({int(count) for count in gathered(torch.tensor(len(own)))}) != 1:
            raise ValueError("features cannot be merged: a rank has seen no image")
        if self._on_disk:
            raise ValueError("features on disk (pool=None) are not merged: give pool=<number of features>")
        labels, indices = gathered(own.labels), gathered(own.indices)
        all_known = bool(torch.stack(gathered(torch.tensor(own.indices_known, dtype=torch.uint8))).all())
        rows = [gathered(layer.dense()) for layer in own]
        parts = []
        for rank in range(ranks()):
            layers = tuple(
                LayerFeatures(
                    layer=layer.layer,
                    values=values[rank],
                    shape=layer.shape,
                    pooled=layer.pooled,
                    images=len(indices[rank]),
                )
                for layer, values in zip(own, rows, strict=True)
            )
            rest: Any = {"indices_known": all_known, "pixels": own.pixels}
            parts.append(Features(layers=layers, labels=labels[rank], indices=indices[rank], **rest))
        self._merged = merge_features(parts)

    def compute(self) -> Features:
        """Return the features of all batches, in the order of their indices, each image once.

        Without a wanted image there are no layers, or they have no rows.
        """
        if self._merged is not None:
            return self._merged
        none = torch.empty(0, dtype=torch.int64)
        indices, labels = torch.cat([none, *self._indices]), torch.cat(self._labels or [none])
        layers = []
        for maps in self._reader.maps if self._indices else ():
            shape, pooled = self._reader.grids[maps.layer]
            layers.append(
                LayerFeatures(
                    layer=maps.layer,
                    values=None if self._on_disk else torch.cat(self._rows[maps.layer]),
                    shape=shape,
                    pooled=pooled,
                    images=len(indices),
                    file=self._path(maps.layer) if self._on_disk else None,
                    _keeper=self._keeper,
                )
            )
        rest: Any = {"indices_known": self.indices_known, "pixels": self._pixels}
        whole = Features(layers=tuple(layers), labels=labels, indices=indices, **rest)
        return merge_features([whole]) if len(indices) else whole

    def _keep(self, layer: str, rows: Tensor) -> None:
        if not self._on_disk:
            self._rows.setdefault(layer, []).append(rows)
            return
        first = layer not in self._rows
        self._rows[layer] = []
        with self._path(layer).open("wb" if first else "ab") as file:
            rows.numpy().tofile(file)

    def _path(self, layer: str) -> Path:
        if self._folder is None:
            self._keeper = _TemporaryFolder()
            self._folder = self._keeper.path
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{layer}.f32"


class _TemporaryFolder:
    """A folder that is gone with this; `tempfile`'s own warns where it is not closed by hand."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="features-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _selected(model: nn.Module, layers: LayerSpec | Sequence[SelectedLayer]) -> list[SelectedLayer]:
    """The chosen layers of this network, where they were chosen before: in this network or in one built the same."""
    if isinstance(layers, (str, type)) or not layers or not isinstance(layers[0], SelectedLayer):
        return select_for_views(model, layers, axes=(1, 2, 3))  # type: ignore[arg-type]
    modules = dict(model.named_modules(remove_duplicate=False))
    modules |= {name.replace("_orig_mod.", ""): module for name, module in modules.items()}
    chosen = [layer for layer in layers if isinstance(layer, SelectedLayer)]
    missing = [layer.name for layer in chosen if layer.name not in modules]
    if missing:
        raise LayerNotFoundError(f"{type(model).__name__} has no layer {missing}, which were chosen in another network")
    return [SelectedLayer(layer.name, modules[layer.name], layer.literal) for layer in chosen]


def _check_finite(rows: Tensor, layer: str, indices: Tensor) -> None:
    wrong = ~rows.isfinite().all(1)
    if bool(wrong.any()):
        image = int(indices[int(wrong.nonzero()[0])])
        raise ValueError(
            f"layer '{layer}' gives NaN or infinite features for image {image} ({int(wrong.sum())} of {len(rows)} "
            "images of the batch); a probe cannot be fitted on them"
        )


def _chosen(indices: Tensor, limit: int | None, part: tuple[int, int]) -> Tensor:
    """Places of the images that are read, where a loader gives them in an order of its own."""
    rank, count = part
    own = indices % count == rank
    return (own if limit is None else own & (indices < limit)).nonzero().flatten()


def _in_order(
    loader: Any, limit: int | None, indices: Tensor | None, part: tuple[int, int], seed: int
) -> DataLoader[Any] | None:
    """A loader of a part of the same data set, in the order of its indices; None where the part has no image."""
    drawn = drawn_images(len(loader.dataset), limit, seed) if indices is None else indices
    own = drawn[part[0] :: part[1]]
    if not len(own) and part[1] > 1:
        return None
    return DataLoader(
        loader.dataset,
        batch_sampler=[places.tolist() for places in own.split(loader.batch_size) if len(places)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
        generator=torch.Generator().manual_seed(seed),
    )
