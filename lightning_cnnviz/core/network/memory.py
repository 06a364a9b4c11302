"""How many images, or numbers, fit into memory at once; and going on with fewer where they did not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, takes_hooks

__all__ = ["images_at_once", "in_chunks", "is_out_of_memory", "numbers_at_once", "with_less"]

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Of the free memory, a look may take this fraction: training needs the rest.
_FRACTION = 0.25
# Beyond these, larger batches are no faster.
_MOST, _MOST_ON_CPU = 256, 16
# On a CPU a layer's values for a batch should stay in the caches, of which each thread has so many bytes: beyond, an
# image of a batch takes up to half as long again as one by itself.
_CACHE = 2**24
# Copies of the image that a sweep holds beside the network's own values, and of the largest value inside a layer.
_IMAGES, _VALUES = 16, 4
_UNKNOWN = 2**30
_SIGNS = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")
# So many tensors as large as the largest exist at a time on the way back through a network.
_TENSORS = 8


def images_at_once(model: nn.Module, image: Tensor, *, gradients: bool = False) -> int:
    """Return how many images of a size can be run together in the free memory.

    Args:
        model: The network.
        image: `(1, C, H, W)`, on the network's device; it is run once.
        gradients: Whether a pass keeps all its values, for gradients.

    Raises:
        ValueError: The network does not take such an image.
    """
    from lightning_cnnviz.core.network.classification import run_network  # which asks whether memory has run out

    sizes: list[int] = []

    def see(_name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            sizes.append(value.numel() * value.element_size())

    leaves = {name: Site(module) for name, module in model.named_modules() if not list(module.children())}
    if not all(takes_hooks(module) for module, *_ in leaves.values()):
        return 1  # what torch.jit has made does not tell how much it takes
    with analysis_mode(model), hooked(leaves, see):
        run_network(model, image)
    largest = max(sizes, default=0)
    an_image = _IMAGES * image.numel() * image.element_size() + _VALUES * (sum(sizes) if gradients else largest)
    most = _MOST
    if image.device.type != "cuda":
        most = min(_MOST_ON_CPU, _CACHE * torch.get_num_threads() // max(1, largest))
    return max(1, min(most, int(_FRACTION * _free_bytes(image.device) / an_image)))


def numbers_at_once(device: torch.device, bytes_each: int = 4) -> int:
    """Return how many numbers a computation's largest tensor may have, for all its tensors to fit into free memory."""
    return max(1, int(_FRACTION * _free_bytes(device) / (_TENSORS * bytes_each)))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory has run out: of a GPU, or of the machine, which torch reports as an error like any other."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def with_less(work: Callable[[int], Result], together: int, what: str = "image") -> tuple[Result, int]:
    """Do work on so many pieces at a time; where memory runs out, again on half as many, down to one.

    Args:
        work: Is given how many; leaves nothing behind when memory runs out in it.
        together: How many at first.
        what: What a piece is, for messages.

    Returns:
        What it returned, and how many it was.

    Raises:
        torch.OutOfMemoryError: Memory does not suffice for one.
    """
    while True:
        try:
            return work(together), together
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if together <= 1:
                raise _too_little(error, what) from error
        # Here, and not above: what the error holds on to is free now.
        together = max(1, together // 2)
        log.debug("memory ran out: %d at a time", together)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def in_chunks(
    work: Callable[[slice], Result], count: int, together: int | None = None, what: str = "image"
) -> list[Result]:
    """Do work on so many of some pieces at a time; where memory runs out, on half as many from there on, down to one.

    Args:
        work: Is given which pieces; leaves nothing behind when memory runs out in it.
        count: How many pieces there are.
        together: How many at a time, at first; by default all.
        what: What a piece is, for messages.

    Raises:
        torch.OutOfMemoryError: Memory does not suffice for one.

    Example:
        >>> def work(part):
        ...     if part.stop - part.start > 2:
        ...         raise torch.OutOfMemoryError("CUDA out of memory")
        ...     return part.start, part.stop
        >>> in_chunks(work, 5)
        [(0, 2), (2, 4), (4, 5)]
    """
    results: list[Result] = []
    at, together = 0, max(1, min(count, together or count))
    while at < count:
        start = at

        def chunk(size: int, start: int = start) -> tuple[Result, int]:
            stop = min(start + size, count)
            return work(slice(start, stop)), stop

        (result, at), together = with_less(chunk, min(together, count - at), what)
        results.append(result)
    return results


def _too_little(error: BaseException, what: str) -> BaseException:
    if "not enough memory for one" in str(error):
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return torch.OutOfMemoryError(f"there is not enough memory for one {what} at a time: {reason}")


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
