"""What is said of images that a network does not take."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["no_images", "other_dtype"]


def no_images(given: Any) -> str:
    """Say that something is no tensor of images, and how to come by one.

    Example:
        >>> no_images([1])
        'images are a list; give a tensor (N, C, H, W): torch.stack(IMAGES) makes one of images (C, H, W)'
    """
    ways = "images, labels = next(iter(LOADER)) has those of a loader's first batch"
    if isinstance(given, np.ndarray):
        ways = "torch.from_numpy(IMAGES) makes one, with channels before rows and columns"
    elif isinstance(given, (list, tuple)):
        ways = "torch.stack(IMAGES) makes one of images (C, H, W)"
    return f"images are a {type(given).__name__}; give a tensor (N, C, H, W): {ways}"


def other_dtype(model: nn.Module, images: Tensor) -> str:
    """Say that a network's weights have another precision than its images; nothing where they have not."""
    weights = next((value.dtype for value in model.parameters() if value.is_floating_point()), images.dtype)
    if not images.is_floating_point() or weights == images.dtype:
        return ""
    return f"images are {images.dtype}, and its weights {weights}: give images.to({weights})"
