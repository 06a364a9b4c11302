"""What keeps a maximizing image simple: penalties on it, and random transforms that it has to stand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.maximization.objectives import Objective, Reading

__all__ = ["L2", "Blur", "Jitter", "RandomTransform", "Rotate", "Scale", "TotalVariation", "check_transforms", "robust"]

# From this side on, in pixels, images are moved by all of what `robust` says.
_FULLY_MOVED = 96


@dataclass(frozen=True)
class L2(Objective):
    """The mean square of an image's distance from a gray one (Simonyan et al. 2014), to be subtracted.

    Attributes:
        center: The gray image's value, in network input values.
    """

    center: float = 0.0

    def __call__(self, reading: Reading) -> Tensor:
        """Measure each image."""
        return (reading.images - self.center).square().mean((1, 2, 3))

    def __str__(self) -> str:
        return "L2"


@dataclass(frozen=True)
class TotalVariation(Objective):
    """The mean absolute difference of neighboring pixels, down and across, to be subtracted.

    What a unit looks for is as fine on a receptive field of 200 pixels as on one of 11, so one weight suits both.
    """

    def __call__(self, reading: Reading) -> Tensor:
        """Measure each image."""
        images = reading.images
        steps = [images.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3) if images.shape[axis] > 1]
        return torch.stack(steps).sum(0) if steps else images.new_zeros(len(images))

    def __str__(self) -> str:
        return "total variation"


class RandomTransform(ABC):
    """A random change of images that an optimum has to stand; the sum of two is one after the other."""

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change images `(N, C, H, W)`, all in the same way, differentiably; the size stays.

        The generator is on the CPU, whatever the images are on.
        """

    def __add__(self, other: RandomTransform) -> RandomTransform:
        if not isinstance(other, RandomTransform):
            return NotImplemented
        return _Chain((*_links(self), *_links(other)))


class _Affine(RandomTransform):
    """A transform that moves pixels; adjacent ones are made one, and so interpolate only once."""

    @abstractmethod
    def matrix(self, generator: torch.Generator) -> list[list[float]]:
        """Draw the map `(3, 3)` from places in the result to places in the image, in pixels from its center."""

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _moved(images, torch.tensor(self.matrix(generator), dtype=torch.float64))


@dataclass(frozen=True)
class Jitter(_Affine):
    """Shift by up to so many pixels, down and across."""

    most: int = 8

    def __post_init__(self) -> None:
        _check("Jitter", "most", self.most, 0.0)

    def matrix(self, generator: torch.Generator) -> list[list[float]]:
        """Draw a shift by whole pixels."""
        down, across = torch.randint(-self.most, self.most + 1, (2,), generator=generator).tolist()
        return [[1.0, 0.0, across], [0.0, 1.0, down], [0.0, 0.0, 1.0]]


@dataclass(frozen=True)
class Rotate(_Affine):
    """Turn by up to so many degrees, either way."""

    degrees: float = 10.0

    def __post_init__(self) -> None:
        _check("Rotate", "degrees", self.degrees, 0.0)

    def matrix(self, generator: torch.Generator) -> list[list[float]]:
        """Draw an angle."""
        angle = math.radians(_draw(-self.degrees, self.degrees, generator))
        cosine, sine = math.cos(angle), math.sin(angle)
        return [[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]


@dataclass(frozen=True)
class Scale(_Affine):
    """Enlarge about the center by a factor between two."""

    least: float = 0.9
    most: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ValueError(f"Scale(least={self.least}, most={self.most}): give 0 < least <= most")

    def matrix(self, generator: torch.Generator) -> list[list[float]]:
        """Draw a factor."""
        factor = 1 / _draw(self.least, self.most, generator)
        return [[factor, 0.0, 0.0], [0.0, factor, 0.0], [0.0, 0.0, 1.0]]


@dataclass(frozen=True)
class Blur(RandomTransform):
    """Blur by a Gaussian of up to so many pixels, another one at each step: fine structure pays the less."""

    most: float = 1.0

    def __post_init__(self) -> None:
        _check("Blur", "most", self.most, 0.0)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Blur down, then across."""
        deviation = _draw(0.0, self.most, generator)
        reach = min(math.ceil(3 * deviation), images.shape[2] - 1, images.shape[3] - 1)
        if reach < 1:
            return images
        places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.softmax(-0.5 * (places / deviation) ** 2, 0)
        channels = images.shape[1]
        padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
        down = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)


@dataclass(frozen=True)
class _Chain(RandomTransform):
    links: tuple[RandomTransform, ...]

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        waiting: Tensor | None = None
        for link in self.links:
            if isinstance(link, _Affine):
                step = torch.tensor(link.matrix(generator), dtype=torch.float64)
                waiting = step if waiting is None else waiting @ step
                continue
            images = images if waiting is None else _moved(images, waiting)
            images, waiting = link.apply(images, generator), None
        return images if waiting is None else _moved(images, waiting)


def robust(side: int) -> RandomTransform:
    """Return what a maximizing image of `side` pixels has to stand by default: small shifts, turns, changes of size.

    They are the smaller for small images, whose patterns are as fine as those of large ones and would be blurred away.
    """
    strength = min(1.0, side / _FULLY_MOVED)
    return Jitter(round(0.06 * side * strength)) + Scale(1 - 0.1 * strength, 1 + 0.1 * strength) + Rotate(10 * strength)


def check_transforms(transforms: RandomTransform | str | None) -> None:
    """Refuse what is neither random transforms nor `"default"` nor None.

    Raises:
        ValueError: Text other than `"default"`.
        TypeError: Something else, for example a `Transform` of an invariance sweep, or a list.
    """
    mend = 'give "default", None, or for example Jitter(8) + Scale()'
    if isinstance(transforms, str) and transforms != "default":
        raise ValueError(f"transforms={transforms!r}: {mend}")
    if not isinstance(transforms, (RandomTransform, str, type(None))):
        kind = type(transforms)
        raise TypeError(f"transforms is a {kind.__module__}.{kind.__qualname__} and no RandomTransform: {mend}")


def _links(transform: RandomTransform) -> tuple[RandomTransform, ...]:
    return transform.links if isinstance(transform, _Chain) else (transform,)


def _moved(images: Tensor, matrix: Tensor) -> Tensor:
    """Read images at other places; what lies beyond the border is the image mirrored."""
    height, width = images.shape[-2:]
    # grid_sample counts from -1 to 1 across the image, whatever its shape.
    halves = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    theta = matrix[:2].clone()
    theta[:, :2] *= halves / halves[:, None]
    theta[:, 2] /= halves
    # One grid for all images, though `expand` makes it look like one for each.
    grid = F.affine_grid(theta[None].to(images), [1, 1, height, width], align_corners=False)
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _draw(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _check(who: str, name: str, value: float, least: float) -> None:
    if not (value >= least and math.isfinite(value)):
        raise ValueError(f"{who}({name}={value}): give a finite number from {least:g} on")
