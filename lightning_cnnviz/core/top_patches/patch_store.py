"""Keeping the patches of the units that are in a running top-k, and no others."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import exchanged, ranks
from lightning_cnnviz.core.top_patches._units import Units

__all__ = ["PatchStore"]

# Above this part of the image a patch is kept as a view of the image, which it shares with other such patches.
_NEARLY_WHOLE = 0.75
# So are patches above this part, where those that an image gives at once are together larger than the image.
_LARGE_PART = 0.1
# Smaller blocks than this are the allocator's.
_LARGE = 2**15

_Key = tuple[int, int]  # image, packed position
_Box = tuple[int, int, int, int]


class PatchStore:
    """The patches behind some lines of a `TopK`.

    A patch is copied when its unit enters a list, and the memory of one that is pushed out serves for the next.

    Args:
        lines: `(S,)` int64, the lines (feature maps) of the `TopK` whose patches are kept.
        whole: Of each line, whether the images of its patches stay whole; by default of none.

    Attributes:
        whole: The images that patches share, by index, of those that this rank has seen.
    """

    def __init__(self, lines: Tensor, whole: Sequence[bool] | None = None) -> None:
        self._lines = lines
        self._parts = [0.0 if entire else _NEARLY_WHOLE for entire in whole or [False] * len(lines)]
        self.whole: dict[int, Tensor] = {}
        self._sharing: Counter[int] = Counter()  # of each whole image, the number of its patches
        self._held: list[dict[_Key, Tensor]] = [{} for _ in lines]
        self._memory = _Memory()
        self._like = torch.empty(0)

    def keep(self, units: Units, images: Tensor, indices: Tensor, places: Tensor) -> None:
        """Keep the patches of a batch that are in one of the lines, and let go of those that no longer are.

        Args:
            units: `(F, k)`, what is in the lists now.
            images: `(N, C, H, W)`.
            indices: `(N,)` int64.
            places: Places of the images that may be in the lists: others have come before.
        """
        self._like = torch.empty(0, images.shape[1], dtype=images.dtype)
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
            entering += [(line, key, boxes[key]) for key in boxes.keys() - held.keys()]
        shared = self._shared(entering, images.shape[2] * images.shape[3])
        for line, key, box in entering:
            part = min(self._parts[line], _LARGE_PART) if key[0] in shared else self._parts[line]
            self._held[line][key] = self._take(key[0], source[key[0]], box, part)

    @staticmethod
    def _shared(entering: Sequence[tuple[int, _Key, _Box]], whole: int) -> set[int]:
        """The images whose large patches are together larger than they are: one copy of them takes less."""
        areas: Counter[int] = Counter()
        for _, (image, _), (top, left, bottom, right) in entering:
            area = (bottom - top) * (right - left)
            if area >= _LARGE_PART * whole:
                areas[image] += area
        return {image for image, area in areas.items() if area > whole}

    @staticmethod
    def _source(images: Tensor, indices: Tensor, places: Tensor, needed: Tensor) -> dict[int, Tensor]:
        """The images of the batch that are needed, by index, on the CPU."""
        places = places[torch.isin(indices[places], needed)]
        if images.device.type != "cpu":
            # At once: a transfer of each patch would take longer.
            images, indices = images[places.to(images.device)].cpu(), indices[places]
            places = torch.arange(len(places))
        return {int(indices[place]): images[place] for place in places.tolist()}

    def _wanted(self, units: Units, lines: Tensor | None = None) -> list[dict[_Key, _Box]]:
        """What is in the lines now, or in some of them, with boxes."""
        kept = self._lines if lines is None else self._lines[lines]
        units = units.each(lambda part: part[kept])
        each_line = zip(units.images.tolist(), units.positions.tolist(), units.boxes.tolist(), strict=True)
        return [
            {(image, position): tuple(box) for image, position, box in zip(*line, strict=True) if image >= 0}
            for line in each_line
        ]

    def _take(self, index: int, image: Tensor, box: _Box, part: float) -> Tensor:
        """Copy a patch out of its image; those of at least a part of one image share a copy of it."""
        top, left, bottom, right = box
        if (bottom - top) * (right - left) < part * image.shape[1] * image.shape[2]:
            patch = image[:, top:bottom, left:right]
            return _copied(patch, self._memory.take(patch.shape, image.dtype))
        if index not in self.whole:
            self.whole[index] = _copied(image, self._memory.take(image.shape, image.dtype))
        self._sharing[index] += 1
        return self.whole[index][:, top:bottom, left:right]

    def _let_go(self, index: int, patch: Tensor) -> None:
        whole = self.whole.get(index)
        if whole is None or whole.untyped_storage().data_ptr() != patch.untyped_storage().data_ptr():
            self._memory.give_back(patch)
            return
        self._sharing[index] -= 1
        if self._sharing[index] == 0:
            del self._sharing[index]
            self._memory.give_back(self.whole.pop(index))

    def merge(self, units: Units) -> None:
        """Give every rank the patches of the merged lists `(F, k)`, whichever rank has found them.

        Raises:
            RuntimeError: No rank has one of them.
        """
        if ranks() == 1:
            return
        wanted = self._wanted(units)
        own = [held.get(key) for held, boxes in zip(self._held, wanted, strict=True) for key in boxes]
        patches = iter(exchanged(own, [box for boxes in wanted for box in boxes.values()], self._like))
        self._held = [{key: _there(next(patches)) for key in boxes} for boxes in wanted]

    def collect(self, units: Units) -> list[tuple[Tensor, ...]]:
        """Return the patches of what is in the lists `(F, k)`, a tuple a line."""
        self._memory.keeps = False  # what is shown stays as it is, should more batches come
        return [tuple(held[key] for key in boxes) for held, boxes in zip(self._held, self._wanted(units), strict=True)]


def _there(patch: Tensor | None) -> Tensor:
    if patch is None:
        raise RuntimeError("no rank has some of the patches")
    return patch


class _Memory:
    """Blocks of memory that are taken and given back.

    Large ones lie outside of the allocator's heap: one that stays there, among the short-lived feature maps of the
    passes, can make the allocator get fresh pages for these, batch after batch, which costs several per cent of a pass.

    Attributes:
        keeps: Whether blocks that are given back serve again.
    """

    def __init__(self) -> None:
        self.keeps = True
        self._free: dict[int, list[Tensor]] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor, not filled."""
        size = dtype.itemsize
        for length in shape:
            size *= length
        room = _room(size)
        free = self._free.get(room)
        return (free.pop() if free else _block(room))[:size].view(dtype).view(*shape)

    def give_back(self, taken: Tensor) -> None:
        """Let a block serve again."""
        if not self.keeps:
            return
        storage = taken.untyped_storage()
        self._free.setdefault(storage.nbytes(), []).append(torch.tensor([], dtype=torch.uint8).set_(storage))


def _room(size: int) -> int:
    """The size of a block for so many bytes: one of eight sizes between powers of two, so that blocks serve again."""
    step = max(64, 1 << max(0, size.bit_length() - 4))
    return -(-max(size, 1) // step) * step


def _block(room: int) -> Tensor:
    if room < _LARGE:
        return torch.empty(room, dtype=torch.uint8)
    populate = getattr(mmap, "MAP_POPULATE", None)
    if populate is None:
        pages = mmap.mmap(-1, room, access=mmap.ACCESS_COPY)
    else:  # all pages at once: one by one, as they are written to, takes twice as long as the copy itself
        pages = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | populate)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _copied(pixels: Tensor, to: Tensor) -> Tensor:
    if pixels.stride(-1) != 1:
        return to.copy_(pixels)
    # As bytes, for numpy does not know every dtype, and copies small pieces twice as fast as torch.
    np.copyto(_bytes(to), _bytes(pixels))
    return to


def _bytes(pixels: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return pixels.view(torch.uint8).numpy()
