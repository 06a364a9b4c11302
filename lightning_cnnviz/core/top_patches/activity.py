"""What drives each feature map over the whole data set: a histogram of its activations, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered, summed
from lightning_cnnviz.core.data.once import EachOnce, SeenImages

__all__ = ["FeatureActivity", "RunningActivity"]

_BINS = 32
_CLASSES = 5
# A histogram's bins are no narrower than this fraction of the largest value: rounding would decide between them.
_FINEST = 2.0**-12
# A variance that is a smaller fraction of the mean square than this is rounding alone.
_CONSTANT = 1e-12
# Sums of classes x feature maps in float64 take no more memory than this many numbers: 256 MB.
_MOST_SUMS = 2**25


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureActivity:
    """How some feature maps of a layer respond to a whole data set: of each image, their largest activation counts.

    Attributes:
        features: The feature maps, ascending; F of them.
        images: `(F,)` int64, the number of images; those on which a map had no finite activation are left out.
        mean: `(F,)` float64, of the images' largest activations; NaN of no image.
        std: `(F,)` float64, their standard deviation (of the population).
        lowest: `(F,)` float64, the smallest of them.
        highest: `(F,)` float64, the largest of them.
        counts: `(F, 32)` int32, a histogram: bin b holds the images from `low + b * width` up to the next bin. Widths
            are powers of two, so that the order of images and the number of ranks make no difference.
        low: `(F,)` float64, where the first bin begins.
        width: `(F,)` float64, of a bin.
        classes: `(F, 5)` int64, the classes that each feature map tells best from all others, best first; -1 where
            there are fewer. None without labels, and where there are too many classes and feature maps to sum.
        class_means: `(F, 5)` float64, the mean over the images of each of these classes; NaN where there is none.
        selectivity: `(F, 5)` float64: the mean of the class less the mean of all other images, in standard deviations
            of all images.
    """

    features: tuple[int, ...]
    images: Tensor
    mean: Tensor
    std: Tensor
    lowest: Tensor
    highest: Tensor
    counts: Tensor
    low: Tensor
    width: Tensor
    classes: Tensor | None = None
    class_means: Tensor | None = None
    selectivity: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.features)
        for name in ("images", "mean", "std", "lowest", "highest", "counts", "low", "width"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} is of {len(getattr(self, name))} feature maps, and there are {count}")

    def of(self, features: Sequence[int]) -> FeatureActivity:
        """Return the same of some of these feature maps."""
        places = [self.features.index(feature) for feature in features]
        parts = {name: value[places] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, features=tuple(features), **parts)


class RunningActivity:
    """Gathers `FeatureActivity` of many feature maps, image by image; a running computation.

    Args:
        features: F, the number of feature maps.
        seen: See `EachOnce`.
    """

    def __init__(self, features: int, seen: SeenImages) -> None:
        self._once = EachOnce(seen, self._add)
        self._histogram = _Histogram(features)
        self._count = torch.zeros(features, dtype=torch.int64)
        self._sum, self._squares = torch.zeros(2, features, dtype=torch.float64)
        # By class, and None once there are too many.
        self._class_count: Tensor | None = torch.zeros(0, features, dtype=torch.int64)
        self._class_sum = torch.zeros(0, features, dtype=torch.float64)

    def update(self, indices: Tensor, values: Tensor, labels: Tensor | None) -> None:
        """Take the feature maps' largest activations on some images that have not come to this rank.

        Args:
            indices: `(N,)` int64.
            values: `(N, F)`; -inf where a map had no finite one.
            labels: `(N,)` int64, or None; below 0 for none.
        """
        if len(indices):
            labels = torch.full_like(indices, -1) if labels is None else labels
            self._once.take(indices, values.double(), labels)

    def merge(self) -> None:
        """Bring the ranks together; every rank calls this."""
        self._once.merge()
        self._histogram.merge()
        self._count, self._sum, self._squares = map(summed, (self._count, self._sum, self._squares))
        classes = torch.tensor(-1 if self._class_count is None else len(self._class_sum))
        everyones = [int(one) for one in gathered(classes)]
        if min(everyones) < 0 or self._class_count is None or not self._make_room(max(everyones)):
            self._class_count = None
            return
        self._class_count, self._class_sum = summed(self._class_count), summed(self._class_sum)

    def compute(self, lines: slice, features: tuple[int, ...]) -> FeatureActivity:
        """Return what is known so far of the feature maps at `lines`; of several ranks, after `merge`."""
        count = self._count[lines]
        mean, square = self._sum[lines] / count, self._squares[lines] / count
        variance = square - mean.square()
        std = variance.where(variance > _CONSTANT * square, 0.0).sqrt()
        return FeatureActivity(
            features=features,
            images=count.clone(),
            mean=mean,
            std=std,
            **self._histogram.of(lines),
            **self._profile(lines, count, std),
        )

    def _add(self, values: Tensor, labels: Tensor) -> None:
        finite = values.isfinite()
        self._histogram.add(values, finite)
        values = values.where(finite, 0.0)
        self._count += finite.sum(0)
        self._sum += values.sum(0)
        self._squares += values.square().sum(0)
        known = labels >= 0
        if self._class_count is None or not bool(known.any()):
            return
        if not self._make_room(int(labels.max()) + 1):
            self._class_count = None
            return
        self._class_count.index_add_(0, labels[known], finite[known].long())
        self._class_sum.index_add_(0, labels[known], values[known])

    def _make_room(self, classes: int) -> bool:
        """Grow the sums to so many classes; False where that would be too much."""
        assert self._class_count is not None
        missing = classes - len(self._class_sum)
        if missing <= 0:
            return True
        if classes * self._class_sum.shape[1] > _MOST_SUMS:
            return False
        self._class_count = torch.cat([self._class_count, self._class_count.new_zeros(missing, len(self._count))])
        self._class_sum = torch.cat([self._class_sum, self._class_sum.new_zeros(missing, len(self._count))])
        return True

    def _profile(self, lines: slice, count: Tensor, std: Tensor) -> dict[str, Tensor]:
        """The classes that each feature map tells best from all others."""
        if self._class_count is None or not bool(self._class_count.any()):
            return {}
        counts, sums = self._class_count[:, lines].double(), self._class_sum[:, lines]
        means, others = sums / counts, (self._sum[lines] - sums) / (count - counts)
        selectivity = ((means - others) / std).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        missing = max(0, _CLASSES - len(sums))
        selectivity = torch.nn.functional.pad(selectivity.T, (0, missing), value=-torch.inf)
        best, classes = selectivity.sort(dim=1, descending=True, stable=True)
        best, classes = best[:, :_CLASSES], classes[:, :_CLASSES]
        none = best == -torch.inf
        class_means = torch.nn.functional.pad(means.T, (0, missing), value=torch.nan).gather(1, classes)
        return {
            "classes": classes.masked_fill(none, -1),
            "class_means": class_means.masked_fill(none, torch.nan),
            "selectivity": best.masked_fill(none, torch.nan),
        }


class _Histogram:
    """Counts in bins that are all of one power-of-two width a feature map, and become wider as values need it.

    A bin of width 2w is two of width w, so that what has been counted need not be known again.
    """

    def __init__(self, features: int) -> None:
        self.lowest = torch.full((features,), torch.inf, dtype=torch.float64)
        self.highest = torch.full((features,), -torch.inf, dtype=torch.float64)
        self._exponent = torch.full((features,), _LEAST, dtype=torch.int64)
        self._origin = torch.zeros(features, dtype=torch.int64)  # number of the first bin
        self._counts = torch.zeros(features, _BINS, dtype=torch.int64)

    def add(self, values: Tensor, finite: Tensor) -> None:
        """Count values `(N, F)`, those that are finite."""
        low, high = values.where(finite, torch.inf).amin(0), values.where(finite, -torch.inf).amax(0)
        self._widen(torch.minimum(self.lowest, low), torch.maximum(self.highest, high))
        width = torch.ldexp(torch.ones_like(low), self._exponent)
        bins = (values.where(finite, 0.0) / width).floor().long() - self._origin
        self._counts.scatter_add_(1, bins.clamp(0, _BINS - 1).T, finite.T.long())

    def merge(self) -> None:
        """Add what the other ranks have counted; every rank calls this."""
        lowest, highest = (torch.stack(gathered(part)) for part in (self.lowest, self.highest))
        self._widen(lowest.amin(0), highest.amax(0))
        self._counts = summed(self._counts)

    def of(self, lines: slice) -> dict[str, Tensor]:
        """Return the histograms of some feature maps."""
        width = torch.ldexp(torch.ones_like(self.lowest[lines]), self._exponent[lines])
        return {
            "lowest": self.lowest[lines].clone(),
            "highest": self.highest[lines].clone(),
            "counts": self._counts[lines].to(torch.int32),
            "low": self._origin[lines] * width,
            "width": width,
        }

    def _widen(self, lowest: Tensor, highest: Tensor) -> None:
        """Let the bins reach from the lowest to the highest value."""
        self.lowest, self.highest = lowest, highest
        exponent, origin = _bins_for(lowest, highest)
        if torch.equal(exponent, self._exponent) and torch.equal(origin, self._origin):
            return
        old = self._origin[:, None] + torch.arange(_BINS)
        shift = (exponent - self._exponent)[:, None].clamp(0, 62)
        new = (old >> shift) - origin[:, None]
        counts = torch.zeros_like(self._counts)
        # Bins that hold nothing may lie outside; all others are within.
        counts.scatter_add_(1, new.clamp(0, _BINS - 1), self._counts)
        self._exponent, self._origin, self._counts = exponent, origin, counts


_LEAST = -1000


def _bins_for(lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """The finest exponent for which the bins reach from the lowest to the highest value, and the first bin's number."""
    known = highest >= lowest
    low, high = lowest.where(known, 0.0), highest.where(known, 0.0)
    largest = torch.maximum(low.abs(), high.abs())
    finest = torch.maximum((high - low) / _BINS, largest * _FINEST)
    _, exponent = torch.frexp(finest)  # the power of two above
    exponent = torch.where(largest > 0, exponent.long() - 1, torch.full_like(exponent, _LEAST, dtype=torch.int64))
    for _ in range(2):  # bins begin at multiples of their width: one step more may be needed
        width = torch.ldexp(torch.ones_like(low), exponent)
        outside = (high / width).floor() - (low / width).floor() >= _BINS
        exponent = torch.where(outside, exponent + 1, exponent)
    width = torch.ldexp(torch.ones_like(low), exponent)
    return exponent, (low / width).floor().long()
