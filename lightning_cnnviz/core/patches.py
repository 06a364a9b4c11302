"""Keeping the patches of the units that are in a running top-k, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_cnnviz.core.top_k import TopK, unpack

__all__ = ["PatchStore", "exchanged", "gathered"]

# Above this part of the image a patch is kept as a view of the image, which it shares with other such patches.
_NEARLY_WHOLE = 0.75

_Key = tuple[int, int, int]  # line, image, packed position


class PatchStore:
    """The patches behind some lines of a `TopK`.

    Most units that enter a list are soon pushed out again. So an image that many units need waits in full, and where
    few need it, their patches are copied at once. When all this takes more than `budget` bytes, or has waited long,
    what is still in a list is cropped, and everything else is let go.

    Args:
        lines: `(S,)` int64, the lines (feature maps) of the `TopK` whose patches are kept.
        budget: Bytes of images and patches that may wait.
        patience: Number of batches for which they may wait: later ones hardly ever enter a list.
        whole: Whether images stay whole as long as one of their patches is in a list.

    Attributes:
        whole: The images that patches share, by index: with `whole`, of all patches that this rank has seen.
    """

    def __init__(self, lines: Tensor, budget: int = 128 * 2**20, patience: int = 64, *, whole: bool = False) -> None:
        self._lines, self._budget, self._patience = lines, budget, patience
        self._part = 0.0 if whole else _NEARLY_WHOLE
        self.whole: dict[int, Tensor] = {}
        self._batches = 0
        self._images: dict[int, Tensor] = {}
        self._waiting = 0
        self._crops: dict[_Key, Tensor] = {}
        self._like = torch.empty(0)

    def keep(self, top: TopK, images: Tensor, indices: Tensor, places: Tensor) -> None:
        """Keep the images of a batch that are in one of the lines.

        Args:
            top: The lists.
            images: `(N, C, H, W)`.
            indices: `(N,)` int64.
            places: Places of the images that may be in the lists: others have come before.
        """
        self._like = torch.empty(0, images.shape[1], dtype=images.dtype)
        images = images.detach()
        listed = top.images[self._lines]
        new = torch.isin(listed, indices[places])
        if bool(new.any()):
            entries = self._entries(listed, top.details[self._lines], new)
            place = {int(indices[position]): position for position in places.tolist()}
            area: dict[int, int] = {}
            for (_, index, _), (upper, left, lower, right) in entries:
                area[index] = area.get(index, 0) + (lower - upper) * (right - left)
            # Where copies cost a transfer each, one of the whole image is cheaper than any.
            few = self._part * images.shape[2] * images.shape[3] if images.device.type == "cpu" and self._part else -1
            self._wait(images, indices, torch.tensor([place[index] for index in area if area[index] > few]))
            for key, box in entries:
                if key[1] not in self._images:
                    self._crops[key] = patch = _copied(images[place[key[1]]], box)
                    self._waiting += patch.numel() * patch.element_size()
        self._batches += 1
        if self._waiting > self._budget or (self._waiting and self._batches >= self._patience):
            self.settle(top)

    def _wait(self, images: Tensor, indices: Tensor, places: Tensor) -> None:
        if len(places):
            # A copy in one piece: many small ones take several times as long.
            block = images[places.to(images.device)].to("cpu", memory_format=torch.contiguous_format)
            self._images.update(zip(indices[places].tolist(), block, strict=True))
            self._waiting += block.numel() * block.element_size()

    def settle(self, top: TopK) -> None:
        """Crop what is in a line now, and let go of everything else."""
        kept: dict[_Key, Tensor] = {}
        for key, box in self._entries(top.images[self._lines], top.details[self._lines]):
            patch = self._crops.get(key)
            kept[key] = self._crop(key[1], box) if patch is None else patch
        self._crops = kept
        listed = {index for _, index, _ in kept}
        self.whole = {index: image for index, image in self.whole.items() if index in listed}
        self._images = {}
        self._waiting = self._batches = 0

    @staticmethod
    def _entries(
        images: Tensor, details: Tensor, which: Tensor | None = None
    ) -> list[tuple[_Key, tuple[int, int, int, int]]]:
        """The filled places of the lines (or those that `which` marks), in order, with their boxes."""
        line, rank = (images >= 0 if which is None else which).nonzero(as_tuple=True)
        chosen = details[line, rank]
        boxes = torch.stack([*unpack(chosen[:, 2]), *unpack(chosen[:, 3])], dim=-1)
        keys = zip(line.tolist(), images[line, rank].tolist(), chosen[:, 1].tolist(), strict=True)
        return [(key, (box[0], box[1], box[2], box[3])) for key, box in zip(keys, boxes.tolist(), strict=True)]

    def _crop(self, index: int, box: tuple[int, int, int, int]) -> Tensor:
        """Copy a patch out of a waiting image; nearly whole patches of one image share a copy of it."""
        image = self._images[index]
        top, left, bottom, right = box
        if (bottom - top) * (right - left) >= self._part * image.shape[1] * image.shape[2]:
            if index not in self.whole:
                self.whole[index] = image.clone()
            return self.whole[index][:, top:bottom, left:right]
        return _copied(image, box)

    def collect(self, images: Tensor, details: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the patches of the merged lists, a tuple a line, wherever they were found.

        Call it after `settle`, on every rank.

        Args:
            images: `(F, k)`, as `TopK.compute` gives them.
            details: `(F, k, 4)`, likewise.
        """
        entries = self._entries(images[self._lines], details[self._lines])
        found = [self._crops.get(key) for key, _ in entries]
        if _ranks() > 1:
            found = list(exchanged(found, [box for _, box in entries], self._like))
        lines: list[list[Tensor]] = [[] for _ in self._lines]
        for (key, _), patch in zip(entries, found, strict=True):
            if patch is None:
                raise RuntimeError(f"no rank has the patch of image {key[1]}")
            lines[key[0]].append(patch)
        return [tuple(line) for line in lines]


def _copied(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    top, left, bottom, right = box
    if image.stride(-1) != 1:
        return image[:, top:bottom, left:right].clone(memory_format=torch.contiguous_format)
    # As bytes, for numpy does not know every dtype, and copies small pieces twice as fast as torch.
    size = image.element_size()
    piece = image.view(torch.uint8).numpy()[:, top:bottom, left * size : right * size]
    return torch.from_numpy(piece.copy()).view(image.dtype)


def exchanged(
    own: Sequence[Tensor | None], boxes: Sequence[tuple[int, int, int, int]], like: Tensor
) -> list[Tensor | None]:
    """Bring together what each rank has a part of; every rank gives what is its own, the lowest what several have.

    Args:
        own: Pixels `(C, bottom - top, right - left)` or None, in the same order on every rank.
        boxes: Top, left, bottom, right of each.
        like: `(0, C)`, of the pixels' dtype.
    """
    if _ranks() == 1:
        return list(own)
    has = torch.stack(gathered(torch.tensor([pixels is not None for pixels in own], dtype=torch.uint8)))
    owners = has.argmax(0).tolist()
    rank = torch.distributed.get_rank()
    mine = [pixels.flatten() for pixels, owner in zip(own, owners, strict=True) if pixels is not None and owner == rank]
    streams = gathered(torch.cat([like.flatten(), *mine]))
    taken = [0] * len(streams)
    found: list[Tensor | None] = []
    for (top, left, bottom, right), owner in zip(boxes, owners, strict=True):
        shape = (like.shape[1], bottom - top, right - left)
        count = shape[0] * shape[1] * shape[2]
        found.append(streams[owner][taken[owner] : taken[owner] + count].view(shape).clone())
        taken[owner] += count
    return found


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every rank's tensor (shapes may differ), on the CPU; collectives of GPU back ends run on the GPU."""
    if _ranks() == 1:
        return [tensor]
    device = collective_device()
    return [part.cpu() for part in gather_all_tensors(tensor.to(device))]


def collective_device() -> torch.device:
    """Where tensors must be for the process group to exchange them."""
    if _ranks() > 1 and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _ranks() -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()
