"""Keeping the patches of the units that are in a running top-k, and no others."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_cnnviz.core.top_k import TopK, unpack

__all__ = ["PatchStore", "gathered"]

# Above this part of the image a patch is kept as a view of the image, which it shares with other such patches.
_NEARLY_WHOLE = 0.75

_Key = tuple[int, int, int]  # line, image, packed position


class PatchStore:
    """The patches behind some lines of a `TopK`.

    Most units that enter a list are soon pushed out again. So whole images are kept first, and cropped when they take
    more than `budget` bytes, or have waited long: then only what is still in a list is cropped, and the images are let
    go.

    Args:
        lines: `(S,)` int64, the lines (feature maps) of the `TopK` whose patches are kept.
        budget: Bytes of whole images that may wait to be cropped.
        patience: Number of batches for which an image may wait: later ones hardly ever enter a list.
    """

    def __init__(self, lines: Tensor, budget: int = 128 * 2**20, patience: int = 64) -> None:
        self._lines, self._budget, self._patience = lines, budget, patience
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
        needed = places[torch.isin(indices[places], top.images[self._lines])]
        if len(needed):
            # A copy in one piece: many small ones take several times as long.
            block = images.detach()[needed.to(images.device)].to("cpu", memory_format=torch.contiguous_format)
            self._images.update(zip(indices[needed].tolist(), block, strict=True))
            self._waiting += block.numel() * block.element_size()
        self._batches += 1
        if self._waiting > self._budget or (self._images and self._batches >= self._patience):
            self.settle(top)

    def settle(self, top: TopK) -> None:
        """Crop what is in a line now, and let go of everything else."""
        kept: dict[_Key, Tensor] = {}
        whole: dict[int, Tensor] = {}
        for key, box in self._entries(top.images[self._lines], top.details[self._lines]):
            patch = self._crops.get(key)
            kept[key] = self._crop(key[1], box, whole) if patch is None else patch
        self._crops = kept
        self._images = {}
        self._waiting = self._batches = 0

    @staticmethod
    def _entries(images: Tensor, details: Tensor) -> list[tuple[_Key, tuple[int, int, int, int]]]:
        """The filled places of the lines, in order, with their boxes."""
        top, left = unpack(details[..., 2])
        bottom, right = unpack(details[..., 3])
        boxes = torch.stack([top, left, bottom, right], dim=-1).tolist()
        positions = details[..., 1].tolist()
        return [
            ((line, image, positions[line][place]), tuple(boxes[line][place]))
            for line, entries in enumerate(images.tolist())
            for place, image in enumerate(entries)
            if image >= 0
        ]

    def _crop(self, index: int, box: tuple[int, int, int, int], whole: dict[int, Tensor]) -> Tensor:
        """Copy a patch out of a waiting image; `whole` holds the copies of images that nearly whole patches share."""
        image = self._images[index]
        top, left, bottom, right = box
        if (bottom - top) * (right - left) >= _NEARLY_WHOLE * image.shape[1] * image.shape[2]:
            if index not in whole:
                whole[index] = image.clone()
            return whole[index][:, top:bottom, left:right]
        # As bytes, for numpy does not know every dtype, and copies small pieces twice as fast as torch.
        size = image.element_size()
        piece = image.view(torch.uint8).numpy()[:, top:bottom, left * size : right * size]
        return torch.from_numpy(piece.copy()).view(image.dtype)

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
            found = list(self._exchanged(found, [box for _, box in entries]))
        lines: list[list[Tensor]] = [[] for _ in self._lines]
        for (key, _), patch in zip(entries, found, strict=True):
            if patch is None:
                raise RuntimeError(f"no rank has the patch of image {key[1]}")
            lines[key[0]].append(patch)
        return [tuple(line) for line in lines]

    def _exchanged(self, own: list[Tensor | None], boxes: list[tuple[int, int, int, int]]) -> list[Tensor | None]:
        """Every rank gives the patches that are its own, the lowest rank those that several have."""
        has = torch.stack(gathered(torch.tensor([patch is not None for patch in own], dtype=torch.uint8)))
        owners = has.argmax(0).tolist()
        rank = torch.distributed.get_rank()
        mine = [
            patch.flatten() for patch, owner in zip(own, owners, strict=True) if patch is not None and owner == rank
        ]
        streams = gathered(torch.cat([self._like.flatten(), *mine]))
        taken = [0] * len(streams)
        channels = self._like.shape[1]
        patches: list[Tensor | None] = []
        for (top, left, bottom, right), owner in zip(boxes, owners, strict=True):
            shape = (channels, bottom - top, right - left)
            count = shape[0] * shape[1] * shape[2]
            piece = streams[owner][taken[owner] : taken[owner] + count]
            patches.append(piece.view(shape).clone())
            taken[owner] += count
        return patches


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
