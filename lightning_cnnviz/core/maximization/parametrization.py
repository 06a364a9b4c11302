"""Images as functions of free numbers: pixels or frequencies, correlated colors, and values that stay in bounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Basis", "Bounds", "Box", "Fourier", "Parametrization", "Pixels", "Sphere", "color_correlation"]

# How colors vary together in photographs (ImageNet): a square root of their covariance, as lucid has it.
_PHOTOGRAPHS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


class Basis(ABC):
    """Free numbers, and the linear map from them to an image before its colors are mixed and its values bounded."""

    @abstractmethod
    def shape(self, channels: int, *sides: int) -> tuple[int, ...]:
        """Return the shape of the numbers behind one image: of height and width, a length, or depth, height, width."""

    @abstractmethod
    def image(self, numbers: Tensor, *sides: int) -> Tensor:
        """Return images `(N, C, *sides)` given the numbers `(N, *shape)`."""

    @abstractmethod
    def smooth(self, images: Tensor, *, inverse: bool = False) -> Tensor:
        """Give white noise `(N, C, *sides)` this basis's spectrum, or take it away: linear, and self-adjoint."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """Standard deviation of the numbers at the start."""


@dataclass(frozen=True)
class Pixels(Basis):
    """Each value by itself; every frequency costs the same, so that fine noise is found first."""

    deviation: float = 0.3

    def shape(self, channels: int, *sides: int) -> tuple[int, ...]:
        """As the image."""
        return channels, *sides

    def image(self, numbers: Tensor, *sides: int) -> Tensor:
        """Return the numbers as they are."""
        return numbers

    def smooth(self, images: Tensor, *, inverse: bool = False) -> Tensor:
        """Return the images as they are."""
        return images


@dataclass(frozen=True)
class Fourier(Basis):
    """Frequencies, scaled as in natural images: coarse structure comes as easily as fine (Olah et al. 2017).

    Attributes:
        decay: How fast the amplitude falls with the frequency f: as f ** -decay in images, f ** (-decay / 2) in signals
            and f ** (-3 / 2 * decay) in volumes. At 1, each octave has the same power, as in natural images.
        deviation: Standard deviation of the coefficients at the start, before scaling.
    """

    decay: float = 1.0
    deviation: float = 0.01

    def shape(self, channels: int, *sides: int) -> tuple[int, ...]:
        """Real and imaginary parts of half the spectrum."""
        return channels, *sides[:-1], sides[-1] // 2 + 1, 2

    def image(self, numbers: Tensor, *sides: int) -> Tensor:
        """Return the inverse Fourier transform of the scaled coefficients."""
        spectrum = torch.view_as_complex(numbers.contiguous()) * self._amplitudes(sides, numbers)
        images: Tensor = torch.fft.irfftn(spectrum, s=sides, dim=_axes(sides), norm="ortho")
        return images

    def smooth(self, images: Tensor, *, inverse: bool = False) -> Tensor:
        """Scale each frequency of the images."""
        sides = tuple(images.shape[2:])
        amplitudes = self._amplitudes(sides, images)
        spectrum = torch.fft.rfftn(images, dim=_axes(sides), norm="ortho")
        spectrum = spectrum / amplitudes if inverse else spectrum * amplitudes
        changed: Tensor = torch.fft.irfftn(spectrum, s=sides, dim=_axes(sides), norm="ortho")
        return changed

    def _amplitudes(self, sides: Sequence[int], like: Tensor) -> Tensor:
        squares = torch.fft.rfftfreq(sides[-1], dtype=like.dtype, device=like.device).square()
        for behind, side in enumerate(reversed(sides[:-1]), start=1):
            along = torch.fft.fftfreq(side, dtype=like.dtype, device=like.device).square()
            squares = along.view(-1, *[1] * behind) + squares
        amplitudes: Tensor = squares.sqrt().clamp(min=1 / max(sides)) ** (-self.decay * len(sides) / 2) / 4
        return amplitudes


def _axes(sides: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of images `(N, C, *sides)` that are axes of space."""
    return tuple(range(2, 2 + len(sides)))


class Bounds(ABC):
    """What values an image may have."""

    @abstractmethod
    def keep(self, images: Tensor) -> Tensor:
        """Map any images `(N, C, *sides)` to ones within the bounds, differentiably."""


@dataclass(frozen=True)
class Box(Bounds):
    """Each channel's values lie between two limits, in network input values; halfway where the free image is zero.

    Attributes:
        low: One limit for all channels, or one for each.
        high: Likewise. By default both fit inputs that were normalized to mean 0 and standard deviation 1.
    """

    low: float | Sequence[float] = -2.0
    high: float | Sequence[float] = 2.0

    def __post_init__(self) -> None:
        lows, highs = _numbers(self.low), _numbers(self.high)
        if len(lows) != len(highs) or any(not a < b for a, b in zip(lows, highs, strict=True)):
            raise ValueError(f"Box(low={self.low}, high={self.high}): low must be below high, channel by channel")

    def keep(self, images: Tensor) -> Tensor:
        """Squash by a sigmoid."""
        channels = images.shape[1]
        low, high = (by_channel(values, channels, images) for values in (self.low, self.high))
        kept: Tensor = low + (high - low) * images.sigmoid()
        return kept


@dataclass(frozen=True)
class Sphere(Bounds):
    """All images have the same Euclidean distance from a gray one (Erhan et al. 2009; Le et al. 2010).

    Attributes:
        radius: The distance, in network input values.
        center: The gray image's value, or one for each channel.
    """

    radius: float
    center: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"Sphere(radius={self.radius}): give a finite number above 0")

    def keep(self, images: Tensor) -> Tensor:
        """Divide by the norm."""
        norms: Tensor = images.flatten(1).norm(dim=1).clamp(min=torch.finfo(images.dtype).tiny)
        scaled = images * (self.radius / norms).view(-1, *[1] * (images.ndim - 1))
        return scaled + by_channel(self.center, images.shape[1], images)


@dataclass(frozen=True, eq=False)
class Parametrization:
    """An image as a function of free numbers: a basis, then colors, then bounds.

    Attributes:
        basis: `Fourier()` or `Pixels()`.
        bounds: `Box(low, high)` or `Sphere(radius)`.
        colors: `(C, C)`, how the values of a pixel vary together; see `color_correlation`. None for photographs' where
            images or volumes have three channels, and for independent channels elsewhere.
    """

    basis: Basis = field(default_factory=Fourier)
    bounds: Bounds = field(default_factory=Box)
    colors: Tensor | None = None

    def start(self, seeds: Sequence[int], size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw the numbers behind an image `(C, *sides)` for each seed, whatever the global random state."""
        shape = self.basis.shape(*size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) for seed in seeds]
        numbers: Tensor = torch.stack(drawn).to(device) * self.basis.deviation
        return numbers

    def images(self, numbers: Tensor, *sides: int) -> Tensor:
        """Return the images `(N, C, *sides)` that the numbers stand for, in network input values."""
        raw = self.basis.image(numbers, *sides)
        return self.bounds.keep(self.mix(raw))

    def mix(self, raw: Tensor, *, inverse: bool = False) -> Tensor:
        """Correlate the channels of `(N, C, *sides)`, or take the correlation away."""
        channels = raw.shape[1]
        if self.colors is not None:
            if tuple(self.colors.shape) != (channels, channels):
                raise ValueError(f"colors of shape {tuple(self.colors.shape)} for images of {channels} channels")
            matrix = self.colors
        elif channels == 3 and raw.ndim > 3:
            matrix = torch.tensor(_PHOTOGRAPHS) / torch.tensor(_PHOTOGRAPHS).norm(dim=0).max()
        else:
            return raw
        # A copy of our own, in case it was made under inference mode.
        matrix = matrix.to(raw).clone()
        return torch.einsum("dc,nc...->nd...", torch.linalg.inv(matrix) if inverse else matrix, raw)


def color_correlation(images: Tensor) -> Tensor:
    """Return how the channels of images `(N, C, ...)` vary together: `(C, C)`, the largest column of norm 1.

    It is the symmetric square root of their covariance; of channels that never vary, a small part is made up.
    """
    values = images.detach().cpu().double().transpose(0, 1).flatten(1)
    centered = values - values.mean(1, keepdim=True)
    variances, axes = torch.linalg.eigh(centered @ centered.T / values.shape[1])
    floor = float(variances.max()) * 1e-3 or 1.0
    matrix = axes @ variances.clamp(min=floor).sqrt().diag() @ axes.T
    scaled: Tensor = matrix / matrix.norm(dim=0).max()
    return scaled.float()


def _numbers(values: float | Sequence[float]) -> list[float]:
    return [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]


def by_channel(values: float | Sequence[float], channels: int, like: Tensor) -> Tensor:
    """One value, or one a channel, to be broadcast with images `(N, C, ...)` as those of `like`."""
    numbers = _numbers(values)
    if len(numbers) not in (1, channels):
        raise ValueError(f"{len(numbers)} values given for images of {channels} channels: give one, or one for each")
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 2))
