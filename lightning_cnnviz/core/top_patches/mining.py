"""Mining the strongest units of every feature map from forward passes that somebody else makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.distributed import collective_device, gathered
from lightning_cnnviz.core.network.hooks import hooked
from lightning_cnnviz.core.network.layers import FeatureSpec, SelectedLayer, resolve_features
from lightning_cnnviz.core.top_patches.patch_store import PatchStore
from lightning_cnnviz.core.top_patches.top_k import NO_LABEL, TopK, pack, strongest_units, unpack
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = ["LayerTopPatches", "PatchMiner", "TopPatches"]

# Feature maps are copied to look for positions in pieces of this many elements, which stay in the cache.
_CHUNK = 2**18
# Feature maps of this many units are searched where they lie, one by one; smaller ones are copied together first.
_LARGE = 1024
# Of images with an index up to here, a byte each remembers whether they have come. One beyond this that comes
# twice counts once all the same, but where random transforms make it differ, its patch may be from either time.
_MOST_SEEN = 2**24


@dataclass(frozen=True, eq=False)
class LayerTopPatches:
    """The k strongest units of every feature map of one layer, strongest first.

    Attributes:
        layer: The layer's name.
        activations: `(C, k)`; -inf where there were fewer than k units.
        images: `(C, k)` int64, data-set indices; -1 where empty.
        labels: `(C, k)` int64, or None where the data has none.
        rows: `(C, k)` int64, the units' rows in the feature map.
        columns: `(C, k)` int64.
        boxes: `(C, k, 4)` int64, receptive fields in the image: top, left, bottom, right, half-open, clipped.
        features: Feature maps whose patches were kept, ascending.
        patches: For each of `features` its patches `(image channels, bottom - top, right - left)`, in the values that
            the network was given, strongest first (fewer than k where there were fewer units).
        nonfinite: The lowest index of an image with a feature map whose largest activation is NaN or infinite, or None.
            Such activations are never ranked.
    """

    layer: str
    activations: Tensor
    images: Tensor
    labels: Tensor | None
    rows: Tensor
    columns: Tensor
    boxes: Tensor
    features: tuple[int, ...]
    patches: tuple[tuple[Tensor, ...], ...]
    nonfinite: int | None = None

    def __post_init__(self) -> None:
        shape = self.activations.shape
        for name in ("images", "rows", "columns"):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"layer '{self.layer}': {name} {tuple(getattr(self, name).shape)} is not {tuple(shape)}"
                )
        if self.boxes.shape != (*shape, 4) or len(self.features) != len(self.patches):
            raise ValueError(f"layer '{self.layer}': boxes or patches do not fit activations {tuple(shape)}")

    def patch(self, feature: int, rank: int = 0) -> Tensor:
        """Return one patch `(image channels, height, width)`.

        Raises:
            KeyError: The patches of this feature map were not kept, or there are fewer.
        """
        if feature not in self.features or rank >= len(self.patches[self.features.index(feature)]):
            raise KeyError(f"layer '{self.layer}' has no patch {rank} of feature {feature}; kept are {self.features}")
        return self.patches[self.features.index(feature)][rank]


@dataclass(frozen=True, eq=False)
class TopPatches:
    """What `mine_top_patches` found, layer by layer in the order in which they run.

    Attributes:
        layers: One entry a layer.
        k: Number of units asked for, of each feature map.
        indices_known: Whether images are numbered as in the data set; else as they arrived.
    """

    layers: tuple[LayerTopPatches, ...]
    k: int
    indices_known: bool = True

    def __getitem__(self, layer: str) -> LayerTopPatches:
        for found in self.layers:
            if found.layer == layer:
                return found
        raise KeyError(f"no layer '{layer}'; there are {[found.layer for found in self.layers]}")

    def __iter__(self) -> Iterator[LayerTopPatches]:
        return iter(self.layers)

    def narrowed(self, layers: Iterable[str], k: int, features: FeatureSpec) -> TopPatches:
        """Return what mining fewer layers, units and feature maps would have found."""
        chosen = set(layers)
        return TopPatches(
            tuple(_narrowed(found, k, features) for found in self.layers if found.layer in chosen),
            min(k, self.k),
            self.indices_known,
        )


def _narrowed(found: LayerTopPatches, k: int, features: FeatureSpec) -> LayerTopPatches:
    shown = resolve_features(found.layer, len(found.activations), features)
    patches = dict(zip(found.features, found.patches, strict=True))
    shown = tuple(feature for feature in shown if feature in patches)
    return LayerTopPatches(
        found.layer,
        found.activations[:, :k],
        found.images[:, :k],
        None if found.labels is None else found.labels[:, :k],
        found.rows[:, :k],
        found.columns[:, :k],
        found.boxes[:, :k],
        shown,
        tuple(patches[feature][:k] for feature in shown),
        found.nonfinite,
    )


@dataclass
class _Found:
    """Units of one layer that may enter its lists."""

    layer: str
    maps: Tensor  # (E,), which of the batch's feature maps: place of the image * channels + channel
    values: Tensor  # (E, units), strongest first, -inf for none
    positions: Tensor  # (E, units), row by row


@dataclass
class _Batch:
    """The batch that is under way.

    Attributes:
        seen: Which of its images have come in an earlier batch `(N,)`.
        places: Places of its images that count, in the order of their indices. An image that comes twice counts the
            first time: the second may be another, by the data set's random transforms.
        fresh: Whether all its images come behind all earlier ones, as those of a sequential loader do.
        done: Layers whose feature maps have been read.
        waiting: Of layers that are searched at the batch's end: which images have nonfinite activations `(N,)`, and of
            each feature map the strongest units' values and positions, `(N * C, units)` each.
        found: What enters the lists at the batch's end.
        error: What went wrong inside a hook: it must not pass through the user's own forward pass.
    """

    images: Tensor
    indices: Tensor
    labels: Tensor | None
    highest: int
    seen: Tensor
    done: set[str] = field(default_factory=set)
    waiting: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    found: list[_Found] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.size = _size(self.images)
        ordered, order = self.indices.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self.places = order[first & ~self.seen[order]]
        self._again = torch.ones(len(order), 1, dtype=torch.bool)
        self._again[self.places] = False
        self._all_count = len(self.places) == len(order)
        self._rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        self.fresh = int(ordered[0]) > self.highest
        self.highest = max(self.highest, int(ordered[-1]))

    def counting(self, peaks: Tensor) -> Tensor:
        """Maxima `(N, C)` without those of images that have come before."""
        return peaks if self._all_count else peaks.masked_fill(self._again, -torch.inf)

    def by_line(self, lines: Tensor, places: Tensor) -> Tensor:
        """The order in which units of some lines and images stand line by line, in the order of images' indices."""
        return (lines * len(self._rank) + self._rank[places]).argsort()


class _Lists:
    """The running lists of all feature maps, with the patches of those that are shown; those of one look."""

    def __init__(
        self,
        traced: Sequence[FeatureMaps],
        k: int,
        features: FeatureSpec,
        units: int | None,
        *,
        wide: bool,
        whole: FeatureSpec,
    ) -> None:
        self.first: dict[str, int] = {}
        self.channels = {maps.layer: maps.shape[0] for maps in traced}
        self.shown = {maps.layer: resolve_features(maps.layer, maps.shape[0], features) for maps in traced}
        total = 0
        for layer, channels in self.channels.items():
            self.first[layer] = total
            total += channels
        lines, complete = [], []
        for layer, shown in self.shown.items():
            lines += [self.first[layer] + feature for feature in shown]
            entire = set(resolve_features(layer, self.channels[layer], whole))
            complete += [feature in entire for feature in shown]
        self.top = TopK(total, k, per_image=units, dtype=torch.float64 if wide else torch.float32)
        self.store = PatchStore(torch.tensor(lines, dtype=torch.int64), whole=complete)
        self.nonfinite: dict[str, int] = {}
        self.highest = -1  # index of an image so far
        self._seen = torch.zeros(1, dtype=torch.bool)  # by index

    def seen(self, indices: Tensor) -> Tensor:
        """Which images have come in an earlier batch."""
        known = indices.clamp(0, len(self._seen) - 1)
        return self._seen[known] & (known == indices)

    def note_seen(self, indices: Tensor) -> None:
        indices = indices[(indices >= 0) & (indices < _MOST_SEEN)]
        missing = int(indices.max()) + 1 - len(self._seen) if len(indices) else 0
        if missing > 0:
            self._seen = torch.cat([self._seen, self._seen.new_zeros(max(missing, len(self._seen)))])
        self._seen[indices] = True

    def note_nonfinite(self, layer: str, indices: Tensor) -> None:
        if len(indices):
            lowest = int(indices.min())
            self.nonfinite[layer] = min(lowest, self.nonfinite.get(layer, lowest))

    def lowest_nonfinite(self) -> dict[str, int | None]:
        """The lowest image with nonfinite activations, of all ranks'."""
        none = torch.iinfo(torch.int64).max
        own = torch.tensor([self.nonfinite.get(layer, none) for layer in self.first])
        lowest = torch.stack(gathered(own)).amin(0).tolist()
        return {layer: None if image == none else image for layer, image in zip(self.first, lowest, strict=True)}


class PatchMiner:
    """Mines top-k patches from forward passes that somebody else makes: hooks that read, and a running top-k.

    Say before and after each batch what it is; the hooks live from the first batch to `close`:

        with miner:
            for images, indices, labels in batches:
                miner.start_batch(images, indices, labels)
                model(images)
                miner.end_batch()
            result = miner.compute()

    Each feature map is read once, for its spatial maximum; positions, boxes and patches are looked up only for what
    enters a list. Memory does not grow with the number of images, but for a byte each.

    Args:
        model: The network.
        layers: From `select_layers`.
        k: Number of units of each feature map.
        features: See `mine_top_patches`.
        per_image: See `mine_top_patches`.
        at_once: Whether to look up positions inside the hooks, for the few maps that enter; else for all maps, and to
            rank at the batch's end, so that hooks never wait for the device. By default so on the CPU alone.
        whole_images: Feature maps by layer, of whose kept patches the whole images are kept, see `images`.

    Attributes:
        indices_known: Whether the indices given to `start_batch` are those of the data set.

    Raises:
        ValueError: k, per_image or features are out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SelectedLayer],
        *,
        k: int = 9,
        features: FeatureSpec = 16,
        per_image: int | None = 1,
        at_once: bool | None = None,
        whole_images: Mapping[str, int | Sequence[int] | None] | None = None,
    ) -> None:
        TopK(0, k, per_image=per_image)  # refuses wrong numbers before anything runs
        _check_features(layers, features)
        self._model, self._layers, self._k, self._features = model, layers, k, features
        self._per_image, self._at_once, self._whole = per_image, at_once, whole_images or {}
        self._units = k if per_image is None else min(per_image, k)
        self._traced: dict[tuple[int, int], dict[str, FeatureMaps]] = {}
        self._lists: _Lists | None = None
        self._batch: _Batch | None = None
        self._hooks = ExitStack()
        self.indices_known = True

    def __enter__(self) -> PatchMiner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and forget everything but the traced receptive fields: ready for another look."""
        self._hooks.close()
        self._batch = None
        self._lists = None

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Announce the batch that the network is about to be given.

        Args:
            images: `(N, C, H, W)`, at least one.
            indices: `(N,)` int64, each image's index in the data set.
            labels: `(N,)` int64, or None.

        Raises:
            LayerNotFoundError: At the first batch: a named layer does not run exactly once in a pass.
            ValueError: At the first batch: a feature index is out of range.
        """
        self._batch = None
        size = _size(images)
        if size not in self._traced:
            traced = trace_feature_maps(self._model, images[:1], self._layers)
            self._traced[size] = {maps.layer: maps for maps in traced}
        if self._lists is None:
            all_maps = list(self._traced[size].values())
            wide = any(parameter.dtype == torch.float64 for parameter in self._model.parameters())
            with torch.inference_mode(False):  # tensors made in inference mode could not be written to later
                self._lists = _Lists(all_maps, self._k, self._features, self._per_image, wide=wide, whole=self._whole)
            self._hooks.enter_context(hooked({maps.layer: maps.site for maps in all_maps}, self._observe))
        indices, labels = indices.cpu(), None if labels is None else labels.cpu()
        self._batch = _Batch(images, indices, labels, self._lists.highest, self._lists.seen(indices))

    def _observe(self, layer: str, maps: Any) -> None:
        """Take one layer's feature maps, inside the network's own pass."""
        batch = self._batch
        if batch is None or batch.error is not None or layer in batch.done:
            return  # our own tracing pass, or a second pass of the same step: the first one counts
        batch.done.add(layer)
        try:
            self._read(layer, self._checked(layer, maps, batch), batch)
        except Exception as error:
            batch.error = error

    def _checked(self, layer: str, maps: Any, batch: _Batch) -> Tensor:
        expected = (len(batch.images), *self._traced[batch.size][layer].shape)
        if isinstance(maps, Tensor) and maps.ndim == 2:
            maps = maps[..., None, None]
        if not isinstance(maps, Tensor) or tuple(maps.shape) != expected:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"layer '{layer}' gave {got} where the batch's images give {expected}: the network was run on other "
                "images than the batch's. Give batch_fn=... that returns the images that the network is given"
            )
        return maps.detach()

    def _read(self, layer: str, maps: Tensor, batch: _Batch) -> None:
        assert self._lists is not None
        if self._at_once is False or (self._at_once is None and maps.device.type != "cpu"):
            finite = torch.isfinite(maps)
            values, positions = strongest_units(torch.where(finite, maps, -torch.inf).flatten(0, 1), self._units)
            batch.waiting[layer] = (~torch.isfinite(maps.amax((2, 3))).all(1), values, positions)
            return
        peaks = _wide(maps.amax((2, 3)))
        if not np.isfinite(peaks.numpy()).all():
            self._lists.note_nonfinite(layer, batch.indices[~torch.isfinite(peaks).all(1)])
            maps = torch.where(torch.isfinite(maps), maps, -torch.inf)
            peaks = _wide(maps.amax((2, 3)))
        entering = self._entering(layer, peaks, batch)
        if not len(entering):
            return
        if self._units == 1:
            found = peaks.view(-1, 1)[entering], _positions(maps, entering)
        else:
            found = _strongest_units(maps, entering, self._units)
        batch.found.append(_Found(layer, entering, *found))

    def _entering(self, layer: str, peaks: Tensor, batch: _Batch) -> Tensor:
        """Which of the batch's feature maps, with maxima `(N, C)`, may enter the lists."""
        assert self._lists is not None
        indices = None if batch.fresh else batch.indices
        return self._lists.top.admits(self._lists.first[layer], batch.counting(peaks), indices)

    def _details(self, found: _Found, places: Tensor, channels: Tensor, batch: _Batch) -> Tensor:
        """What is kept beside the values of units, `(E, units, 4)` int32, as `TopK` wants it."""
        maps = self._traced[batch.size][found.layer]
        rows, columns = found.positions // maps.shape[2], found.positions % maps.shape[2]
        boxes = maps.field.box(channels[:, None].expand_as(rows), rows, columns)
        labels = torch.full_like(places, NO_LABEL) if batch.labels is None else batch.labels[places]
        details = [
            labels[:, None].expand_as(rows).to(torch.int32),
            pack(rows, columns),
            pack(boxes[..., 0], boxes[..., 1]),
            pack(boxes[..., 2], boxes[..., 3]),
        ]
        return torch.stack(details, dim=-1)

    def end_batch(self) -> None:
        """Rank what the hooks have left to rank, and keep the images that have patches in the lists.

        Raises:
            ValueError: The network was run on other images than the batch's.
            RuntimeError: A chosen layer has not run, for example in a network that was compiled before.
        """
        batch, self._batch = self._batch, None
        if batch is None or self._lists is None:
            return
        if batch.error is not None:
            raise batch.error
        missing = [layer for layer in self._lists.first if layer not in batch.done]
        if missing:
            raise RuntimeError(self._never_ran(missing))
        with torch.inference_mode(False), torch.no_grad():
            for layer, waiting in batch.waiting.items():
                strange, values, positions = (found.cpu() for found in waiting)
                self._lists.note_nonfinite(layer, batch.indices[strange])
                peaks = _wide(values[:, 0].view(len(batch.images), -1))
                entering = self._entering(layer, peaks, batch)
                batch.found.append(_Found(layer, entering, values[entering], positions[entering]))
            self._enter(batch)

    def _enter(self, batch: _Batch) -> None:
        """Let what was found enter the lists, all layers at once, and keep the images that are in them."""
        lists = self._lists
        assert lists is not None
        if batch.found:
            lines, places, values, details = [], [], [], []
            for found in batch.found:
                channels = lists.channels[found.layer]
                place, channel = found.maps // channels, found.maps % channels
                lines.append(channel + lists.first[found.layer])
                places.append(place)
                values.append(_filled(found.values.to(lists.top.values.dtype), self._units))
                details.append(_filled(self._details(found, place, channel, batch), self._units))
            line, place = torch.cat(lines), torch.cat(places)
            order = batch.by_line(line, place)
            candidates = (line, torch.cat(values), batch.indices[place], torch.cat(details))
            lists.top.update(*_by_line(*(part[order] for part in candidates)), fresh=batch.fresh)
        lists.highest = batch.highest
        lists.note_seen(batch.indices)
        lists.store.keep(lists.top, batch.images, batch.indices, batch.places)

    def _never_ran(self, missing: list[str]) -> str:
        names = ", ".join(f"'{name}'" for name in missing[:4]) + (", ..." if len(missing) > 4 else "")
        compiled = any(
            type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
            for module in self._model.modules()
        )
        if compiled:
            return (
                f"the hooks on layer {names} were never called: the network is compiled (torch.compile), and compiled "
                "code does not see hooks. Give data=<a loader>, for a pass of its own that runs uncompiled, or compile "
                "the network only for training"
            )
        return (
            f"layer {names} did not run when this batch was processed, although it runs in the network's forward pass: "
            'give model="..." to name the network that the step runs, or data=<a loader> for a pass of its own'
        )

    @property
    def images(self) -> Mapping[int, Tensor]:
        """The whole images `(C, H, W)` that this rank has of those that were asked for, and some more, by index."""
        return {} if self._lists is None else self._lists.store.whole

    def compute(self) -> TopPatches:
        """Return what was found since the first batch, merged over all ranks (each of which calls this).

        Raises:
            ValueError: There was no image.
        """
        lists = self._lists
        if lists is None:
            raise ValueError("no image was seen")
        if lists.top.update_count == 0:
            # Nothing finite was seen; torchmetrics warns of a metric that was never updated.
            lists.top.update(torch.empty(0, dtype=torch.int64), *_no_candidates(lists.top))
        lists.top.to(collective_device())
        values, images, details = (state.cpu() for state in lists.top.compute())
        patches = iter(lists.store.collect(images, details))
        strange = lists.lowest_nonfinite()
        found = []
        for layer, first in lists.first.items():
            lines = slice(first, first + lists.channels[layer])
            shown = lists.shown[layer]
            kept = tuple(next(patches) for _ in shown)
            result = _layer_result(layer, values[lines], images[lines], details[lines], shown, kept, strange[layer])
            found.append(result)
        return TopPatches(tuple(found), self._k, self.indices_known)


def _check_features(layers: Sequence[SelectedLayer], features: FeatureSpec) -> None:
    for layer in layers:
        channels = getattr(layer.module, "out_channels", None)
        if isinstance(channels, int) and channels > 0:
            resolve_features(layer.name, channels, features)
    if isinstance(features, Mapping):
        names = [layer.name for layer in layers]
        strange = [name for name in features if name not in names]
        if strange:
            raise ValueError(f"features names the layers {strange}, which are not among those chosen: {names}")


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    if max(height, width) >= 2**15:
        raise ValueError(f"images of {height} x {width} px are too large: at most 32,767 px a side")
    return height, width


def _wide(values: Tensor) -> Tensor:
    """Values in float32 or float64, which hold those of the half precisions exactly; numpy has no bfloat16."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _positions(maps: Tensor, entering: Tensor) -> Tensor:
    """Where some of the feature maps `(N, C, H, W)` have their maximum, the first of equal ones: `(E, 1)`, row by row.

    With numpy, whose argmax is several times faster than torch's maximum with indices.
    """
    if maps.is_contiguous() and maps.dtype in (torch.float32, torch.float64):
        flat = maps.view(maps.shape[0] * maps.shape[1], -1).numpy()
        if flat.shape[1] >= _LARGE:
            return torch.tensor([[int(flat[number].argmax())] for number in entering.tolist()])
    step = max(1, _CHUNK // (maps.shape[2] * maps.shape[3]))
    found = [_wide(_pick(maps, some)).flatten(1).numpy().argmax(1) for some in entering.split(step)]
    return torch.from_numpy(np.concatenate(found)).unsqueeze(1)


def _strongest_units(maps: Tensor, entering: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Values and positions `(E, units)` of the strongest units of some of the feature maps `(N, C, H, W)`."""
    step = max(1, _CHUNK // (maps.shape[2] * maps.shape[3]))
    found = [strongest_units(_pick(maps, some), units) for some in entering.split(step)]
    values, positions = zip(*found, strict=True)
    return torch.cat(values), torch.cat(positions)


def _pick(maps: Tensor, numbers: Tensor) -> Tensor:
    """Some of the feature maps `(N, C, H, W)`: `(E, H, W)`; whole rows of memory where they lie so."""
    if maps.is_contiguous():
        return maps.flatten(0, 1).index_select(0, numbers)
    return maps[numbers // maps.shape[1], numbers % maps.shape[1]]


def _filled(found: Tensor, units: int) -> Tensor:
    """Units `(E, n, ...)` filled up to `(E, units, ...)`: a small feature map has fewer than are asked for."""
    missing = units - found.shape[1]
    if missing == 0:
        return found
    fill = -torch.inf if found.is_floating_point() else 0
    return torch.cat([found, found.new_full((len(found), missing, *found.shape[2:]), fill)], dim=1)


def _by_line(lines: Tensor, values: Tensor, images: Tensor, details: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidates `(E, units)` as one row for each line that has any, filled up with -inf; equal lines are together."""
    rows, row, counts = lines.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(lines)) - (counts.cumsum(0) - counts)[row]
    length = int(counts.max()) if len(counts) else 0

    def spread(found: Tensor, fill: float) -> Tensor:
        filled = found.new_full((len(rows), length, *found.shape[1:]), fill)
        filled[row, place] = found
        return filled.flatten(1, 2)

    images = images[:, None].expand_as(values)
    return rows, spread(values, -torch.inf), spread(images, -1), spread(details, 0)


def _no_candidates(top: TopK) -> tuple[Tensor, Tensor, Tensor]:
    return top.values[:0], top.images[:0], top.details[:0]


def _layer_result(
    layer: str,
    values: Tensor,
    images: Tensor,
    details: Tensor,
    features: tuple[int, ...],
    patches: tuple[tuple[Tensor, ...], ...],
    nonfinite: int | None,
) -> LayerTopPatches:
    rows, columns = unpack(details[..., 1])
    boxes = torch.stack([*unpack(details[..., 2]), *unpack(details[..., 3])], dim=-1)
    labels = details[..., 0].to(torch.int64)
    labelled = bool((labels[images >= 0] != NO_LABEL).any())
    return LayerTopPatches(
        layer,
        values.clone(),
        images.clone(),
        labels if labelled else None,
        rows,
        columns,
        boxes,
        features,
        patches,
        nonfinite,
    )
