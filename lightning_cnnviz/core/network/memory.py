"""How many images, or numbers, fit into memory at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.classification import class_logits
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked

__all__ = ["images_at_once", "numbers_at_once"]

# Of the free memory, a look may take this fraction: training needs the rest.
_FRACTION = 0.25
# Beyond these, larger batches are no faster; on a CPU they leave the caches.
_MOST, _MOST_ON_CPU = 256, 16
# Copies of the image that a sweep holds beside the network's own values, and of the largest value inside a layer.
_IMAGES, _VALUES = 16, 4
_UNKNOWN = 2**30
# So many tensors as large as the largest exist at a time on the way back through a network.
_TENSORS = 8


def images_at_once(model: nn.Module, image: Tensor, *, gradients: bool = False) -> int:
    """Return how many images of a size can be run together in the free memory.

    Args:
        model: The network.
        image: `(1, C, H, W)`, on the network's device; it is run once.
        gradients: Whether a pass keeps all its values, for gradients.

    Raises:
        ValueError: The network does not take such an image, or returns no logits.
    """
    sizes: list[int] = []

    def see(_name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            sizes.append(value.numel() * value.element_size())

    leaves = {name: Site(module) for name, module in model.named_modules() if not list(module.children())}
    with analysis_mode(model), hooked(leaves, see):
        class_logits(model, image)
    values = sum(sizes) if gradients else max(sizes, default=0)
    an_image = _IMAGES * image.numel() * image.element_size() + _VALUES * values
    most = _MOST if image.device.type == "cuda" else _MOST_ON_CPU
    return max(1, min(most, int(_FRACTION * _free_bytes(image.device) / an_image)))


def numbers_at_once(device: torch.device, bytes_each: int = 4) -> int:
    """Return how many numbers a computation's largest tensor may have, for all its tensors to fit into free memory."""
    return max(1, int(_FRACTION * _free_bytes(device) / (_TENSORS * bytes_each)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved and does not use is free for us, too.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        # Of the free pages alone little is left where files have been read; the system gives those back on demand.
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # not on every system
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN
