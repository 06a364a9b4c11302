"""Linear probes that learn along with the network, from the features of passes that training makes anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered, ranks, summed
from lightning_cnnviz.core.probing.probed import Measure

__all__ = ["OnlineKind", "OnlineProbes", "OnlineScores", "kind_of"]

OnlineKind = Literal["classes", "labels", "values"]
"""One class of each image or pixel; any number of labels; values."""

RATE = 0.03
"""How far a step of Adam moves a weight of a feature of unit variance, before it is divided by their number."""

_BETAS = (0.9, 0.999)
_MEMORY = 0.01  # weight of a batch in the running means and variances, once there have been a hundred
_NOISE = 1e-3  # features that vary by less than this fraction of a layer's mean variance are not blown up
_ROUNDING = 1e-6
_EPSILON = 1e-8
_LARGEST = 1e15  # squares of larger features are not finite, and what follows them would never be again
_ALWAYS, _EVERY = 16, 64  # batches that are asked for new classes: the first ones, and then every 64th


@dataclass(frozen=True, eq=False, kw_only=True)
class OnlineScores:
    """How well probes that learn online tell the classes, labels or values of a validation set.

    Attributes:
        layers: Names, in the order in which the layers run.
        accuracy: `(L,)` float64, what `measure` says: right images of all, 0 to 1, or the mean of the labels' average
            precision, or of the values' R2; NaN where features of an image are not finite.
        images: Number of images.
        classes: Number of classes, labels or values that the probes have learned to tell.
        batches: Number of batches that each rank's probes have learned from.
        left_out: `(L,)` int64: training images that were left out, since their features were not finite (or above 1e15,
            so that their squares would not be); of pixels, these count.
        measure: What the numbers are.
        chance: What would be measured without looking at the features; None in results of earlier versions.
        pixels: Of how many pixels of each image the class is told; 0 where it is that of the image.
    """

    layers: tuple[str, ...]
    accuracy: Tensor
    images: int
    classes: int
    batches: int
    left_out: Tensor
    measure: Measure = "accuracy"
    chance: float | None = None
    pixels: int = 0

    def __post_init__(self) -> None:
        shapes = {tuple(self.accuracy.shape), tuple(self.left_out.shape)}
        if shapes != {(len(self.layers),)}:
            raise ValueError(f"scores of {len(self.layers)} layers have shapes {sorted(shapes)}")


def kind_of(targets: Tensor) -> OnlineKind:
    """Return what targets in the form of `probe_targets` are of; maps are of classes.

    Example:
        >>> kind_of(torch.tensor([2, 0])), kind_of(torch.rand(2, 1))
        ('classes', 'values')
    """
    if targets.is_floating_point():
        return "values"
    return "labels" if targets.ndim == 2 else "classes"


class OnlineProbes:
    """Linear probes, one a layer, that learn by Adam from a batch at a time, all layers in one product.

    They are softmax classifiers of one class an image or pixel, logistic ones of each of several labels, and least
    squares of values, these about their running mean and in units of their standard deviation.

    Features are standardized by running means and variances, as networks change while they train. Weights begin at
    zero: the loss has a single minimum, and nothing is left to chance. A class is learned from the first batch on that
    is seen to hold it; classes are numbers from 0 up, and images with a negative one (to be ignored) are left out.

    Args:
        dimensions: Number of features of each layer, by name, in the order of the results.
        kind: What they tell.

    Attributes:
        layers: Names.
        kind: As given.
        batches: Number of batches learned from.

    Example:
        >>> probes = OnlineProbes({"conv": 2})
        >>> labels = torch.arange(8) % 2
        >>> for _ in range(30):
        ...     probes.update({"conv": torch.nn.functional.one_hot(labels).float()}, labels)
        >>> probes.predict({"conv": torch.eye(2)})
        tensor([[0, 1]])
    """

    def __init__(self, dimensions: Mapping[str, int], kind: OnlineKind = "classes") -> None:
        self.layers, self.kind = tuple(dimensions), kind
        self.batches = 0
        self._sizes = tuple(dimensions.values())
        rows, widest = len(self._sizes), max(self._sizes)
        # Narrow layers are padded with features that are always zero; the last row of the weights is the intercept.
        self._weights = torch.zeros(rows, widest + 1, 0)
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._mean, self._variance = torch.zeros(rows, 1, widest), torch.zeros(rows, 1, widest)
        self._left_out = torch.zeros(rows, dtype=torch.int64)
        self._target_mean, self._target_variance = torch.zeros(0), torch.zeros(0)  # of values

    @property
    def dimensions(self) -> dict[str, int]:
        """Number of features of each layer."""
        return dict(zip(self.layers, self._sizes, strict=True))

    @property
    def classes(self) -> int:
        """Number of classes so far, or of labels, or of values."""
        return self._weights.shape[-1]

    @property
    def left_out(self) -> Tensor:
        """Images of each layer `(L,)` int64 that were not learned from, since their features were not finite."""
        return self._left_out.cpu()

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor], targets: Tensor) -> None:
        """Learn from a batch.

        Args:
            features: Of each layer `(N, D)` floats, all on one device.
            targets: `(N,)` int64 classes, `(N, K)` zeros and ones, or `(N, V)` values, as the kind is.

        Raises:
            ValueError: There are more or fewer labels or values than before.
        """
        inputs, finite = self._inputs(features)
        targets = targets.to(inputs.device)
        learnable = self._learnable(targets)
        self._left_out += len(targets) - finite.sum(1)
        if self.classes == 0:
            return
        self.batches += 1
        kept = (finite & learnable)[..., None].to(inputs.dtype)
        count = kept.sum(1, keepdim=True)
        self._follow(inputs, kept, count)
        standard = self._standardized(inputs)
        slopes = torch.baddbmm(self._weights[:, -1:], standard, self._weights[:, :-1])
        slopes = self._errors(slopes, targets)
        slopes *= kept / count.clamp(min=1)
        self._step(torch.cat([standard.mT @ slopes, slopes.sum(1, keepdim=True)], 1))

    @torch.no_grad()
    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the scores `(L, N, classes)` float32 of images, or their values; NaN where features are not finite.

        Raises:
            ValueError: The probes have learned no class yet.
        """
        if self.classes == 0:
            raise ValueError("the probes have learned no class yet")
        inputs, finite = self._inputs(features)
        standard = self._standardized(inputs)
        scores = torch.baddbmm(self._weights[:, -1:], standard, self._weights[:, :-1])
        if self.kind == "values":
            scores = scores * self._target_variance.sqrt() + self._target_mean
        return scores.masked_fill(~finite[..., None], torch.nan)

    def predict(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the classes `(L, N)` int64 that the probes take images for; -1 where features are not finite.

        Raises:
            ValueError: The probes have learned no class yet.
        """
        scores = self.scores(features)
        return scores.argmax(-1).masked_fill(scores[..., 0].isnan(), -1)

    @torch.no_grad()
    def average(self) -> None:
        """Make the probes of all ranks their mean; every rank must call it.

        The loss is convex: the mean of probes that learned from different images is at least as good as they are on
        average, and ranks that meet only now and then do not slow down training.
        """
        if ranks() == 1:
            return
        said = torch.stack(gathered(torch.tensor([self.classes, _KINDS.index(self.kind)])))
        if len(said[:, 1].unique()) > 1:
            raise ValueError("labels have different forms on different ranks: zeros and ones, and other values")
        self._grow(int(said[:, 0].max()))
        parts = [self._weights, self._first, self._second, self._mean, self._variance]
        for part in [*parts, self._target_mean, self._target_variance]:
            part.copy_(summed(part) / ranks())

    def state_dict(self) -> dict[str, Any]:
        """Return everything there is to go on from, on the CPU."""
        return {
            "dimensions": self.dimensions,
            "kind": self.kind,
            "batches": self.batches,
            **{name: getattr(self, f"_{name}").cpu().clone() for name in _STATE},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> OnlineProbes:
        """Return the probes whose `state_dict` this is."""
        probes = cls(state["dimensions"], state.get("kind", "classes"))
        probes.batches = state["batches"]
        for name in _STATE:
            if name in state:  # earlier versions had no values
                setattr(probes, f"_{name}", state[name].clone())
        return probes

    def _inputs(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All layers `(L, N, D)` float32 side by side, zero where an image's are not finite, and which ones are."""
        first = features[self.layers[0]]
        if first.device != self._weights.device:
            for name in _STATE:
                setattr(self, f"_{name}", getattr(self, f"_{name}").to(first.device))
        inputs = self._mean.new_zeros(len(self.layers), len(first), self._mean.shape[-1])
        for place, layer in enumerate(self.layers):
            rows = features[layer]
            if rows.shape != (len(first), self._sizes[place]):
                raise ValueError(
                    f"layer '{layer}' gives features {tuple(rows.shape)}, but its probe reads {self._sizes[place]} of "
                    f"each of {len(first)} images"
                )
            inputs[place, :, : self._sizes[place]] = rows
        finite = (inputs.abs() < _LARGEST).all(-1)  # of NaN, too, it is False
        return inputs.masked_fill_(~finite[..., None], 0), finite

    def _learnable(self, targets: Tensor) -> Tensor:
        """Which images `(N,)` bool there is something to learn of; room is made for what is new."""
        if self.kind != "classes":
            if self.classes not in (0, targets.shape[1]):
                raise ValueError(f"{targets.shape[1]} {self.kind} an image, where there were {self.classes}")
            self._grow(targets.shape[1])
            return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        # To ask waits for the device: rarely, therefore.
        if self.batches < _ALWAYS or self.batches % _EVERY == 0:
            self._grow(int(targets.max()) + 1)
        return (targets >= 0) & (targets < self.classes)

    def _errors(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Slopes of the loss along the scores `(L, N, classes)`."""
        if self.kind == "classes":
            return scores.softmax(-1) - F.one_hot(targets.clamp(0, self.classes - 1), self.classes)
        if self.kind == "labels":
            return scores.sigmoid() - targets.to(scores.dtype)
        weight = max(1 / self.batches, _MEMORY)
        values = targets.to(scores.dtype)
        away, variance = values.mean(0) - self._target_mean, values.var(0, correction=0)
        self._target_variance += weight * (variance - self._target_variance + (1 - weight) * away.square())
        self._target_mean += weight * away
        noise = _ROUNDING * self._target_mean.square() + torch.finfo(scores.dtype).tiny
        return scores - (values - self._target_mean) * (self._target_variance + noise).rsqrt()

    def _grow(self, classes: int) -> None:
        """Make room for more classes, untrained."""
        more = classes - self.classes
        if more > 0:
            self._weights, self._first, self._second, self._target_mean, self._target_variance = (
                F.pad(part, (0, more))
                for part in (self._weights, self._first, self._second, self._target_mean, self._target_variance)
            )

    def _follow(self, inputs: Tensor, kept: Tensor, count: Tensor) -> None:
        """Let the running means and variances follow the kept images of a batch."""
        weight = (count > 0) * max(1 / self.batches, _MEMORY)
        mean = (inputs * kept).sum(1, keepdim=True) / count.clamp(min=1)
        away = mean - self._mean
        variance = ((inputs - mean).square_().mul_(kept)).sum(1, keepdim=True) / count.clamp(min=1)
        self._variance += weight * (variance - self._variance + (1 - weight) * away.square())
        self._mean += weight * away

    def _standardized(self, inputs: Tensor) -> Tensor:
        sizes = self._mean.new_tensor(self._sizes)[:, None, None]
        # Of features that do not vary, rounding is all that is left: it goes with their size.
        noise = _NOISE * (self._variance + _ROUNDING * self._mean.square()).sum(-1, keepdim=True) / sizes
        # Divided by the root of their number, so that a step changes scores alike in wide and narrow layers.
        scale = (self._variance + noise.clamp(min=torch.finfo(noise.dtype).tiny)).mul(sizes).rsqrt()
        return (inputs - self._mean).mul_(scale)

    def _step(self, gradient: Tensor) -> None:
        """Adam (Kingma & Ba 2015)."""
        first, second = _BETAS
        self._first.lerp_(gradient, 1 - first)
        self._second.lerp_(gradient.square(), 1 - second)
        size = (self._second / (1 - second**self.batches)).sqrt_().add_(_EPSILON)
        self._weights.addcdiv_(self._first, size, value=-RATE / (1 - first**self.batches))


_STATE = ("weights", "first", "second", "mean", "variance", "left_out", "target_mean", "target_variance")
_KINDS = ("classes", "labels", "values")
