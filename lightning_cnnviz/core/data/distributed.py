"""What the ranks of a distributed run say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["agreed", "collective_device", "exchanged", "gathered", "gathered_objects", "rank", "ranks", "summed"]


def exchanged(
    own: Sequence[Tensor | None], boxes: Sequence[tuple[int, int, int, int]], like: Tensor
) -> list[Tensor | None]:
    """Bring together pixels of which each rank has some; what several ranks have, the lowest of them gives.

    Args:
        own: Pixels `(C, bottom - top, right - left)` or None, in the same order on every rank.
        boxes: Top, left, bottom, right of each.
        like: `(0, C)`, of the pixels' dtype.
    """
    if ranks() == 1:
        return list(own)
    has = torch.stack(gathered(torch.tensor([pixels is not None for pixels in own], dtype=torch.uint8)))
    owners = has.argmax(0).tolist()
    rank = torch.distributed.get_rank()
    mine = [pixels.flatten() for pixels, owner in zip(own, owners, strict=True) if pixels is not None and owner == rank]
    streams = gathered(torch.cat([like.flatten(), *mine]))
    taken = [0] * len(streams)
    whole: list[Tensor | None] = []
    for (top, left, bottom, right), owner in zip(boxes, owners, strict=True):
        shape = (like.shape[1], bottom - top, right - left)
        count = shape[0] * shape[1] * shape[2]
        whole.append(streams[owner][taken[owner] : taken[owner] + count].view(shape).clone())
        taken[owner] += count
    return whole


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every rank's tensor (shapes may differ), on the CPU; collectives of GPU back ends run on the GPU."""
    if ranks() == 1:
        return [tensor]
    from torchmetrics.utilities.distributed import gather_all_tensors  # takes seconds to load

    device = collective_device()
    return [part.cpu() for part in gather_all_tensors(tensor.to(device))]


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of every rank's tensor (of one shape), on the CPU."""
    if ranks() == 1:
        return tensor
    total = tensor.to(collective_device(), copy=True)
    torch.distributed.all_reduce(total)
    return total.cpu()


def collective_device() -> torch.device:
    """Where tensors must be for the process group to exchange them."""
    if ranks() > 1 and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def ranks() -> int:
    """Return how many processes train together; 1 where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def rank() -> int:
    """Return which of the processes this is, from 0; 0 where there is no process group."""
    return torch.distributed.get_rank() if ranks() > 1 else 0


def agreed(flags: Sequence[bool]) -> list[bool]:
    """Return which of some flags are true on every rank; every rank gives as many, in the same order."""
    if ranks() == 1 or not flags:
        return list(flags)
    return torch.stack(gathered(torch.tensor(flags, dtype=torch.uint8))).bool().all(0).tolist()


def gathered_objects(own: Any) -> list[Any]:
    """Return what every rank has, in the order of ranks; tensors in it are on the CPU."""
    if ranks() == 1:
        return [own]
    whole: list[Any] = [None] * ranks()
    torch.distributed.all_gather_object(whole, own)
    return whole
