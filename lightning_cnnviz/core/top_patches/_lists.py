"""The running top-k lists of all chosen layers, with the patches of the feature maps that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered
from lightning_cnnviz.core.data.once import SeenImages
from lightning_cnnviz.core.network.layers import FeatureSpec, resolve_features
from lightning_cnnviz.core.top_patches._batch import Batch
from lightning_cnnviz.core.top_patches._reading import Reading
from lightning_cnnviz.core.top_patches._units import NO_LABEL, Units
from lightning_cnnviz.core.top_patches.activity import RunningActivity
from lightning_cnnviz.core.top_patches.patch_store import PatchStore
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, RankBy
from lightning_cnnviz.core.top_patches.top_k import TopK
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps

__all__ = ["RunningLists", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """What one of the miners that are served together was asked for.

    Attributes:
        layers: Their names.
        k: Number of units of each feature map.
        features: The feature maps whose patches are kept.
        whole_images: Whether the images of these patches are kept whole.
        sources: Whether they are kept in 8 bits.
    """

    layers: frozenset[str]
    k: int
    features: FeatureSpec
    whole_images: bool
    sources: bool = False


class RunningLists:
    """The top-k lists of all feature maps, one behind the other, layer by layer.

    Args:
        traced: The layers, in the order in which they run.
        wanted: What each of the miners was asked for; the lists serve them all.
        per_image: See `TopK`.
        dtype: See `TopK`.

    Attributes:
        seen: The images that have come.
        top: The lists.
        store: The patches.
        maxima: `(F,)`, the largest activation of each feature map.
        activity: What drives the feature maps whose patches are kept.
    """

    def __init__(
        self, traced: Sequence[FeatureMaps], wanted: Sequence[Wanted], per_image: int | None, dtype: torch.dtype
    ) -> None:
        self._lines: dict[str, slice] = {}
        self._features: dict[str, tuple[int, ...]] = {}
        total, kept, whole = 0, list[int](), list[bool]()
        deep = any(len(maps.shape) == 4 for maps in traced)
        for maps in traced:
            layer, channels = maps.layer, maps.shape[0]
            self._lines[layer] = slice(total, total + channels)
            self._features[layer] = _features(layer, channels, wanted)
            kept += [total + feature for feature in self._features[layer]]
            entire = _features(layer, channels, [each for each in wanted if each.whole_images])
            whole += [feature in entire for feature in self._features[layer]]
            total += channels
        self.seen = SeenImages()
        self.top = TopK(total, max(each.k for each in wanted), per_image=per_image, dtype=dtype, deep=deep)
        self.store = PatchStore(
            torch.tensor(kept, dtype=torch.int64), whole=whole, sources=any(each.sources for each in wanted)
        )
        self.maxima = torch.full((total,), -torch.inf, dtype=dtype)
        self.activity = RunningActivity(len(kept), self.seen)
        self._nonfinite = torch.full((len(traced),), torch.iinfo(torch.int64).max)  # lowest image of each layer
        self._strange = torch.zeros(total, dtype=torch.uint8)  # feature maps that were not finite on some image

    @property
    def layers(self) -> list[str]:
        """Their names, in order."""
        return list(self._lines)

    def admits(self, layer: str, scores: Tensor, batch: Batch) -> Tensor:
        """Say which of a batch's feature maps of a layer, with scores `(N, C)`, may enter the lists (see `TopK`)."""
        counted = batch.counted(scores.to(self.maxima.dtype))
        return self.top.admits(self._lines[layer].start, counted, None if batch.fresh else batch.indices)

    def take(self, batch: Batch, readings: Mapping[str, Reading], traced: Mapping[str, FeatureMaps]) -> None:
        """Update the lists of all layers with the readings of one pass, and keep the patches of what stays in them.

        Args:
            batch: The images.
            readings: One for each layer.
            traced: The layers' feature maps for images of this size.
        """
        lines, places, candidates = [], [], []
        for number, (layer, span) in enumerate(self._lines.items()):
            reading = readings[layer]
            if reading.nonfinite is not None and bool(reading.nonfinite.any()):
                strange = batch.indices[reading.nonfinite.any(1)]
                self._nonfinite[number] = min(self._nonfinite[number], strange.min())
                self._strange[span] |= reading.nonfinite.any(0).to(torch.uint8)
            largest = batch.counted(reading.maxima).amax(0).to(self.maxima.dtype)
            self.maxima[span] = torch.maximum(self.maxima[span], largest)
            if len(reading.entering):
                channels = span.stop - span.start
                place, channel = reading.entering // channels, reading.entering % channels
                lines.append(channel + span.start)
                places.append(place)
                candidates.append(_units(reading, place, channel, batch, traced[layer], self.maxima.dtype))
        if lines:
            line, place = torch.cat(lines), torch.cat(places)
            order = batch.by_line(line, place)
            together = Units(*map(torch.cat, zip(*candidates, strict=True)))
            self.top.update(*_by_line(line[order], together.each(lambda part: part[order])), fresh=batch.fresh)
        self._take_activity(batch, readings)
        self.seen.add(batch.indices)
        self.store.keep(self.top.units, batch.images, batch.indices, batch.places)

    def _take_activity(self, batch: Batch, readings: Mapping[str, Reading]) -> None:
        columns = [readings[layer].maxima[:, list(features)] for layer, features in self._features.items()]
        labels = None if batch.labels is None else batch.labels[batch.places]
        self.activity.update(batch.indices[batch.places], torch.cat(columns, 1)[batch.places], labels)

    def merge(self) -> None:
        """Merge the lists of all ranks; every rank calls this."""
        self.top.merge()
        self.store.merge(self.top.units)
        self.activity.merge()
        self.maxima = torch.stack(gathered(self.maxima)).amax(0)
        self._nonfinite = torch.stack(gathered(self._nonfinite)).amin(0)
        self._strange = torch.stack(gathered(self._strange)).amax(0)

    def results(self, rank_by: RankBy) -> tuple[LayerTopPatches, ...]:
        """Return the lists as they are now, layer by layer."""
        patches = iter(self.store.collect(self.top.units))
        # One that was above zero somewhere is alive, whatever it was elsewhere.
        maxima = self.maxima.masked_fill((self._strange > 0) & ~(self.maxima > 0), torch.nan)
        results, kept = [], 0
        for (layer, lines), lowest in zip(self._lines.items(), self._nonfinite.tolist(), strict=True):
            units = Units(*(part[lines].clone() for part in self.top.units))
            features = self._features[layer]
            labeled = bool((units.labels[units.images >= 0] != NO_LABEL).any())
            result = LayerTopPatches(
                layer=layer,
                rank_by=rank_by,
                scores=units.scores,
                activations=units.activations,
                images=units.images,
                labels=units.labels if labeled else None,
                rows=units.rows,
                columns=units.columns,
                depths=units.depths,
                boxes=units.boxes,
                maxima=maxima[lines].clone(),
                features=features,
                patches=tuple(next(patches) for _ in features),
                nonfinite=None if lowest == torch.iinfo(torch.int64).max else lowest,
                activity=self.activity.compute(slice(kept, kept + len(features)), features),
            )
            kept += len(features)
            results.append(result)
        return tuple(results)


def _features(layer: str, channels: int, wanted: Sequence[Wanted]) -> tuple[int, ...]:
    """The feature maps of a layer that anyone wants, ascending."""
    of_each = (resolve_features(layer, channels, each.features) for each in wanted if layer in each.layers)
    return tuple(sorted({feature for features in of_each for feature in features}))


def _units(
    reading: Reading, places: Tensor, channels: Tensor, batch: Batch, maps: FeatureMaps, dtype: torch.dtype
) -> Units:
    """The units `(E, units)` that may enter, with everything that is kept of them."""
    depths, rows, columns = _places(reading.positions, maps.shape[1:])
    own = (rows, columns) if depths is None else (depths, rows, columns)
    return Units.packed(
        scores=reading.scores.to(dtype),
        activations=reading.activations.to(dtype),
        images=batch.indices[places][:, None].expand_as(rows),
        labels=None if batch.labels is None else batch.labels[places][:, None].expand_as(rows),
        rows=rows,
        columns=columns,
        depths=depths,
        boxes=maps.field.box(channels[:, None].expand_as(rows), *own),
    )


def _places(positions: Tensor, size: Sequence[int]) -> tuple[Tensor | None, Tensor, Tensor]:
    """Depths (of volumes), rows and columns of positions in maps of a size; a signal is an image of one row."""
    columns, rest = positions % size[-1], positions // size[-1]
    if len(size) < 3:
        return None, rest, columns
    return rest // size[-2], rest % size[-2], columns


def _by_line(lines: Tensor, units: Units) -> tuple[Tensor, Units]:
    """Put units `(E, units)`, sorted by line, into one row for each line that has any: `(A, M)`, with empty places."""
    named, row, counts = lines.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(lines)) - (counts.cumsum(0) - counts)[row]
    shape, deep = (len(named), int(counts.max()), units.scores.shape[1]), units.depths is not None
    spread = Units.none(*shape, dtype=units.scores.dtype, deep=deep)
    for part, found in zip(spread, units, strict=True):
        part[row, place] = found
    return named, spread.each(lambda part: part.flatten(1, 2))
