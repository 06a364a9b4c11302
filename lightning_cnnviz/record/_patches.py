"""Patches as a record keeps them: each image once, in a file; a patch is a box in it, or exact where it is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, SourceImage, TopPatches
from lightning_cnnviz.core.top_patches.search import without_patches
from lightning_cnnviz.core.tracing.boxes import cropped
from lightning_cnnviz.render.image import LOSSLESS_SIDE
from lightning_cnnviz.render.normalization import Normalization

__all__ = ["packed_patches", "unpacked_patches"]


def packed_patches(
    value: Any, normalization: Normalization, put: Callable[[SourceImage, Normalization | None], str]
) -> tuple[Any, Any]:
    """Take the pixels out of the mined patches in a result.

    Args:
        value: A result, or a tuple of some.
        normalization: Undone for the images that are put.
        put: Keeps an image, its normalization undone or (None) its levels, and returns the name of its file.

    Returns:
        The result without patches, and what `unpacked_patches` needs to put them back: None where there are none.
    """
    if isinstance(value, tuple) and type(value) is tuple:
        parts = [packed_patches(part, normalization, put) for part in value]
        crops = [crop for _, crop in parts]
        return tuple(part for part, _ in parts), crops if any(crop is not None for crop in crops) else None
    if not isinstance(value, TopPatches):
        return value, None
    # Pixels that are cut off at black or white would not give back what the network was given: its levels do.
    scales = {
        source.index: (source.low.tolist(), source.high.tolist())
        for source in value.sources
        if source.levels.ndim == 3 and len(source.levels) in (1, 3) and not _shows_all(source, normalization)
    }
    if any(source.levels.ndim != 3 for source in value.sources):
        return _packed_exactly(value)
    files = {source.index: put(source, None if source.index in scales else normalization) for source in value.sources}
    first = next(value.all_patches(), torch.zeros(0, 0, 0))
    like = {"channels": len(first), "dtype": first.dtype, "images": files, "scales": scales}
    layers = [[_kept(layer, place, files) for place in range(len(layer.features))] for layer in value]
    return replace(without_patches(value), sources=()), {**like, "layers": layers}


def _packed_exactly(value: TopPatches) -> tuple[Any, Any]:
    """The same of signals and volumes, which are no pictures: their levels are kept as they are."""
    sources = {source.index: (source.levels, source.low, source.high) for source in value.sources}
    layers = [[list(patches) for patches in layer.patches] for layer in value]
    return replace(without_patches(value), sources=()), {"levels": sources, "layers": layers}


def unpacked_patches(value: Any, crops: Any, normalization: Normalization, image: Callable[[str], Tensor]) -> Any:
    """Put the patches back into a result.

    Raises:
        ValueError: They do not fit it.
    """
    if crops is None:
        return value
    if isinstance(crops, list):
        if not isinstance(value, tuple) or len(value) != len(crops):
            raise ValueError("its patches belong to another result")
        both = zip(value, crops, strict=True)
        return tuple(unpacked_patches(part, crop, normalization, image) for part, crop in both)
    try:
        if "levels" in crops:
            return _unpacked_exactly(value, crops)
        pixels = {index: image(name) for index, name in crops["images"].items()}
        channels, dtype, kept = crops["channels"], crops["dtype"], crops["layers"]
        values = {
            index: _leveled(whole, *crops["scales"][index])
            if index in crops.get("scales", ())
            else _values(whole, normalization, channels, dtype)
            for index, whole in pixels.items()
        }
        layers = tuple(_restored(*both, values) for both in zip(value, kept, strict=True))
        sources = tuple(SourceImage.of(index, values[index]) for index in sorted(values))
        return replace(value, layers=layers, sources=sources)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"its patches do not fit the result: {error}") from error


def _unpacked_exactly(value: TopPatches, crops: Any) -> TopPatches:
    layers = tuple(_restored(*both, {}) for both in zip(value, crops["layers"], strict=True))
    sources = tuple(
        SourceImage(index=index, levels=levels, low=low, high=high)
        for index, (levels, low, high) in crops["levels"].items()
    )
    return replace(value, layers=layers, sources=sources)


def _kept(layer: LayerTopPatches, place: int, files: Mapping[int, str]) -> Any:
    """The patches of one feature map: those that are kept exactly, together where they are of one size; else None."""
    images = layer.images[layer.features[place]].tolist()
    kept = [
        None if image in files and len(patch) in (1, 3) and max(patch.shape[1:]) > LOSSLESS_SIDE else patch
        for image, patch in zip(images, layer.patches[place], strict=False)
    ]
    sizes = {None if patch is None else tuple(patch.shape) for patch in kept}
    return torch.stack(kept) if len(sizes) == 1 and None not in sizes else kept  # type: ignore[arg-type]


def _restored(layer: LayerTopPatches, kept: list[Any], values: Mapping[int, Tensor]) -> LayerTopPatches:
    patches = []
    for feature, own in zip(layer.features, kept, strict=True):
        boxes, images = layer.boxes[feature].tolist(), layer.images[feature].tolist()
        line = []
        for rank, patch in enumerate(own):
            line.append(cropped(values[images[rank]], boxes[rank]) if patch is None else patch)
        patches.append(tuple(line))
    return replace(layer, patches=tuple(patches))


def _shows_all(source: SourceImage, normalization: Normalization) -> bool:
    """Whether an image is shown with all channels, within black and white when its normalization is undone."""
    if normalization.channels and len({*normalization.channels}) != len(source.levels):
        return False
    mean, std = (torch.tensor(part).view(-1) for part in (normalization.mean, normalization.std))
    ends = torch.stack([source.low * std + mean, source.high * std + mean])
    return bool(ends.min() > -1 / 255 and ends.max() < 1 + 1 / 255)


def _leveled(pixels: Tensor, low: list[float], high: list[float]) -> Tensor:
    """An image whose levels are kept, as the network was given it."""
    return SourceImage(index=0, levels=pixels[: len(low)], low=torch.tensor(low), high=torch.tensor(high)).values()


def _values(pixels: Tensor, normalization: Normalization, channels: int, dtype: torch.dtype) -> Tensor:
    """An image as the network was given it, as far as its pixels tell."""
    if dtype == torch.uint8:
        unscaled = Normalization((0.0,), (1.0,), channels=normalization.channels)
        return (unscaled.from_pixels(pixels, channels or 3) * 255).round().to(dtype)
    return normalization.from_pixels(pixels, channels or 3).to(dtype)
