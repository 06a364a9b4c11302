"""Network inputs as pictures for people: the data set's normalization undone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.render.patch_slices import draw_patch_slices
from lightning_cnnviz.render.signals import draw_signal, value_range

__all__ = [
    "ChannelSpec",
    "Normalization",
    "check_channels",
    "chosen_normalization",
    "find_normalization",
    "normalization_from_range",
]

ChannelSpec = int | Sequence[int] | None
"""Which channels of the input are shown: three of them as red, green and blue, or one in gray; None for all."""


@dataclass(frozen=True)
class Normalization:
    """What was done to pixels of 0 to 1 before the network: `(pixel - mean) / std`, channel by channel.

    Attributes:
        mean: One value a channel, or one for all.
        std: Likewise.
        source: Where this was read, as part of a sentence.
        channels: Which channels are shown: three as red, green and blue, or one in gray. Where it is empty, all of
            them: one in gray, three as colors, of any other number the mean in gray.
        of: How many channels there are, where that is known.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "given"
    channels: tuple[int, ...] = ()
    of: int = 0

    def __post_init__(self) -> None:
        if not self.mean or not self.std or any(value == 0 for value in self.std):
            raise ValueError(f"normalization needs mean and std, std not zero; got mean={self.mean}, std={self.std}")
        if len(self.channels) not in (0, 1, 3):
            raise ValueError(f"channels={self.channels}: one or three are shown")

    def to_pixels(self, image: Tensor) -> Tensor:
        """Return a network input `(C, H, W)` as pixels `(3, H, W)` uint8, see `channels`.

        A volume `(C, D, H, W)` as three slices, see `draw_patch_slices`; a signal `(C, L)` as a chart.

        Raises:
            ValueError: The normalization, or the channels to show, are of another number of channels.
        """
        if image.ndim == 4:
            sides = tuple(image.shape[1:])
            return draw_patch_slices(image, (0, 0, 0, *sides), sides, self.to_pixels, clip=len(image) == 3)
        if image.ndim == 2:
            low, high = value_range([image])
            return draw_signal(image.float(), low=low, high=high, channels=self.channels)
        if image.dtype == torch.uint8:
            pixels = image
        else:
            mean, std = (self._column(values, len(image)) for values in (self.mean, self.std))
            shown = image.float() * std + mean
            pixels = (shown.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        if self.channels:
            check_channels(self.channels, len(pixels))
            pixels = pixels[list(self.channels)]
        elif len(pixels) not in (1, 3):
            pixels = pixels.float().mean(0, keepdim=True).round().to(torch.uint8)
        return pixels.expand(3, -1, -1).contiguous()

    def from_pixels(self, pixels: Tensor, channels: int) -> Tensor:
        """Return a network input `(C, H, W)` that is shown as some pixels `(3, H, W)`; channels that are not, as zero.

        Example:
            >>> both = Normalization((0.5,), (0.25,)).from_pixels(torch.full((3, 1, 1), 255), 2)
            >>> both.flatten()
            tensor([2., 2.])
        """
        shown = pixels.float() / 255
        if self.channels:
            values = shown.new_zeros(channels, *pixels.shape[1:])
            values[list(self.channels)] = shown[: len(self.channels)]
        else:
            values = shown if channels == 3 else shown[:1].expand(channels, -1, -1)
        mean, std = (self._column(values, channels) for values in (self.mean, self.std))
        return (values - mean) / std

    @staticmethod
    def _column(values: tuple[float, ...], channels: int) -> Tensor:
        if len(values) not in (1, channels):
            raise ValueError(f"a normalization of {len(values)} channels, {values}, for inputs of {channels}")
        return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)

    def sentence(self) -> str:
        """Say to the reader of a picture what was done to the values, and which channels are shown."""
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return f"Inputs are shown as they are ({self.source}).{self._which_channels()}"
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        undone = f"Inputs are shown with their normalization undone: mean {mean}, std {std} ({self.source})."
        return undone + self._which_channels()

    def _which_channels(self) -> str:
        of = f"Of {self.of} channels" if self.of else "Of the channels"
        if len(self.channels) == 3:
            return f" {of}, {', '.join(map(str, self.channels))} are shown as red, green and blue."
        if self.channels:
            return f" {of}, {self.channels[0]} is shown, in gray."
        if self.of in (0, 1, 3):
            return ""
        return f" {of} the mean is shown, in gray; display_channels=... shows one, or three as red, green and blue."

    def shows(self, channels: ChannelSpec, of: int = 0) -> Normalization:
        """Return the same for other channels to show, of so many."""
        chosen = () if channels is None else (channels,) if isinstance(channels, int) else tuple(channels)
        return replace(self, channels=chosen, of=of)


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


# Values that end below are no bytes: 0 to 1.5 would be black.
_LEAST_OF_BYTES = 16


def normalization_from_range(images: Sequence[Tensor]) -> Normalization:
    """Assume a normalization where none was found: pixels as they are if they fit, else scaled by their range."""
    low = min((float(image.min()) for image in images if image.numel()), default=0.0)
    high = max((float(image.max()) for image in images if image.numel()), default=1.0)
    if low >= 0 and high <= 1:
        return Normalization((0.0,), (1.0,), "they lie within 0 and 1")
    if low >= 0 and _LEAST_OF_BYTES <= high <= 255:
        return Normalization((0.0,), (1 / 255,), "no normalization found; they lie within 0 and 255")
    span = (high - low) or 1.0
    return Normalization(
        (-low / span,), (1 / span,), f"no normalization found; scaled from their range {low:.3g} to {high:.3g}"
    )


def chosen_normalization(
    given: tuple[Sequence[float], Sequence[float]] | None,
    dataset: Any,
    patches: Iterable[Tensor],
    channels: ChannelSpec = None,
) -> Normalization:
    """Return the normalization that was given, else that of the data set's transforms, else one made for `patches`.

    Args:
        given: Mean and std.
        dataset: The data set, or None.
        patches: `(C, H, W)` each.
        channels: Which channels are shown.

    Raises:
        ValueError: What was given is of another number of channels than the patches.
    """
    patches = list(patches)
    count = len(patches[0]) if patches else 0
    check_channels(channels, count)
    if given is not None:
        mean, std = given
        if count and not {len(mean), len(std)} <= {1, count}:
            raise ValueError(
                f"normalization={given} does not fit images of {count} channels: give 1 or {count} values each"
            )
        return Normalization(tuple(mean), tuple(std)).shows(channels, count)
    found = find_normalization(dataset)
    if found is None or (count and not {len(found.mean), len(found.std)} <= {1, count}):
        found = normalization_from_range(patches)
    return found.shows(channels, count)


def check_channels(channels: ChannelSpec, of: int = 0) -> None:
    """Refuse channels that cannot be shown, of inputs with so many channels; 0 where that is not known.

    Raises:
        ValueError: They are neither one nor three, or some are not there.
    """
    if channels is None:
        return
    chosen = (channels,) if isinstance(channels, int) else tuple(channels)
    most = of or max((*chosen, 0)) + 1
    if len(chosen) not in (1, 3) or not all(0 <= channel < most for channel in chosen):
        there = f", and the images have {of} (0 to {of - 1})" if of else ", counted from 0"
        raise ValueError(f"display_channels={channels}: give one, or three as red, green and blue{there}")


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
