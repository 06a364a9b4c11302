"""Named families of image transforms, each swept over its values (Zeiler & Fergus 2013, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.network.arguments import WrongArgumentError

__all__ = ["TRANSFORMS", "PixelScale", "Transform", "TransformSpec", "resolve_transforms"]

# The side of the paper's images: its values in pixels are in proportion to it.
_SIDE = 224


@dataclass(frozen=True)
class Transform:
    """A transform and the values that it is swept over.

    Attributes:
        name: What it is called in charts and keys.
        apply: Takes images `(N, C, H, W)` and a value, and returns images of the same shape.
        values: The sweep, ascending.
        label: Of the axis, with the unit; by default the name.
        identity: The value that changes nothing; None where there is none.
        on_pixels: Whether `apply` is given the images before normalization; else as the network is given them.
    """

    name: str
    apply: Callable[[Tensor, float], Tensor]
    values: tuple[float, ...]
    label: str = ""
    identity: float | None = None
    on_pixels: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        object.__setattr__(self, "label", self.label or self.name)
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"transform '{self.name}' has values={self.values}: give two or more, ascending")


TransformSpec = str | Transform
"""The name of a transform (see `TRANSFORMS`), or one of the user's own."""


@dataclass(frozen=True, eq=False)
class PixelScale:
    """From the network's input to pixels and back: `input = (pixel - mean) / std`.

    Attributes:
        mean: One value a channel, or one for all.
        std: Likewise.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, normalization: tuple[Sequence[float], Sequence[float]] | None, channels: int) -> PixelScale:
        """Return the scale of a normalization that was given as `(mean, std)`, or of none.

        Raises:
            ValueError: There are not so many channels, or a standard deviation is 0.
        """
        if normalization is None:
            return cls()
        mean, std = (tuple(float(value) for value in values) for values in normalization)
        if {len(mean), len(std)} - {1, channels} or not all(std):
            raise ValueError(
                f"normalization=({mean}, {std}) does not fit images of {channels} channels: give (mean, std) with one "
                "value, or one a channel, std not 0"
            )
        return cls(mean, std)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalization."""
        return images * self._values(self.std, images) + self._values(self.mean, images)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Redo the normalization."""
        return (pixels - self._values(self.mean, pixels)) / self._values(self.std, pixels)

    def apply(self, transform: Transform, images: Tensor, value: float) -> Tensor:
        """Transform images `(N, C, H, W)` that are in the network's values; where nothing changes, no bit does.

        Raises:
            ValueError: The transform returned something of another shape.
        """
        if value == transform.identity:
            return images
        given = self.pixels(images) if transform.on_pixels else images
        # A copy: a transform of the user's own may write into its input.
        changed_images = transform.apply(given.clone(), value)
        if not isinstance(changed_images, Tensor) or changed_images.shape != images.shape:
            got = tuple(changed_images.shape) if isinstance(changed_images, Tensor) else type(changed_images).__name__
            raise WrongArgumentError(
                f"transform '{transform.name}' at {value:g} made {got} of images {tuple(images.shape)}; it has to keep "
                "their shape"
            )
        changed_images = changed_images.to(images)
        if not transform.on_pixels:
            return changed_images
        # To pixels and back rounds.
        changed = (changed_images != given).flatten(1).any(1).view(-1, 1, 1, 1)
        return torch.where(changed, self.inputs(changed_images), images)

    @staticmethod
    def _values(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def resolve_transforms(
    transforms: TransformSpec | Sequence[TransformSpec], images: Tensor, fill: Tensor
) -> list[Transform]:
    """Return the transforms that are meant, with values in proportion to the images' size.

    Args:
        transforms: Names, or the user's own.
        images: `(N, C, H, W)`.
        fill: `(C,)`, in the network's values: what comes in from beyond the border.

    Raises:
        ValueError: There is no transform of that name, a name comes twice, or none is left.
        TypeError: One is of another kind, for example a `RandomTransform` of maximization.
    """
    asked = [transforms] if isinstance(transforms, (str, Transform)) else list(transforms)
    size = (images.shape[-2], images.shape[-1])
    chosen = []
    for transform in asked:
        if isinstance(transform, str):
            if transform not in TRANSFORMS:
                raise WrongArgumentError(
                    f"transforms: there is no '{transform}'; there are {', '.join(TRANSFORMS)}, and your own by "
                    "Transform(name, function, values)"
                )
            transform = TRANSFORMS[transform](size, fill.tolist())
        if not isinstance(transform, Transform):
            kind = type(transform)
            raise TypeError(
                f"transforms: a {kind.__module__}.{kind.__qualname__} is none that is swept over values; give a name, "
                "or your own by Transform(name, function, values)"
            )
        chosen.append(transform)
    names = [transform.name for transform in chosen]
    if not names or len(set(names)) < len(names):
        raise WrongArgumentError(f"transforms={names}: give one or more, each name once")
    return chosen


def _steps(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(round(low + (high - low) * step / (count - 1), 6) for step in range(count))


def _pixels(side: int) -> tuple[float, ...]:
    """Whole pixels from -60 to 60 at 224: an image that is moved by them keeps every value."""
    values = sorted({float(round(value * side / _SIDE)) for value in _steps(-60, 60, 25)})
    return tuple(values) if len(values) > 1 else (-1.0, 0.0, 1.0)


def _translation(size: tuple[int, int], fill: list[float]) -> Transform:
    apply = partial(_move, fill=fill, vertical=True)
    return Transform("translation", apply, _pixels(size[0]), "vertical translation, pixels", 0, on_pixels=False)


def _horizontal_translation(size: tuple[int, int], fill: list[float]) -> Transform:
    label = "horizontal translation, pixels"
    apply = partial(_move, fill=fill, vertical=False)
    return Transform("horizontal_translation", apply, _pixels(size[1]), label, 0, on_pixels=False)


def _scale(size: tuple[int, int], fill: list[float]) -> Transform:
    def apply(images: Tensor, value: float) -> Tensor:
        return _about_fill(images, fill, _scaled, value)

    return Transform("scale", apply, _steps(1, 1.8, 17), "scale, factor", 1, on_pixels=False)


def _rotation(size: tuple[int, int], fill: list[float]) -> Transform:
    def apply(images: Tensor, value: float) -> Tensor:
        return images if value % 360 == 0 else _about_fill(images, fill, _rotated, value)

    return Transform("rotation", apply, _steps(0, 350, 36), "rotation, degrees", 0, on_pixels=False)


def _shear(size: tuple[int, int], fill: list[float]) -> Transform:
    def apply(images: Tensor, value: float) -> Tensor:
        return _about_fill(images, fill, _sheared, value)

    return Transform("shear", apply, _steps(-30, 30, 25), "horizontal shear, degrees", 0, on_pixels=False)


def _brightness(size: tuple[int, int], fill: list[float]) -> Transform:
    return Transform("brightness", _brightened, _steps(0.2, 1.8, 17), "brightness, factor", 1)


def _contrast(size: tuple[int, int], fill: list[float]) -> Transform:
    return Transform("contrast", _contrasted, _steps(0.2, 1.8, 17), "contrast, factor", 1)


def _blur(size: tuple[int, int], fill: list[float]) -> Transform:
    widest = 6 * min(size) / _SIDE
    return Transform("blur", _blurred, _steps(0, widest, 13), "Gaussian blur, sigma in pixels", 0)


TRANSFORMS: dict[str, Callable[[tuple[int, int], list[float]], Transform]] = {
    "translation": _translation,
    "scale": _scale,
    "rotation": _rotation,
    "horizontal_translation": _horizontal_translation,
    "shear": _shear,
    "brightness": _brightness,
    "contrast": _contrast,
    "blur": _blur,
}
"""Transforms by name. Geometric ones interpolate bilinearly about the center (translations are by whole pixels and
exact), and fill with the mean; positive values move down or right, enlarge, turn counterclockwise. Photometric ones
act on pixels of 0 to 1 and clip there."""


def _move(images: Tensor, value: float, *, fill: list[float], vertical: bool) -> Tensor:
    by = round(value)
    result = torch.tensor(fill, dtype=images.dtype, device=images.device).view(-1, 1, 1).expand(images.shape).clone()
    side = images.shape[-2 if vertical else -1]
    kept = max(0, side - abs(by))
    dim = -2 if vertical else -1
    result.narrow(dim, side - kept if by > 0 else 0, kept).copy_(images.narrow(dim, 0 if by > 0 else side - kept, kept))
    return result


def _about_fill(
    images: Tensor, fill: list[float], transform: Callable[[Tensor, float], Tensor], value: float
) -> Tensor:
    """Transform linearly, filled: torchvision's own `fill` darkens the pixels where image and fill meet."""
    level = torch.tensor(fill, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return transform(images - level, value) + level


def _rotated(images: Tensor, value: float) -> Tensor:
    result: Tensor = _torchvision().rotate(images, value, interpolation=_torchvision().InterpolationMode.BILINEAR)
    return result


def _scaled(images: Tensor, value: float) -> Tensor:
    return _affine(images, scale=value)


def _sheared(images: Tensor, value: float) -> Tensor:
    return _affine(images, shear=value)


def _affine(images: Tensor, *, scale: float = 1.0, shear: float = 0.0) -> Tensor:
    result: Tensor = _torchvision().affine(
        images,
        angle=0.0,
        translate=[0, 0],
        scale=scale,
        shear=[shear, 0.0],
        interpolation=_torchvision().InterpolationMode.BILINEAR,
    )
    return result


def _brightened(pixels: Tensor, value: float) -> Tensor:
    _check_pixels(pixels, "brightness")
    result: Tensor = _torchvision().adjust_brightness(pixels, value)
    return result


def _contrasted(pixels: Tensor, value: float) -> Tensor:
    _check_pixels(pixels, "contrast")
    if pixels.shape[1] in (1, 3):
        result: Tensor = _torchvision().adjust_contrast(pixels, value)
        return result
    # Channels that make no color: each about its own mean.
    one_by_one: Tensor = _torchvision().adjust_contrast(pixels.flatten(0, 1)[:, None], value)
    return one_by_one.reshape(pixels.shape)


def _blurred(pixels: Tensor, value: float) -> Tensor:
    reach = min(math.ceil(3 * value), min(pixels.shape[-2:]) - 1)
    result: Tensor = _torchvision().gaussian_blur(pixels, [2 * reach + 1] * 2, [value] * 2)
    return result


def _check_pixels(pixels: Tensor, name: str) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    # What rounding, or a resampling that overshoots, leaves beyond the range is no sign of another one.
    if low < -0.1 or high > 1.1:
        raise ValueError(
            f"transform '{name}' acts on pixels of 0 to 1, but with the normalization undone they reach from {low:.3g} "
            f"to {high:.3g}: give normalization=(mean, std) as the network's input was made"
        )


def _torchvision() -> Any:
    """Load what transforms images only where it is asked for: it takes seconds."""
    from torchvision.transforms.v2 import functional

    return functional
