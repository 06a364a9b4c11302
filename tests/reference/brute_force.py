"""Top-k units the slow way: look at every unit, sort, take the first k."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Unit = tuple[float, float, int, int, int]
"""Score, activation, image, row, column."""


def feature_maps_of(model: nn.Module, module: str, images: Tensor) -> Tensor:
    """What a module returns for all images at once, `(N, C, H, W)`."""
    (maps,) = feature_maps_by_batch(model, [module], [images])[module]
    return maps


def feature_maps_by_batch(
    model: nn.Module, modules: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, list[Tensor]]:
    """What some modules return for each batch, `(N, C, H, W)`, as it is before anything writes to it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, maps=maps: maps.append(output.detach().clone())
        )
        for name, maps in seen.items()
    ]
    with torch.no_grad():
        for images in batches:
            model(images)
    for handle in handles:
        handle.remove()
    return seen


def brute_force_top_k(
    maps: Tensor | Sequence[Tensor],
    k: int,
    per_image: int | None,
    images: Sequence[int] | None = None,
    *,
    rank_by: str = "max",
) -> list[list[Unit]]:
    """For each channel the k units that rank first, under the tie rule.

    Args:
        maps: Of each image its feature maps `(C, H, W)`; height and width may differ. Activations that are not finite
            are left out.
        k: How many.
        per_image: How many of one image at most; None for any number.
        images: The images' indices, if not 0, 1, 2, ...; an image that comes again is left out.
        rank_by: "max": a unit's score is its activation; "mean": it is the mean of its feature map.
    """
    by_image: dict[int, Tensor] = {}
    for image, of_image in zip(range(len(maps)) if images is None else images, maps, strict=True):
        by_image.setdefault(image, of_image)
    result = []
    for channel in range(maps[0].shape[0]):
        units = []
        for image, channels in by_image.items():
            found = [
                (value, row, column)
                for row, line in enumerate(channels[channel].tolist())
                for column, value in enumerate(line)
                if math.isfinite(value)
            ]
            mean = _rounded(math.fsum(value for value, _, _ in found) / len(found), channels.dtype) if found else 0.0
            units += [(value if rank_by == "max" else mean, value, image, row, column) for value, row, column in found]
        units.sort(key=lambda unit: (-unit[0], unit[2], -unit[1], *unit[3:]))
        kept: list[Unit] = []
        for unit in units:
            if per_image is None or sum(1 for other in kept if other[2] == unit[2]) < per_image:
                kept.append(unit)
            if len(kept) == k:
                break
        result.append(kept)
    return result


def _rounded(value: float, dtype: torch.dtype) -> float:
    """The nearest number that float32 has, or float64 for values of that type."""
    return value if dtype == torch.float64 else float(torch.tensor(value, dtype=torch.float32))
