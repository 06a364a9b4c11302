"""Top-k units the slow way: look at every unit, sort, take the first k."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def feature_maps_of(model: nn.Module, module: str, images: Tensor) -> Tensor:
    """What a module returns for all images at once, `(N, C, H, W)`."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    (maps,) = seen
    return maps


def brute_force_top_k(maps: Tensor, k: int, per_image: int | None) -> list[list[tuple[float, int, int, int]]]:
    """For each channel its k strongest units as (value, image, row, column), under the tie rule."""
    count, channels, height, width = maps.shape
    values = maps.tolist()
    result = []
    for channel in range(channels):
        units = [
            (values[image][channel][row][column], image, row, column)
            for image in range(count)
            for row in range(height)
            for column in range(width)
        ]
        units.sort(key=lambda unit: (-unit[0], *unit[1:]))
        kept: list[tuple[float, int, int, int]] = []
        for unit in units:
            if per_image is None or sum(1 for other in kept if other[1] == unit[1]) < per_image:
                kept.append(unit)
            if len(kept) == k:
                break
        result.append(kept)
    return result
