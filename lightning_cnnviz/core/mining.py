"""Mining the strongest units of every feature map from forward passes that somebody else makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.capture import FeatureMaps, hooked, trace_feature_maps
from lightning_cnnviz.core.layers import FeatureSpec, SelectedLayer, resolve_features
from lightning_cnnviz.core.patches import PatchStore, collective_device, gathered
from lightning_cnnviz.core.top_k import NO_LABEL, TopK, pack, unpack

__all__ = ["LayerTopPatches", "PatchMiner", "TopPatches"]

# Feature maps are copied to look for positions in pieces of this many elements.
_CHUNK = 2**24

_Locate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        nonfinite: The lowest index of an image with NaN or infinite activations, or None. They are never ranked.
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
                raise ValueError(f"layer '{self.layer}': {name} {tuple(getattr(self, name).shape)} is not {tuple(shape)}")
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


@dataclass
class _Batch:
    """The batch that is under way."""

    images: Tensor
    indices: Tensor
    labels: Tensor | None
    done: set[str] = field(default_factory=set)
    waiting: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = (int(self.images.shape[-2]), int(self.images.shape[-1]))
        # In the order of their indices, so that ties fall as they must; an image that comes twice counts once.
        order = self.indices.sort(stable=True).indices
        ordered = self.indices[order]
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        self.order = order[fresh]


class PatchMiner:
    """Mines top-k patches from forward passes that somebody else makes: hooks that read, and a running top-k.

    Use it as a context (hooks live inside it), and say before and after each batch what it is:

        with miner:
            for images, indices, labels in batches:
                miner.start_batch(images, indices, labels)
                model(images)
                miner.end_batch()
            result = miner.compute()

    Each feature map is read once, for its spatial maximum; positions, boxes and patches are looked up only for what
    enters a list. Memory does not grow with the number of images.

    Args:
        model: The network.
        layers: From `select_layers`.
        k: Number of units of each feature map.
        features: See `mine_top_patches`.
        per_image: See `mine_top_patches`.
        at_once: Whether to look up positions inside the hooks, for the few maps that enter; else for all maps, and to
            rank at the batch's end, so that hooks never wait for the device. By default so on the CPU alone.

    Attributes:
        indices_known: Whether the indices given to `start_batch` are those of the data set.
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
    ) -> None:
        TopK(0, k, per_image=per_image)  # refuses wrong numbers before anything runs
        self._model, self._layers, self._k, self._features = model, layers, k, features
        self._per_image, self._at_once = per_image, at_once
        self._check_features()
        self._traced: dict[tuple[int, int], dict[str, FeatureMaps]] = {}
        self._batch: _Batch | None = None
        self._hooks = ExitStack()
        self.indices_known = True

    def _check_features(self) -> None:
        for layer in self._layers:
            channels = getattr(layer.module, "out_channels", None)
            if isinstance(channels, int) and channels > 0:
                resolve_features(layer.name, channels, self._features)
        if isinstance(self._features, Mapping):
            names = [layer.name for layer in self._layers]
            strange = [name for name in self._features if name not in names]
            if strange:
                raise ValueError(f"features names the layers {strange}, which are not among those chosen: {names}")

    def __enter__(self) -> PatchMiner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and forget the current batch; what was found stays."""
        self._batch = None
        self._hooks.close()

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Announce the batch that the network is about to be given.

        Args:
            images: `(N, C, H, W)`.
            indices: `(N,)` int64, each image's index in the data set.
            labels: `(N,)` int64, or None.

        Raises:
            LayerNotFoundError: At the first batch: a named layer does not run exactly once in a pass.
            ValueError: At the first batch: a feature index is out of range.
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if len(images) == 0:
            self._batch = None
            return
        if size not in self._traced:
            traced = trace_feature_maps(self._model, images[:1], self._layers)
            self._traced[size] = {maps.layer: maps for maps in traced}
            if len(self._traced) == 1:
                self._prepare(traced)
        self._batch = _Batch(images, indices.cpu(), None if labels is None else labels.cpu())

    def _prepare(self, traced: list[FeatureMaps]) -> None:
        self._first: dict[str, int] = {}
        shown: list[int] = []
        self._shown: dict[str, tuple[int, ...]] = {}
        self._channels = {maps.layer: maps.shape[0] for maps in traced}
        total = 0
        for maps in traced:
            self._first[maps.layer] = total
            self._shown[maps.layer] = resolve_features(maps.layer, maps.shape[0], self._features)
            shown += [total + feature for feature in self._shown[maps.layer]]
            total += maps.shape[0]
        wide = any(parameter.dtype == torch.float64 for parameter in self._model.parameters())
        dtype = torch.float64 if wide else torch.float32
        self._top = TopK(total, self._k, per_image=self._per_image, dtype=dtype)
        self._store = PatchStore(torch.tensor(shown, dtype=torch.int64))
        self._nonfinite: dict[str, int] = {}
        self._hooks.enter_context(hooked({maps.layer: maps.site for maps in traced}, self._observe))

    def _observe(self, layer: str, maps: Any) -> None:
        """Read one layer's feature maps, inside the network's own pass."""
        batch = self._batch
        if batch is None or layer in batch.done:
            return  # our own tracing pass, or a second pass of the same step: the first one counts
        with torch.inference_mode(False), torch.no_grad():
            maps = self._checked(layer, maps, batch)
            batch.done.add(layer)
            peaks = maps.amax((2, 3))
            if self._at_once is False or (self._at_once is None and peaks.device.type != "cpu"):
                strange = ~torch.isfinite(peaks).all(1)
                finite = torch.where(torch.isfinite(maps), maps, -torch.inf)
                batch.waiting[layer] = (strange, *_strongest(finite.flatten(2).flatten(0, 1), self._top.per_image))
                return
            if not bool(torch.isfinite(peaks).all()):
                self._note_nonfinite(layer, ~torch.isfinite(peaks).all(1), batch)
                maps = torch.where(torch.isfinite(maps), maps, -torch.inf)
                peaks = maps.amax((2, 3))
            self._rank(layer, peaks, lambda n, c: _strongest_of(maps, n, c, self._top.per_image), batch)

    def _checked(self, layer: str, maps: Any, batch: _Batch) -> Tensor:
        channels, height, width = self._traced[batch.size][layer].shape
        expected = (len(batch.images), channels, height, width)
        if isinstance(maps, Tensor) and maps.ndim == 2:
            maps = maps[..., None, None]
        if not isinstance(maps, Tensor) or tuple(maps.shape) != expected:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"layer '{layer}' gave {got} where the batch's images give {expected}: the network was run on other "
                "images than the batch's. Give batch_fn=... that returns the images that the network is given"
            )
        return maps.detach()

    def _note_nonfinite(self, layer: str, strange: Tensor, batch: _Batch) -> None:
        if bool(strange.any()):
            lowest = int(batch.indices[strange].min())
            self._nonfinite[layer] = min(lowest, self._nonfinite.get(layer, lowest))

    def _rank(self, layer: str, peaks: Tensor, locate: _Locate, batch: _Batch) -> None:
        """Let the units that are strong enough enter the lists of their feature maps."""
        first = self._first[layer]
        peaks = peaks[batch.order].T
        enters = self._top.admits(first, peaks, batch.indices[batch.order]) & (peaks > -torch.inf)
        if int(enters.sum()) > self._k * len(peaks):
            # While the lists fill up: no more than k of a batch can stay.
            strongest = peaks.masked_fill(~enters, -torch.inf).sort(dim=1, descending=True, stable=True).indices
            enters &= torch.zeros_like(enters).scatter_(1, strongest[:, : self._k], True)
        channels, order = enters.nonzero(as_tuple=True)
        if len(channels) == 0:
            return
        images = batch.order[order]
        values, positions = locate(images, channels)
        maps = self._traced[batch.size][layer]
        rows, columns = positions // maps.shape[2], positions % maps.shape[2]
        boxes = maps.field.box(channels[:, None].expand_as(rows), rows, columns)
        labels = batch.labels[images] if batch.labels is not None else torch.full_like(images, NO_LABEL)
        details = [labels[:, None].expand_as(rows), pack(rows, columns)]
        details += [pack(boxes[..., 0], boxes[..., 1]), pack(boxes[..., 2], boxes[..., 3])]
        found = torch.stack([detail.to(torch.int32) for detail in details], dim=-1)
        rows, *candidates = _by_feature(channels, values, batch.indices[images], found)
        self._top.update(rows + first, *candidates)

    def end_batch(self) -> None:
        """Rank what the hooks have left to rank, and keep the images that have patches in the lists.

        Raises:
            RuntimeError: A chosen layer has not run, for example in a network that was compiled before.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return
        missing = [layer for layer in self._first if layer not in batch.done]
        if missing:
            raise RuntimeError(self._never_ran(missing))
        with torch.inference_mode(False), torch.no_grad():
            for layer, waiting in batch.waiting.items():
                strange, values, positions = (tensor.cpu() for tensor in waiting)
                self._note_nonfinite(layer, strange, batch)
                values, positions = (found.unflatten(0, (len(batch.images), -1)) for found in (values, positions))
                self._rank(layer, values[..., 0], _look_up(values, positions), batch)
            self._store.keep(self._top, batch.images, batch.indices)

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

    def compute(self) -> TopPatches:
        """Return what was found, merged over all ranks (each of which calls this).

        Raises:
            ValueError: There was no image.
        """
        if not self._traced:
            raise ValueError("no image was seen")
        if self._top.update_count == 0:
            # Nothing finite was seen; torchmetrics warns of a metric that was never updated.
            self._top.update(*(torch.empty(0, *shape, dtype=dtype) for shape, dtype in _NO_CANDIDATES))
        self._store.settle(self._top)
        self._top.to(collective_device())
        values, images, details = (state.cpu() for state in self._top.compute())
        self._top.to("cpu")
        patches = iter(self._store.collect(images, details))
        strange = self._lowest_nonfinite()
        found = []
        for layer, first in self._first.items():
            lines = slice(first, first + self._channels[layer])
            shown = self._shown[layer]
            kept = tuple(next(patches) for _ in shown)
            result = _layer_result(layer, values[lines], images[lines], details[lines], shown, kept, strange[layer])
            found.append(result)
        return TopPatches(tuple(found), self._k, self.indices_known)

    def _lowest_nonfinite(self) -> dict[str, int | None]:
        none = torch.iinfo(torch.int64).max
        own = torch.tensor([self._nonfinite.get(layer, none) for layer in self._first])
        lowest = torch.stack(gathered(own)).amin(0).tolist()
        return {layer: None if image == none else image for layer, image in zip(self._first, lowest, strict=True)}


_NO_CANDIDATES = (((), torch.int64), ((1,), torch.float32), ((1,), torch.int64), ((1, 4), torch.int32))


def _strongest(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The strongest units `(E, count)` of feature maps `(E, H * W)`, and where; equal ones in order of position."""
    if count == 1:
        values, positions = flat.max(dim=1, keepdim=True)
    else:
        values, positions = flat.sort(dim=1, descending=True, stable=True)
    return values[:, :count], positions[:, :count]


def _strongest_of(maps: Tensor, images: Tensor, channels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`_strongest` of some of the maps `(N, C, H, W)`, copied piece by piece."""
    step = max(1, _CHUNK // (maps.shape[2] * maps.shape[3]))
    pieces = [
        _strongest(maps[n, c].flatten(1), count)
        for n, c in zip(images.split(step), channels.split(step), strict=True)
    ]
    return torch.cat([values for values, _ in pieces]), torch.cat([positions for _, positions in pieces])


def _look_up(values: Tensor, positions: Tensor) -> _Locate:
    return lambda images, channels: (values[images, channels], positions[images, channels])


def _by_feature(
    channels: Tensor, values: Tensor, images: Tensor, details: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidates (E, units) as one line for each feature map that has any, filled up with -inf.

    `channels` is ascending.
    """
    units = values.shape[1]
    rows, line, counts = channels.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(channels)) - (counts.cumsum(0) - counts)[line]
    length = int(counts.max())

    def spread(found: Tensor, fill: float) -> Tensor:
        lines = found.new_full((len(rows), length, *found.shape[1:]), fill)
        lines[line, place] = found
        return lines.flatten(1, 2)

    return (
        rows,
        spread(values, -torch.inf),
        spread(images[:, None].expand(-1, units), -1),
        spread(details, 0),
    )


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
