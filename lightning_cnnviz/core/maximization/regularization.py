"""What keeps a maximizing image simple: penalties on it, and random transforms that it has to stand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.maximization.objectives import Objective, Reading

__all__ = ["L2", "Blur", "Jitter", "RandomTransform", "Rotate", "Scale", "TotalVariation", "check_transforms", "robust"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
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
        return (reading.images - self.center).square().flatten(1).mean(1)

    def __str__(self) -> str:
        return "L2"


@dataclass(frozen=True)
class TotalVariation(Objective):
    """The mean absolute difference of neighboring pixels, along each axis, to be subtracted.

    What a unit looks for is as fine on a receptive field of 200 pixels as on one of 11, so one weight suits both.
    """

    def __call__(self, reading: Reading) -> Tensor:
        """Measure each image."""
        images = reading.images
        steps = [
            images.diff(dim=axis).abs().flatten(1).mean(1) for axis in range(2, images.ndim) if images.shape[axis] > 1
        ]
        return torch.stack(steps).sum(0) if steps else images.new_zeros(len(images))

    def __str__(self) -> str:
        return "total variation"


class RandomTransform(ABC):
    """A random change of images that an optimum has to stand; the sum of two is one after the other."""

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change images `(N, C, *sides)`, all in the same way, differentiably; the size stays.

        The generator is on the CPU, whatever the images are on.
        """

    def __add__(self, other: RandomTransform) -> RandomTransform:
        if not isinstance(other, RandomTransform):
            return NotImplemented
        return _Chain((*_links(self), *_links(other)))


class _Affine(RandomTransform):
    """A transform that moves pixels; adjacent ones are made one, and so interpolate only once."""

    @abstractmethod
    def matrix(self, axes: int, generator: torch.Generator) -> Tensor:
        """Draw the map from places in the result to places in the image, in pixels from its center.

        Args:
            axes: 1 of signals, 2 of images, 3 of volumes.
            generator: Of what is drawn.

        Returns:
            `(axes + 1, axes + 1)` float64, on places (across, down, deep, 1).
        """

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _moved(images, self.matrix(images.ndim - 2, generator))


@dataclass(frozen=True)
class Jitter(_Affine):
    """Shift by up to so many pixels along each axis."""

    most: int = 8

    def __post_init__(self) -> None:
        _check("Jitter", "most", self.most, 0.0)

    def matrix(self, axes: int, generator: torch.Generator) -> Tensor:
        """Draw a shift by whole pixels."""
        made = torch.eye(axes + 1, dtype=torch.float64)
        made[:axes, axes] = torch.randint(-self.most, self.most + 1, (axes,), generator=generator).flip(0).double()
        return made


@dataclass(frozen=True)
class Rotate(_Affine):
    """Turn by up to so many degrees, either way; volumes in the plane of rows and columns, signals not at all."""

    degrees: float = 10.0

    def __post_init__(self) -> None:
        _check("Rotate", "degrees", self.degrees, 0.0)

    def matrix(self, axes: int, generator: torch.Generator) -> Tensor:
        """Draw an angle."""
        made, angle = (
            torch.eye(axes + 1, dtype=torch.float64),
            math.radians(_draw(-self.degrees, self.degrees, generator)),
        )
        if axes > 1:
            cosine, sine = math.cos(angle), math.sin(angle)
            made[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        return made


@dataclass(frozen=True)
class Scale(_Affine):
    """Enlarge about the center by a factor between two."""

    least: float = 0.9
    most: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ValueError(f"Scale(least={self.least}, most={self.most}): give 0 < least <= most")

    def matrix(self, axes: int, generator: torch.Generator) -> Tensor:
        """Draw a factor."""
        made = torch.eye(axes + 1, dtype=torch.float64)
        made[:axes] /= _draw(self.least, self.most, generator)
        return made


@dataclass(frozen=True)
class Blur(RandomTransform):
    """Blur by a Gaussian of up to so many pixels, another one at each step: fine structure pays the less."""

    most: float = 1.0

    def __post_init__(self) -> None:
        _check("Blur", "most", self.most, 0.0)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Blur along one axis after the other."""
        deviation, axes = _draw(0.0, self.most, generator), images.ndim - 2
        reach = min(math.ceil(3 * deviation), min(images.shape[2:]) - 1)
        if reach < 1:
            return images
        places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.softmax(-0.5 * (places / deviation) ** 2, 0)
        channels = images.shape[1]
        blurred = F.pad(images, (reach, reach) * axes, mode="reflect")
        for axis in range(axes):
            kernel = weights.view(1, 1, *(-1 if axis == other else 1 for other in range(axes)))
            blurred = _CONVOLUTIONS[axes](blurred, kernel.expand(channels, *kernel.shape[1:]), groups=channels)
        return blurred


@dataclass(frozen=True)
class _Chain(RandomTransform):
    links: tuple[RandomTransform, ...]

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        waiting: Tensor | None = None
        for link in self.links:
            if isinstance(link, _Affine):
                step = link.matrix(images.ndim - 2, generator)
                waiting = step if waiting is None else waiting @ step
                continue
            images = images if waiting is None else _moved(images, waiting)
            images, waiting = link.apply(images, generator), None
        return images if waiting is None else _moved(images, waiting)


def robust(side: int) -> RandomTransform:
    """Return what a maximizing image has to stand by default: small shifts, turns, changes of size.

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
    if images.ndim == 3:  # torch reads at places in images of one row
        flat = torch.eye(3, dtype=torch.float64)
        flat[0, 0], flat[0, 2] = matrix[0, 0], matrix[0, 1]
        return _moved(images[:, :, None], flat).squeeze(2)
    sides, axes = images.shape[2:], images.ndim - 2
    # grid_sample counts from -1 to 1 across the image, whatever its shape.
    halves = torch.tensor([side / 2 for side in reversed(sides)], dtype=torch.float64)
    theta = matrix[:axes].clone()
    theta[:, :axes] *= halves / halves[:, None]
    theta[:, axes] /= halves
    # One grid for all images, though `expand` makes it look like one for each.
    grid = F.affine_grid(theta[None].to(images), [1, 1, *sides], align_corners=False)
    grid = grid.expand(len(images), *[-1] * (axes + 1))
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _draw(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _check(who: str, name: str, value: float, least: float) -> None:
    if not (value >= least and math.isfinite(value)):
        raise ValueError(f"{who}({name}={value}): give a finite number from {least:g} on")
