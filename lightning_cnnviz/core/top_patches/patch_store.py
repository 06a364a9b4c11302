"""Keeps the patches of the units that are in a running top-k, and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import exchanged, gathered_objects, ranks
from lightning_cnnviz.core.top_patches._units import Units
from lightning_cnnviz.core.top_patches.results import SourceImage
from lightning_cnnviz.core.tracing.boxes import box_size, cropped, volume_of

__all__ = ["PatchStore"]

# A patch that covers at least this fraction of its image is kept as a view of one copy of the whole image.
_NEARLY_WHOLE = 0.75
# So is one that covers this fraction, if the patches that enter with it from the same image together exceed the image.
_LARGE_PART = 0.1

_Key = tuple[int, int]  # image, packed position
_Box = tuple[int, ...]


class PatchStore:
    """The patches behind some lines of a `TopK`.

    A patch is copied when its unit enters a list, and let go when the unit is pushed out.

    Args:
        lines: `(S,)` int64, the lines (feature maps) of the `TopK` whose patches are kept.
        whole: For each line, whether the images of its patches are kept whole; by default none are.
        sources: Whether the images of all patches are kept in 8 bits, see `SourceImage`.

    Attributes:
        whole: By index, the images that are kept whole, of those that this rank has seen.
    """

    def __init__(self, lines: Tensor, whole: Sequence[bool] | None = None, *, sources: bool = False) -> None:
        self._lines = lines
        self._sources: dict[int, SourceImage] | None = {} if sources else None
        self._uses: Counter[int] = Counter()  # of each image, the number of its patches
        self._parts = [0.0 if entire else _NEARLY_WHOLE for entire in whole or [False] * len(lines)]
        self.whole: dict[int, Tensor] = {}
        self._sharing: Counter[int] = Counter()  # of each whole image, the number of its patches
        self._held: list[dict[_Key, Tensor]] = [{} for _ in lines]
        self._like, self._axes = torch.empty(0), 2

    def keep(self, units: Units, images: Tensor, indices: Tensor, places: Tensor) -> None:
        """Cut out the patches of a batch whose units are in one of the lines; drop those whose units no longer are.

        Args:
            units: `(F, k)`, what is in the lists now.
            images: `(N, C, H, W)`, or signals or volumes.
            indices: `(N,)` int64.
            places: Places in the batch of the images that count; the others came in an earlier batch.
        """
        self._like, self._axes = torch.empty(0, images.shape[1], dtype=images.dtype), images.ndim - 2
        listed = units.images[self._lines]
        new = torch.isin(listed, indices[places])
        lines = new.any(1).nonzero().flatten()
        if not len(lines):
            return
        source = self._source(images.detach(), indices, places, listed[new])
        wanted = self._wanted(units, lines)
        entering: list[tuple[int, _Key, _Box]] = []
        for line, boxes in zip(lines.tolist(), wanted, strict=True):
            held = self._held[line]
            for key in held.keys() - boxes.keys():
                self._let_go(key[0], held.pop(key))
                self._uses[key[0]] -= 1
            entering += [(line, key, boxes[key]) for key in boxes.keys() - held.keys()]
        shared = self._shared(entering, images.shape[2:].numel())
        for line, key, box in entering:
            part = min(self._parts[line], _LARGE_PART) if key[0] in shared else self._parts[line]
            self._held[line][key] = self._take(key[0], source[key[0]], box, part)
            self._uses[key[0]] += 1
        if self._sources is not None:
            self._uses = +self._uses  # without those that have no patch any more
            self._sources = {index: image for index, image in self._sources.items() if index in self._uses}
            for index in {key[0] for _, key, _ in entering} - self._sources.keys():
                self._sources[index] = SourceImage.of(index, source[index])

    @staticmethod
    def _shared(entering: Sequence[tuple[int, _Key, _Box]], whole: int) -> set[int]:
        """The images whose large patches together exceed them: one copy of the image takes less memory."""
        areas: Counter[int] = Counter()
        for _, (image, _), box in entering:
            area = volume_of(box)
            if area >= _LARGE_PART * whole:
                areas[image] += area
        return {image for image, area in areas.items() if area > whole}

    @staticmethod
    def _source(images: Tensor, indices: Tensor, places: Tensor, needed: Tensor) -> dict[int, Tensor]:
        """The images of the batch that are needed, by index, on the CPU."""
        places = places[torch.isin(indices[places], needed)]
        if images.device.type != "cpu":
            # In one transfer: one for each patch would take longer.
            images, indices = images[places.to(images.device)].cpu(), indices[places]
            places = torch.arange(len(places))
        return {int(indices[place]): images[place] for place in places.tolist()}

    def _wanted(self, units: Units, lines: Tensor | None = None) -> list[dict[_Key, _Box]]:
        """The units of each line, or of some lines, as (image, position), with their boxes."""
        kept = self._lines if lines is None else self._lines[lines]
        units = units.each(lambda part: part[kept])
        each_line = zip(units.images.tolist(), units.positions.tolist(), units.boxes.tolist(), strict=True)
        return [
            {(image, position): tuple(box) for image, position, box in zip(*line, strict=True) if image >= 0}
            for line in each_line
        ]

    def _take(self, index: int, image: Tensor, box: _Box, part: float) -> Tensor:
        """Copy a patch; one that covers at least `part` of its image is a view of a shared copy of the image."""
        if volume_of(box) < part * image.shape[1:].numel():
            return _copied(cropped(image, box))
        if index not in self.whole:
            self.whole[index] = _copied(image)
        self._sharing[index] += 1
        return cropped(self.whole[index], box)

    def _let_go(self, index: int, patch: Tensor) -> None:
        whole = self.whole.get(index)
        if whole is None or whole.untyped_storage().data_ptr() != patch.untyped_storage().data_ptr():
            return
        self._sharing[index] -= 1
        if self._sharing[index] == 0:
            del self._sharing[index], self.whole[index]

    def merge(self, units: Units) -> None:
        """Give every rank the patches of the merged lists `(F, k)`, whichever rank has found them.

        Raises:
            RuntimeError: No rank has one of them.
        """
        if ranks() == 1:
            return
        wanted = self._wanted(units)
        own = [held.get(key) for held, boxes in zip(self._held, wanted, strict=True) for key in boxes]
        patches = iter(exchanged(own, [self._shape(box) for boxes in wanted for box in boxes.values()], self._like))
        self._held = [{key: _there(next(patches)) for key in boxes} for boxes in wanted]
        if self._sources is not None:
            shown = {key[0] for boxes in wanted for key in boxes}
            everyones = [image for part in gathered_objects(self._sources) for image in part.values()]
            self._sources = {image.index: image for image in reversed(everyones) if image.index in shown}

    def _shape(self, box: _Box) -> tuple[int, ...]:
        return self._like.shape[-1], *box_size(box)[-self._axes :]

    @property
    def sources(self) -> tuple[SourceImage, ...]:
        """The images of all patches, by ascending index; none where they were not asked for."""
        return tuple(image for _, image in sorted((self._sources or {}).items()))

    def collect(self, units: Units) -> list[tuple[Tensor, ...]]:
        """Return the patches of what is in the lists `(F, k)`, a tuple a line."""
        return [tuple(held[key] for key in boxes) for held, boxes in zip(self._held, self._wanted(units), strict=True)]


def _there(patch: Tensor | None) -> Tensor:
    if patch is None:
        raise RuntimeError("no rank has some of the patches")
    return patch


def _copied(pixels: Tensor) -> Tensor:
    copy = torch.empty(pixels.shape, dtype=pixels.dtype)
    if pixels.stride(-1) != 1:
        return copy.copy_(pixels)
    # As bytes, for numpy does not know every dtype, and copies small pieces twice as fast as torch.
    np.copyto(_bytes(copy), _bytes(pixels))
    return copy


def _bytes(pixels: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return pixels.view(torch.uint8).numpy()
