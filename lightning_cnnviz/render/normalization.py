"""Network inputs as pictures for people: the data set's normalization undone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Normalization", "chosen_normalization", "find_normalization", "normalization_from_range"]


@dataclass(frozen=True)
class Normalization:
    """What was done to pixels of 0 to 1 before the network: `(pixel - mean) / std`, channel by channel.

    Attributes:
        mean: One value a channel, or one for all.
        std: Likewise.
        source: Where this was read, as part of a sentence.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.mean or not self.std or any(value == 0 for value in self.std):
            raise ValueError(f"normalization needs mean and std, std not zero; got mean={self.mean}, std={self.std}")

    def to_pixels(self, image: Tensor) -> Tensor:
        """Return a network input `(C, H, W)` as pixels `(3, H, W)` uint8.

        One channel is shown as gray; of two or of more than three, the first three (a missing one is black).
        """
        if image.dtype == torch.uint8:
            pixels = image
        else:
            mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
            shown = image.float() * std + mean
            pixels = (shown.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        if pixels.shape[0] == 1:
            return pixels.expand(3, -1, -1).contiguous()
        missing = max(0, 3 - pixels.shape[0])
        return torch.cat([pixels[:3], pixels.new_zeros(missing, *pixels.shape[1:])]).contiguous()

    def sentence(self) -> str:
        """One sentence for the reader of a picture."""
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return f"Inputs are shown as they are ({self.source})."
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"Inputs are shown with their normalization undone: mean {mean}, std {std} ({self.source})."


def find_normalization(dataset: Any) -> Normalization | None:
    """Find the `Normalize` transform of a data set: in its transforms, and through `Subset`, `ConcatDataset` and such.

    Anything counts that has `mean` and `std` (torchvision v1 and v2, albumentations) and is reached through attributes
    named `transform`, `transforms`, `dataset`, `datasets` or `target_transform`'s siblings.
    """
    seen: set[int] = set()
    waiting: list[Any] = [dataset]
    while waiting and len(seen) < 1000:
        thing = waiting.pop(0)
        if thing is None or id(thing) in seen or isinstance(thing, (str, bytes, Tensor)):
            continue
        seen.add(id(thing))
        mean, std = _numbers(getattr(thing, "mean", None)), _numbers(getattr(thing, "std", None))
        if mean and std and all(value != 0 for value in std):
            return Normalization(mean, std, "found in the data set's transforms")
        for name in ("transform", "transforms", "dataset", "datasets"):
            inner = getattr(thing, name, None)
            waiting += list(inner) if isinstance(inner, (list, tuple, torch.nn.ModuleList)) else [inner]
        if isinstance(thing, torch.nn.Sequential):
            waiting += list(thing)
    return None


def normalization_from_range(images: Sequence[Tensor]) -> Normalization:
    """Assume a normalization where none was found: pixels as they are if they fit, else scaled by their range."""
    low = min((float(image.min()) for image in images if image.numel()), default=0.0)
    high = max((float(image.max()) for image in images if image.numel()), default=1.0)
    if low >= 0 and high <= 1:
        return Normalization((0.0,), (1.0,), "they lie within 0 and 1")
    if low >= 0 and high <= 255:
        return Normalization((0.0,), (1 / 255,), "no normalization found; they lie within 0 and 255")
    span = (high - low) or 1.0
    return Normalization(
        (-low / span,), (1 / span,), f"no normalization found; scaled from their range {low:.3g} to {high:.3g}"
    )


def chosen_normalization(
    given: tuple[Sequence[float], Sequence[float]] | None, dataset: Any, patches: Iterable[Tensor]
) -> Normalization:
    """Return the normalization that was given, else that of the data set's transforms, else one made for `patches`."""
    if given is not None:
        mean, std = given
        return Normalization(tuple(mean), tuple(std))
    return find_normalization(dataset) or normalization_from_range(list(patches))


def _numbers(values: Any) -> tuple[float, ...]:
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    if isinstance(values, (int, float)):
        values = [values]
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        return ()
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return ()
