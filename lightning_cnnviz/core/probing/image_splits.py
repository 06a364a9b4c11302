"""Splits that are drawn by image: of several labels an image, of values, and of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.probing.protocols import Manifest, Protocol, Split, digest_of

__all__ = ["draw_image_splits"]


def draw_image_splits(images: Tensor, protocol: Protocol, *, test_images: Tensor | None = None) -> Manifest:
    """Draw a protocol's splits by its seed, so that all that is of one image is on one side.

    Of several splits, or without a test set of its own, four fifths of the images are learned from; a fifth of these
    is held out to choose C.

    Args:
        images: `(N,)` int64, the number of the image that a row of features is of.
        protocol: See there; without counts of images of a class.
        test_images: `(T,)` likewise of a test set of its own; without one, test images are those that are left.

    Raises:
        WrongArgumentError: The protocol counts images of a class.
        ValueError: There are too few images.

    Example:
        >>> from lightning_cnnviz.core.probing.protocols import Protocol
        >>> split, = draw_image_splits(torch.arange(10), Protocol(splits=1)).splits
        >>> [len(part) for part in (split.fit, split.held_out, split.test)]
        [7, 1, 2]
    """
    counted = [name for name in ("per_class", "test_per_class", "val_per_class") if getattr(protocol, name) is not None]
    if counted:
        raise WrongArgumentError(
            f"protocol '{protocol.name}' has {counted[0]}={getattr(protocol, counted[0])}, but no image has one class: "
            "it counts images of a class, and here splits are drawn from all images; leave it out"
        )
    own = test_images is not None
    numbers = images.unique()
    least = 1 + (not own) + protocol.chooses
    if len(numbers) < least:
        raise ValueError(f"protocol '{protocol.name}' needs {least} or more images, but there are {len(numbers)}")
    tested = images if test_images is None else test_images
    splits = []
    for repetition in range(protocol.splits):
        generator = torch.Generator().manual_seed(protocol.seed * 1_000_003 + repetition)
        drawn = numbers[torch.randperm(len(numbers), generator=generator)]
        count = len(numbers)
        if not own or protocol.splits > 1:
            count = min(max(least - (not own), round(0.8 * count)), count - (not own))
        held = max(1, count // 5) if protocol.chooses else 0
        splits.append(
            Split(
                train=_places(images, drawn[:count]),
                fit=_places(images, drawn[held:count]),
                held_out=_places(images, drawn[:held]),
                test=torch.arange(len(tested)) if own else _places(images, drawn[count:]),
            )
        )
    return Manifest(splits=tuple(splits), digest=digest_of(protocol, splits, images, tested))


def _places(images: Tensor, drawn: Tensor) -> Tensor:
    return torch.isin(images, drawn).nonzero().flatten()
