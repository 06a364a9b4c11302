"""A network as a classifier of a few images: logits, the class whose score is followed, and its probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.memory import in_chunks, is_out_of_memory

__all__ = [
    "Classified",
    "check_images",
    "class_logits",
    "classify",
    "fill_values",
    "interleave",
    "most_probable",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Classified:
    """What a network makes of some untouched images.

    Attributes:
        targets: `(N,)` int64, the class whose probability is followed: the label, or where there are no labels, the
            most probable class, -1 where there is none.
        labeled: Whether the targets are labels.
        probabilities: `(N,)` float, 0 to 1, of the target; NaN where the network's scores are not finite.
        predictions: `(N,)` int64, the most probable class; -1 where the scores are not finite.
        classes: How many classes there are.
        normalized: Whether the network returns probabilities already, instead of logits.
    """

    targets: Tensor
    labeled: bool
    probabilities: Tensor
    predictions: Tensor
    classes: int
    normalized: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def scored(self) -> Tensor:
        """Of which images the network's scores are finite, `(N,)` bool."""
        return self.predictions >= 0

    @property
    def target_name(self) -> str:
        """What the followed class is."""
        return "true class" if self.labeled else "predicted class"

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probabilities `(N, classes)` for logits that the same network returned for other images.

        All of an image's are NaN where one of its scores is not finite.
        """
        return _probabilities(logits, self.normalized)

    @classmethod
    def joined(cls, parts: Sequence[Classified]) -> Classified:
        """Join the parts of several ranks; see `interleave`."""
        whole = {
            entry.name: interleave([getattr(part, entry.name) for part in parts])
            for entry in fields(cls)
            if isinstance(getattr(parts[0], entry.name), Tensor)
        }
        first = parts[0]
        return cls(labeled=first.labeled, classes=first.classes, normalized=first.normalized, **whole)


def classify(model: nn.Module, images: Tensor, labels: Tensor | None = None, *, batch_size: int = 32) -> Classified:
    """Run untouched images through a network, in whatever mode it is.

    Args:
        model: A classifier: returns logits `(N, classes)`.
        images: `(N, C, H, W)`, on the network's device.
        labels: `(N,)` whole numbers; None where there are none.
        batch_size: Images of one pass.

    Raises:
        ValueError: The network does not take the images, or returns no logits; labels do not fit the images or are no
            class of the network's.
    """
    logits = torch.cat(in_chunks(lambda part: class_logits(model, images[part]), len(images), batch_size))
    # Settled here, once: the single row of another pass may look like probabilities by chance.
    known = logits[~logits.isnan().any(1)]
    sums = known.sum(1)
    normalized = len(known) > 0 and bool((known >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    probabilities = _probabilities(logits, normalized).detach().cpu()
    predictions = most_probable(probabilities)
    count, classes = probabilities.shape
    targets = predictions if labels is None else _checked_labels(labels, count, classes)
    own = probabilities.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return Classified(
        targets=targets,
        labeled=labels is not None,
        probabilities=own,
        predictions=predictions,
        classes=classes,
        normalized=normalized,
    )


def most_probable(probabilities: Tensor) -> Tensor:
    """Return the most probable class `(N,)` int64, given `(N, classes)`; -1 where there is none, for NaN.

    Example:
        >>> most_probable(torch.tensor([[0.2, 0.8], [float("nan"), 0.5]])).tolist()
        [1, -1]
    """
    return probabilities.argmax(1).masked_fill(~probabilities.isfinite().all(1), -1)


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits `(N, classes)` as float, on its device.

    Raises:
        ValueError: The network does not take such images, or does not return logits.
    """
    try:
        returned: Any = model(images)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{type(model).__name__} does not take images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    logits = getattr(returned, "logits", returned)
    if not isinstance(logits, Tensor):
        form = type(returned).__name__
    else:
        form = f"a tensor of shape {tuple(logits.shape)}"
        if logits.ndim == 2 and logits.shape[0] == len(images) and logits.shape[1] > 1 and logits.is_floating_point():
            return logits.float()
    raise ValueError(
        f"{type(model).__name__} returns {form} for {len(images)} images; logits ({len(images)}, classes) of two or "
        'more classes are needed: name the submodule that returns them with model="..."'
    )


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: It is no float tensor `(N, C, H, W)`, or has no image.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give one or more as a float tensor "
            "(N, C, H, W), in the values that the network is given"
        )


def fill_values(images: Tensor, fill: float | Sequence[float] | Tensor | None) -> Tensor:
    """Return what stands where an image is covered, or ends: one value a channel, in the network's (input) values.

    Args:
        images: `(N, C, H, W)`.
        fill: One value, or one a channel; None for the images' own mean of each channel.

    Raises:
        ValueError: There are not so many channels.
    """
    channels = images.shape[1]
    if fill is None:
        return images.float().mean((0, 2, 3)).to(images)
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device).flatten()
    if len(values) not in (1, channels):
        raise ValueError(
            f"fill has {len(values)} values, but the images have {channels} channels: give 1 or {channels}"
        )
    return values.expand(channels).clone()


def interleave(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join R parts, of which part r holds the entries r, r + R, r + 2 R, ... along a dimension.

    Example:
        >>> interleave([torch.tensor([0, 2, 4]), torch.tensor([1, 3])]).tolist()
        [0, 1, 2, 3, 4]
    """
    count = sum(part.shape[dim] for part in parts)
    order = torch.cat([torch.arange(count)[start :: len(parts)] for start in range(len(parts))])
    return torch.cat(list(parts), dim).index_select(dim, order.argsort())


def _probabilities(logits: Tensor, normalized: bool) -> Tensor:
    probabilities = logits if normalized else logits.softmax(1)
    # Of NaN among the scores, argmax would make a class, and a sum a number.
    return probabilities.masked_fill(~probabilities.isfinite().all(1, keepdim=True), torch.nan)


def _checked_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    if labels.is_floating_point() or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give one whole number for each of the {count} "
            "images, or no labels"
        )
    numbers = labels.detach().cpu().long()
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if len(wrong):
        raise ValueError(
            f"labels {sorted(set(wrong.tolist()))[:6]} are out of range: the network has {classes} classes "
            f"(0 to {classes - 1})"
        )
    return numbers
