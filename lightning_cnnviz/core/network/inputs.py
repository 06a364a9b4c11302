"""Images of whole numbers, for networks that bring them to scale themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import floating_numbers, rows_of
from lightning_cnnviz.core.network.classification import run_network
from lightning_cnnviz.core.network.hooks import analysis_mode, model_device
from lightning_cnnviz.core.network.wrong_images import no_images

__all__ = ["all_as_floats", "as_floats"]


def as_floats(model: nn.Module, images: Tensor) -> Tensor:
    """Return images of 8 bits as floats of which a network says the same; it is left as it was.

    Views cover, move and differentiate images, which takes floats. Where the network scales by the values' type, as
    torchvision's `ToDtype(scale=True)` does, floats are from 0 to 1, else from 0 to 255.

    Args:
        model: The network, in whatever mode it is.
        images: `(N, C, H, W)`; those that are no uint8 are returned as they are.

    Raises:
        ValueError: The network does not take uint8, or says something else of floats.

    Example:
        >>> images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
        >>> class Scaling(nn.Module):
        ...     def forward(self, images):
        ...         return images.float() / 255 - 0.5
        >>> as_floats(Scaling(), images).max()
        tensor(255.)
    """
    return images if images.dtype != torch.uint8 else images.to(_dtype(model)) / _scale(model, images[:1])


def all_as_floats(model: nn.Module, images: Any) -> Any:
    """Return images `(C, H, W)` by number, a tensor, a sequence or a mapping of them, as `as_floats` does.

    Raises:
        TypeError: They are none of these.
        ValueError: See `as_floats`.
    """
    if not isinstance(images, (Tensor, Mapping, Sequence)) or isinstance(images, str):
        raise TypeError(no_images(images))
    numbers = list(images) if isinstance(images, Mapping) else range(len(images))
    first = next((images[number] for number in numbers), None)
    if first is None or first.dtype != torch.uint8:
        return images
    scale, dtype = _scale(model, first[None]), _dtype(model)
    return {number: images[number].to(dtype) / scale for number in numbers}


def _dtype(model: nn.Module) -> torch.dtype:
    parameter = next(model.parameters(), torch.empty(0))
    return parameter.dtype if parameter.is_floating_point() else torch.float32


def _scale(model: nn.Module, image: Tensor) -> int:
    """By what an image `(1, C, H, W)` of 8 bits is divided for the network to say the same of it."""
    first, dtype = image.to(model_device(model)), _dtype(model)
    with analysis_mode(model), rows_of(model, 0):
        expected = floating_numbers(run_network(model, first))
        for scale in (1, 255):
            try:
                found = floating_numbers(run_network(model, first.to(dtype) / scale))
            except ValueError:
                continue
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
                return scale
    raise ValueError(
        f"{type(model).__name__} says something else of uint8 images than of the same as floats, from 0 to 255 or from "
        "0 to 1, which views of changed images need; give images as floats, a monitor with batch_fn=... that does"
    )
