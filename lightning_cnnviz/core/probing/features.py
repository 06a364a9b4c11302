"""Features of chosen layers for every image of a data set, from one pass: what linear probes are fitted on."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_cnnviz.core.data.batches import BatchFn, indexed_batches, read_batch
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked
from lightning_cnnviz.core.network.layers import LayerNotFoundError, LayerSpec, SelectedLayer, select_layers
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = [
    "DIMENSIONS",
    "FeatureTap",
    "Features",
    "LayerFeatures",
    "MapReader",
    "drawn_images",
    "first_of_each",
    "known_labels",
    "merge_features",
    "tap_features",
    "why_no_labels",
]

DIMENSIONS = 9216
"""Up to how many dimensions a layer's features are pooled by default, as VISSL does it."""

_CHUNK = 4096  # columns that are read at once from features on disk


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """The features of one layer.

    Attributes:
        layer: The layer's name.
        values: `(N, D)` float32 in memory, or None where they lie in `file`.
        shape: Channels, height and width of the layer's feature maps.
        pooled: Height and width to which the maps were pooled; D is channels times these.
        images: N.
        file: N rows of D float32 each, where features are too many for the memory.
    """

    layer: str
    values: Tensor | None
    shape: tuple[int, int, int]
    pooled: tuple[int, int]
    images: int
    file: Path | None = None
    _keeper: Any = field(default=None, repr=False)  # a temporary folder lives as long as what lies in it

    def __post_init__(self) -> None:
        if (self.values is None) == (self.file is None):
            raise ValueError(f"features of layer '{self.layer}' lie in memory or in a file, in one of both")
        if self.values is not None and self.values.shape != (self.images, self.dimensions):
            raise ValueError(
                f"features of layer '{self.layer}' are {tuple(self.values.shape)}, not {(self.images, self.dimensions)}"
            )

    @property
    def dimensions(self) -> int:
        """Number of features of an image."""
        return self.shape[0] * math.prod(self.pooled)

    def columns(self, start: int, stop: int) -> Tensor:
        """Return some features of all images, `(N, stop - start)` float32."""
        if self.values is not None:
            return self.values[:, start:stop]
        assert self.file is not None
        # Read and not mapped: pages of a mapped file count as this process's memory, and may be as large as the file.
        found = np.empty((self.images, stop - start), np.float32)
        with self.file.open("rb", buffering=0) as file:
            for row in range(self.images):
                file.seek(4 * (row * self.dimensions + start))
                if file.readinto(memoryview(found[row]).cast("B")) != found[row].nbytes:
                    raise ValueError(f"file {self.file} of layer '{self.layer}' ends before image {row}")
        return torch.from_numpy(found)

    def chunks(self, width: int = _CHUNK) -> Iterator[Tensor]:
        """Iterate over all features in column blocks `(N, width)`."""
        for start in range(0, self.dimensions, width):
            yield self.columns(start, min(start + width, self.dimensions))

    def dense(self) -> Tensor:
        """Return all features `(N, D)` in memory."""
        return self.columns(0, self.dimensions)


@dataclass(frozen=True, eq=False)
class Features:
    """The features of all images at all chosen layers; iterates over layers, in the order in which they run.

    Attributes:
        layers: One for each layer.
        labels: `(N,)` int64.
        indices: `(N,)` int64: data-set indices, ascending; the order of arrival where `known` is False.
        known: Whether the numbers are indices of the data set.
    """

    layers: tuple[LayerFeatures, ...]
    labels: Tensor
    indices: Tensor
    known: bool = True

    def among(self, indices: Tensor) -> Features:
        """Return the features, in memory, of those images alone whose index is among some."""
        kept = torch.isin(self.indices, indices)
        layers = tuple(
            replace(layer, values=layer.dense()[kept], images=int(kept.sum()), file=None, _keeper=None)
            for layer in self.layers
        )
        return Features(layers, self.labels[kept], self.indices[kept], self.known)

    def __iter__(self) -> Iterator[LayerFeatures]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: str) -> LayerFeatures:
        found = next((features for features in self.layers if features.layer == layer), None)
        if found is None:
            raise KeyError(f"no features of layer '{layer}'; there are {[features.layer for features in self.layers]}")
        return found


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
    share: tuple[int, int] = (0, 1),
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Features:
    """Read the features of all chosen layers in one pass over a data set.

    The network is run in eval mode and left as it was, as are the loader and all random number generators. A loader of
    a map-style data set is not asked for its order: its images are read in the order of their indices, by a loader of
    our own with the same transforms, where random ones give the same pixels at each call.

    Args:
        model: Any network that takes images `(N, C, H, W)`.
        loader: A DataLoader, or any iterable of batches with labels.
        layers: See `select_layers`, or what that has selected. A convolution chosen by kind is read behind the
            BatchNorm that directly follows it.
        pool: Feature maps are average-pooled to the finest grid with at most so many features; None keeps them whole,
            on disk.
        rectify: Whether convolutions chosen by kind are read behind a ReLU, as Zeiler & Fergus (2013, Table 7) do: what
            an average pooling leaves of unrectified maps is linear in the layer below. A layer chosen by name is read
            as it is.
        limit: At most so many images, drawn by `seed` where the data set has indices, else the first ones.
        indices: `(M,)` int64, ascending: only these images of the data set, which must have indices.
        folder: Where features that are not pooled are written, one file a layer; by default a temporary folder that is
            gone with the result.
        batch_fn: See `read_batch`.
        share: `(rank, ranks)`: read only every ranks-th image; see `merge_features`.
        seed: Of the draw and of random transforms.
        progress: Wraps the iterable of batches to show progress.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: No image, no class labels, features that are not finite (names the layer and the image), or a `pool`
            or `limit` below 1.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> found = tap_features(model, [(torch.rand(6, 1, 12, 12), torch.arange(6) % 2)], pool=100)
        >>> found["0"].pooled, found["2"].values.shape
        ((5, 5), torch.Size([6, 96]))
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give 1 or more images, or None for all")
    if indices is not None and not _has_indices(loader):
        raise ValueError(
            f"indices={tuple(indices.shape)}: the loader {type(loader).__name__} has no indices to choose by"
        )
    tap = FeatureTap(model, _selected(model, layers), pool=pool, rectify=rectify, folder=folder)
    parameter = next(model.parameters(), torch.empty(0))
    numbered = _has_indices(loader)
    with analysis_mode(model), tap, closing(_ordered_batches(loader, limit, indices, share, seed)) as batches:
        arrived = 0
        for batch, numbers in progress(batches) if progress is not None else batches:
            images, labels = read_batch(batch, batch_fn)
            if len(images) == 0:
                continue
            if numbers is None or len(numbers) != len(images):
                numbers, tap.known = torch.arange(arrived, arrived + len(images)), isinstance(loader, (list, tuple))
            arrived += len(images)
            if labels is None:
                raise ValueError(why_no_labels(batch, batch_fn))
            # Of a data set that is read by our own loader, only chosen images arrive.
            chosen = torch.arange(len(images)) if numbered else _chosen(numbers, limit, share)
            if len(chosen):
                images = images[chosen.to(images.device)].to(parameter.device)
                if images.is_floating_point():
                    images = images.to(parameter.dtype)  # as the trainer does with half and double precision
                tap.start_batch(images, numbers[chosen], labels[chosen.to(labels.device)])
                model(images)
                tap.end_batch()
        if arrived == 0 and share[1] == 1:
            raise ValueError(f"the loader {type(loader).__name__} is empty: it gave no image")
        return tap.compute()


class _TemporaryFolder:
    """A folder that is gone with this; `tempfile`'s own warns where it is not closed by hand."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="features-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class MapReader:
    """Reads features of chosen layers from one pass at a time: rectified, pooled, and no part of any graph.

    It is told of values by hooks that others place. What counts is a layer's first value for as many images as are
    expected: a network may be called once more for something else, and gradient checkpointing runs it twice.

    Args:
        model: The network.
        layers: From `select_layers`.
        pool: See `tap_features`.
        rectify: See `tap_features`.

    Attributes:
        maps: What the chosen layers give, in the order in which they run; empty before `expect`.
        grids: Of each layer its feature maps' shape and the grid that they are pooled to.
        values: Of each layer that has run `(N, D)`, in the network's precision.
        images: How many images are expected.

    Raises:
        ValueError: `pool` is below 1.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[SelectedLayer], *, pool: int | None, rectify: bool = True
    ) -> None:
        if pool is not None and pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer, or None for whole maps")
        self._model, self._chosen, self._pool = model, layers, pool
        self._rectified = {
            layer.name: rectify and isinstance(layer.module, nn.Conv2d) and not layer.literal for layer in layers
        }
        self.maps: list[FeatureMaps] = []
        self.grids: dict[str, tuple[tuple[int, int, int], tuple[int, int]]] = {}
        self.values: dict[str, Tensor] = {}
        self.images = 0

    @property
    def sites(self) -> dict[str, Site]:
        """Where to read."""
        return {maps.layer: maps.site for maps in self.maps}

    def expect(self, images: Tensor) -> None:
        """Get ready for a pass over `images` `(N, C, H, W)`, on the network's device; the first time they are traced.

        Raises:
            LayerNotFoundError: See `trace_feature_maps`.
        """
        if not self.maps:
            self.maps = trace_feature_maps(self._model, images[:1], self._chosen)
        self.values, self.images = {}, len(images)

    def take(self, layer: str, value: Any) -> None:
        """Read what a layer has given; a hook calls it.

        Raises:
            ValueError: Maps that are not pooled have another size than before.
        """
        if layer in self.values or not isinstance(value, Tensor) or len(value) != self.images:
            return
        maps = value.detach()
        if self._rectified[layer]:
            maps = maps.relu()
        if maps.ndim == 2:
            maps = maps[:, :, None, None]
        shape = (maps.shape[1], maps.shape[2], maps.shape[3])
        known, grid = self.grids.setdefault(layer, (shape, _grid(shape, self._pool)))
        if known != shape and self._pool is None:
            raise ValueError(
                f"feature maps of layer '{layer}' have different sizes ({known}, then {shape}): give images of one "
                "size, or pool=<number of features>"
            )
        pooled = maps if grid == shape[1:] else F.adaptive_avg_pool2d(maps.float(), grid)
        rows = pooled.flatten(1)
        # A copy: an in-place operation that follows would overwrite the layer's own.
        self.values[layer] = rows.clone() if rows.data_ptr() == value.data_ptr() else rows

    def check(self) -> None:
        """See that every layer has been read.

        Raises:
            ValueError: A layer has not run, or never over as many images as were expected.
        """
        missing = [maps.layer for maps in self.maps if maps.layer not in self.values]
        if missing:
            raise ValueError(
                f"a pass over {self.images} images was expected, but layers {missing} gave no features of so many; is "
                "the network called with the images of the batch, and is it not compiled?"
            )


class FeatureTap:
    """Gathers features from forward passes of any maker; hooks are there from `start_batch` to `end_batch`.

    Args:
        model: The network.
        layers: From `select_layers`.
        pool: See `tap_features`.
        rectify: See `tap_features`.
        folder: See `tap_features`.

    Raises:
        ValueError: `pool` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SelectedLayer],
        *,
        pool: int | None = DIMENSIONS,
        rectify: bool = True,
        folder: Path | None = None,
    ) -> None:
        self.known = True
        self._reader = MapReader(model, layers, pool=pool, rectify=rectify)
        self._whole, self._folder = pool is None, folder
        self._keeper: Any = None
        self._hooks = ExitStack()
        self._error: Exception | None = None
        self._chosen: Tensor | None = None
        self._parts: dict[str, list[Tensor]] = {}
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor, *, keep: Tensor | None = None) -> None:
        """Place hooks for the forward pass that follows.

        Args:
            images: `(N, C, H, W)` on the network's device.
            indices: `(N,)` int64.
            labels: `(N,)` int64.
            keep: Places of the images whose features are kept; by default of all.
        """
        self._reader.expect(images)
        self._error, self._chosen = None, keep
        self._hooks.enter_context(hooked(self._reader.sites, self._take))
        self._indices.append(indices.cpu() if keep is None else indices.cpu()[keep])
        self._labels.append(labels.cpu() if keep is None else labels.cpu()[keep])

    def end_batch(self) -> None:
        """Remove the hooks and keep what they saw.

        Raises:
            ValueError: See `tap_features`, `MapReader.take` and `MapReader.check`.
        """
        self._hooks.close()
        if self._error is not None:
            raise self._error
        self._reader.check()
        for maps in self._reader.maps:
            rows = self._reader.values.pop(maps.layer)
            rows = rows if self._chosen is None else rows[self._chosen.to(rows.device)]
            self._keep(maps.layer, _finite(rows.float().cpu(), maps.layer, self._indices[-1]))

    def close(self) -> None:
        """Remove the hooks."""
        self._hooks.close()
        self._reader.values.clear()

    def compute(self) -> Features:
        """Return the features of all batches, in the order of their indices, each image once; none before the first."""
        if not self._indices:
            return Features((), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), self.known)
        indices, labels = torch.cat(self._indices), torch.cat(self._labels)
        layers = []
        for maps in self._reader.maps:
            shape, pooled = self._reader.grids[maps.layer]
            if self._whole:
                file = self._path(maps.layer)
                layers.append(LayerFeatures(maps.layer, None, shape, pooled, len(indices), file, self._keeper))
            else:
                values = torch.cat(self._parts[maps.layer])
                layers.append(LayerFeatures(maps.layer, values, shape, pooled, len(indices)))
        return merge_features([Features(tuple(layers), labels, indices, self.known)])

    def _take(self, layer: str, value: Any) -> None:
        # A failure must not pass through the forward pass, which may be the user's.
        try:
            self._reader.take(layer, value)
        except Exception as error:
            self._error = error

    def _keep(self, layer: str, rows: Tensor) -> None:
        if not self._whole:
            self._parts.setdefault(layer, []).append(rows)
            return
        first = not self._parts.setdefault(layer, [])
        self._parts[layer] = [rows[:0]]
        with self._path(layer).open("wb" if first else "ab") as file:
            rows.numpy().tofile(file)

    def _path(self, layer: str) -> Path:
        if self._folder is None:
            self._keeper = _TemporaryFolder()
            self._folder = self._keeper.path
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{layer}.f32"


def merge_features(parts: Sequence[Features]) -> Features:
    """Put the shares of several ranks together: in the order of indices, each image once.

    Raises:
        ValueError: There is no image, or the parts have different layers.
    """
    parts = [part for part in parts if len(part.indices)]
    if not parts:
        raise ValueError("there are no features to merge: no part has an image")
    first = parts[0]
    if any([layer.layer for layer in part] != [layer.layer for layer in first] for part in parts):
        raise ValueError(f"features of different layers: {[[layer.layer for layer in part] for part in parts]}")
    indices = torch.cat([part.indices for part in parts])
    places = first_of_each(indices)
    known = all(part.known for part in parts)
    if len(parts) == 1 and torch.equal(places, torch.arange(len(indices))):
        return first
    labels = torch.cat([part.labels for part in parts])
    if any(layer.values is None for layer in first):
        raise ValueError(
            "features on disk (pool=None) are read in the order of the data set, by one process; the loader gives them "
            "in another: give a DataLoader of a map-style data set, or pool=<number of features>"
        )
    layers = tuple(
        LayerFeatures(
            layer.layer,
            torch.cat([part[layer.layer].dense() for part in parts])[places],
            layer.shape,
            layer.pooled,
            len(places),
        )
        for layer in first
    )
    return Features(layers, labels[places], indices[places], known)


def _selected(model: nn.Module, layers: LayerSpec | Sequence[SelectedLayer]) -> list[SelectedLayer]:
    """The chosen layers of this network, where they were chosen before: in this network or in one built the same."""
    if isinstance(layers, (str, type)) or not layers or not isinstance(layers[0], SelectedLayer):
        return select_layers(model, layers)  # type: ignore[arg-type]
    modules = dict(model.named_modules(remove_duplicate=False))
    modules |= {name.replace("_orig_mod.", ""): module for name, module in modules.items()}
    chosen = [layer for layer in layers if isinstance(layer, SelectedLayer)]
    missing = [layer.name for layer in chosen if layer.name not in modules]
    if missing:
        raise LayerNotFoundError(f"{type(model).__name__} has no layer {missing}, which were chosen in another network")
    return [SelectedLayer(layer.name, modules[layer.name], layer.literal) for layer in chosen]


def first_of_each(indices: Tensor) -> Tensor:
    """Return the places of the indices in ascending order, of repeated ones the first.

    Example:
        >>> first_of_each(torch.tensor([7, 3, 7, 5]))
        tensor([1, 3, 0])
    """
    order = torch.argsort(indices, stable=True)
    ranked = indices[order]
    fresh = torch.ones(len(ranked), dtype=torch.bool)
    fresh[1:] = ranked[1:] != ranked[:-1]
    return order[fresh]


def _grid(shape: tuple[int, int, int], pool: int | None) -> tuple[int, int]:
    """The finest grid of nearly square cells with at most `pool` features, or that of the maps."""
    channels, height, width = shape
    if pool is None or channels * height * width <= pool:
        return height, width
    cells = max(pool // channels, 1)
    rows = min(height, cells, max(1, math.floor(math.sqrt(cells * height / width))))
    return rows, min(width, max(1, cells // rows))


def _finite(rows: Tensor, layer: str, indices: Tensor) -> Tensor:
    wrong = ~rows.isfinite().all(1)
    if bool(wrong.any()):
        image = int(indices[int(wrong.nonzero()[0])])
        raise ValueError(
            f"layer '{layer}' gives NaN or infinite features for image {image} ({int(wrong.sum())} of {len(rows)} "
            "images of the batch); a probe cannot be fitted on them"
        )
    return rows


def _has_indices(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and hasattr(loader.dataset, "__len__")
    )


def _chosen(indices: Tensor, limit: int | None, share: tuple[int, int]) -> Tensor:
    """Places of the images that are read, where a loader gives them in an order of its own."""
    rank, ranks = share
    own = indices % ranks == rank
    return (own if limit is None else own & (indices < limit)).nonzero().flatten()


def drawn_images(count: int, limit: int | None, seed: int) -> Tensor:
    """Return the indices, ascending, of the images of a data set of `count` that are read at a limit.

    Example:
        >>> len(drawn_images(50, 7, seed=0)), drawn_images(3, 7, seed=0)
        (7, tensor([0, 1, 2]))
    """
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _ordered_batches(
    loader: Any, limit: int | None, indices: Tensor | None, share: tuple[int, int], seed: int
) -> Generator[tuple[Any, Tensor | None], None, None]:
    """Batches of a data set in the order of its indices; of other loaders as they come."""
    torch.manual_seed(seed)  # within analysis_mode, which restores it
    if not _has_indices(loader):
        yield from indexed_batches(loader)
        return
    count = len(loader.dataset)
    generator = torch.Generator().manual_seed(seed)
    drawn = drawn_images(count, limit, seed) if indices is None else indices
    own = drawn[share[0] :: share[1]].split(loader.batch_size)
    copy = DataLoader(
        loader.dataset,
        batch_sampler=[places.tolist() for places in own if len(places)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
        generator=generator,
    )
    yield from zip(copy, (places for places in own if len(places)), strict=True)


def known_labels(loader: Any) -> Tensor | None:
    """Return the class of each image of a loader's data set, `(N,)` int64, where it tells without reading images.

    Example:
        >>> from torch.utils.data import Subset, TensorDataset
        >>> images = TensorDataset(torch.rand(3, 1, 4, 4), torch.tensor([2, 0, 1]))
        >>> known_labels(DataLoader(Subset(images, [0, 2])))
        tensor([2, 1])
    """
    return _labels_of(loader.dataset) if _has_indices(loader) else None


def _labels_of(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and len(labels) == len(dataset) and not labels.is_floating_point()
    return labels.to(torch.int64) if whole and labels.dtype != torch.bool else None


def why_no_labels(batch: Any, batch_fn: BatchFn | None = None) -> str:
    """Say why `read_batch` finds no class labels in a batch, and what would do.

    Example:
        >>> why_no_labels((torch.rand(2, 1, 4, 4), torch.rand(2)))[:75]
        'a probe needs class numbers, but the labels are torch.float32 of shape (2,)'
    """
    found = batch if batch_fn is None else batch_fn(batch)
    if isinstance(found, Mapping):
        names = {"label", "labels", "y", "target", "targets"}
        labels = next((value for name, value in found.items() if name in names), None)
    else:
        labels = found[1] if isinstance(found, (list, tuple)) and len(found) > 1 else None
    mend = "give batch_fn=... that returns (images, labels) with labels (N,) int64"
    if not isinstance(labels, Tensor):
        got = "the batch has no labels" if labels is None else f"the batch's labels are a {type(labels).__name__}"
        return f"a probe needs the class of each image, but {got}; {mend}"
    what = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if labels.ndim > 1 and labels.shape[-1] > 1:
        return f"a probe needs one class an image, but the labels are {what}: multi-label data is not supported; {mend}"
    return f"a probe needs class numbers, but the labels are {what}; {mend}"
