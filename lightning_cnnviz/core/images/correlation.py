"""How alike the channels of a layer are: the correlation of their feature maps' means over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, numbered_batches
from lightning_cnnviz.core.data.distributed import gathered, ranks, summed
from lightning_cnnviz.core.data.once import EachOnce, SeenImages
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import give
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.layers import LayerSpec, SelectedLayer, select_for_views
from lightning_cnnviz.core.tracing.feature_maps import channel_means, trace_feature_maps

__all__ = ["ChannelCorrelation", "RunningCorrelation", "channel_correlation"]

# A channel whose standard deviation is a smaller fraction of its root mean square than this varies by rounding alone.
_CONSTANT = 1e-6
_ROUNDING = 1e-12  # of a correlation: two equal channels reach a threshold of 1


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelCorrelation:
    """How the channels of one layer correlate.

    Of each image and channel, one number counts: the mean of the feature map over its height and width.

    Attributes:
        layer: The layer's name.
        correlation: `(C, C)` float64, -1 to 1: Pearson's r of each two channels. Rows and columns of channels that are
            constant over the images are NaN, also on the diagonal.
        order: `(C,)` int64: the channels in the order of a hierarchical clustering (distance 1 - r, average linkage,
            optimal leaf order), so that channels which are alike stand side by side; constant ones last.
        redundant: `(C,)` bool: channels with |r| of at least `threshold` with an earlier channel that is not redundant
            itself, when the channels are gone through from 0 up. A constant channel is not called redundant.
        threshold: Above 0, up to 1.
        images: Number of images.
        left_out: Number of images that were left out, since their features were not finite.
    """

    layer: str
    correlation: Tensor
    order: Tensor
    redundant: Tensor
    threshold: float
    images: int
    left_out: int = 0

    def __post_init__(self) -> None:
        channels = len(self.order)
        shapes = (tuple(self.correlation.shape), tuple(self.order.shape), tuple(self.redundant.shape))
        if shapes != ((channels, channels), (channels,), (channels,)):
            raise ValueError(
                f"layer '{self.layer}': correlation (C, C), order (C,) and redundant (C,) do not go together: {shapes}"
            )

    @property
    def constant(self) -> Tensor:
        """Which channels are constant over the images, `(C,)` bool."""
        return self.correlation.diagonal().isnan()

    @property
    def redundant_fraction(self) -> float:
        """The redundant channels as a fraction of all channels, 0 to 1; NaN of fewer than two images."""
        return float("nan") if self.images < 2 else float(self.redundant.double().mean())


def channel_correlation(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerSpec = "conv",
    *,
    threshold: float = 0.95,
    batch_fn: BatchFn | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> tuple[ChannelCorrelation, ...]:
    """Correlate the channels of each chosen layer over a data set, in one pass.

    The network runs in eval mode and is left as it was. The result depends on the loader's order and batch size by
    rounding alone; an image that comes twice counts once.

    Args:
        model: Any network that takes images `(N, C, H, W)`.
        loader: A DataLoader (also a shuffled one), or any iterable of batches; needs no labels.
        layers: See `select_layers`; by default every convolution, read behind the BatchNorm that directly follows it
            and in front of the nonlinearity.
        threshold: From which |r| on two channels say the same, above 0 and up to 1.
        batch_fn: See `read_batch`.
        progress: Wraps the iterable of batches to show progress.

    Returns:
        One result for each layer, in the order in which they run.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: The loader is empty, or the threshold is out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight[1].copy_(-model[0].weight[0])
        >>> (layer,) = channel_correlation(model, [torch.rand(8, 1, 6, 6)])
        >>> round(float(layer.correlation[0, 1]), 6), layer.redundant.tolist(), layer.redundant_fraction
        (-1.0, [False, True], 0.5)
    """
    running = RunningCorrelation(model, select_for_views(model, layers), threshold=threshold)
    device = model_device(model)
    with analysis_mode(model):
        for batch in numbered_batches(loader, batch_fn, progress):
            images = batch.images.to(device)
            give(model, batch.given, batch.images)
            with running.batch(images, batch.indices, batch.labels):
                model(images.clone())
        return running.compute()


class RunningCorrelation:
    """Gathers what channels' correlations are computed from, batch by batch, in passes that somebody else makes.

        with running.batch(images, indices, labels):
            network(images)

    An image that comes twice, also on two ranks, counts once, by its index. For each image memory grows by its index
    alone. On several ranks an image belongs to the rank `index % ranks`; where another rank reads it, that rank keeps
    its channels' means until ranks are merged. With Lightning's sampler for validation that is one image at the most.

    Args:
        model: The network.
        layers: From `select_layers`.
        threshold: See `channel_correlation`.

    Raises:
        ValueError: The threshold is out of range.
    """

    def __init__(self, model: nn.Module, layers: Sequence[SelectedLayer], *, threshold: float = 0.95) -> None:
        if not 0 < threshold <= 1:
            raise WrongArgumentError(f"threshold={threshold}: give an absolute correlation above 0, up to 1")
        self._model, self._layers, self._threshold = model, layers, threshold
        self._sites: dict[str, Site] = {}
        self._moments: dict[str, _Moments] = {}
        self._seen = SeenImages()
        self._once = EachOnce(self._seen, self._count)

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> Iterator[None]:
        """Watch one forward pass of the network over a batch; hooks are gone on leaving.

        Args:
            images: `(N, C, H, W)` on the network's device.
            indices: `(N,)` int64, each image's index in the data set.
            labels: Are not needed.

        Raises:
            LayerNotFoundError: At the first batch: a named layer does not run exactly once in a pass.
            ValueError: A layer did not run over so many images in the pass.
        """
        if not self._sites:
            traced = trace_feature_maps(self._model, images[:1], self._layers)
            with torch.inference_mode(False):  # tensors made in inference mode could not be written to later
                self._moments = {maps.layer: _Moments(maps.shape[0]) for maps in traced}
            self._sites = {maps.layer: maps.site for maps in traced}
        means: dict[str, Tensor] = {}

        def take(layer: str, value: Any) -> None:
            # The first value of the right length counts: a step may call its network once more for something else.
            if layer not in means and isinstance(value, Tensor) and value.ndim in (2, 4) and len(value) == len(images):
                means[layer] = channel_means(value.detach())

        with hooked(self._sites, take):
            yield
        missing = [layer for layer in self._sites if layer not in means]
        if missing:
            raise ValueError(
                f"a pass over {len(images)} images was expected, but layers {missing} gave no feature maps of so many; "
                "is the network called with the images of the batch, and is it not compiled?"
            )
        with torch.inference_mode(False), torch.no_grad():
            places = self._seen.fresh(indices.cpu())
            if len(places):
                rows = (means[layer].cpu().double()[places] for layer in self._moments)
                self._once.take(indices.cpu()[places], *rows)
                self._seen.add(indices.cpu())

    def merge(self) -> None:
        """Bring the ranks together, each of which calls this; then every rank has seen all images.

        Raises:
            ValueError: A rank has seen no image.
        """
        if ranks() == 1:
            return
        if len({int(count) for count in gathered(torch.tensor(len(self._sites)))}) != 1:
            raise ValueError("channel correlations cannot be merged: a rank has seen no image")
        self._once.merge()
        for moments in self._moments.values():
            moments.merge()

    def compute(self) -> tuple[ChannelCorrelation, ...]:
        """Return the correlations of each layer over all images, in the order in which layers run.

        Raises:
            ValueError: There was no image.
        """
        if not self._sites:
            raise ValueError("no image was seen")
        self._once.count_waiting()
        return tuple(moments.result(layer, self._threshold) for layer, moments in self._moments.items())

    def _count(self, *rows: Tensor) -> None:
        for moments, values in zip(self._moments.values(), rows, strict=True):
            moments.add(values)


class _Moments:
    """Running means and products of deviations from them, in float64; stable in any order of adding.

    Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, channels: int) -> None:
        self.count = self.left_out = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take some images' values `(N, C)`; an image with one that is not finite is left out."""
        finite = rows.isfinite().all(1)
        self.left_out += int((~finite).sum())
        rows = rows[finite]
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        away, centered = mean - self.mean, rows - mean
        self.products += centered.T @ centered
        self.products += torch.outer(away, away) * (self.count * len(rows) / total)
        self.mean += away * (len(rows) / total)
        self.count = total

    def merge(self) -> None:
        """Add what the other ranks have."""
        count, left_out = summed(torch.tensor([self.count, self.left_out])).tolist()
        mean = summed(self.mean * self.count) / max(count, 1)
        away = self.mean - mean
        self.products = summed(self.products + self.count * torch.outer(away, away))
        self.mean, self.count, self.left_out = mean, count, left_out

    def result(self, layer: str, threshold: float) -> ChannelCorrelation:
        """Return the correlations."""
        deviations = self.products.diagonal().clamp(min=0).sqrt()
        level = (self.count * self.mean.square() + deviations.square()).sqrt()
        constant = deviations <= _CONSTANT * level
        correlation = (self.products / torch.outer(deviations, deviations)).clamp(-1, 1)
        correlation.fill_diagonal_(1)
        correlation[constant] = torch.nan
        correlation[:, constant] = torch.nan
        return ChannelCorrelation(
            layer=layer,
            correlation=correlation,
            order=_clustered(correlation, constant),
            redundant=_redundant(correlation, threshold),
            threshold=threshold,
            images=self.count,
            left_out=self.left_out,
        )


def _clustered(correlation: Tensor, constant: Tensor) -> Tensor:
    """Channels in the order of a hierarchical clustering; constant ones last."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    varying, rest = (~constant).nonzero().flatten(), constant.nonzero().flatten()
    if len(varying) < 3:
        return torch.cat([varying, rest])
    # Rounded, so that no batch size decides between channels that are equally far.
    distances = (1 - correlation[varying][:, varying]).numpy().round(9)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    order = torch.from_numpy(leaves_list(tree).astype(np.int64))
    order = order if order[0] < order[-1] else order.flip(0)  # a reversed order is as good: choose one of both
    return torch.cat([varying[order], rest])


def _redundant(correlation: Tensor, threshold: float) -> Tensor:
    """See `ChannelCorrelation.redundant`."""
    alike = (correlation.abs() >= threshold - _ROUNDING).numpy()  # NaN is not
    kept, redundant = np.zeros((2, len(alike)), dtype=bool)
    for channel, others in enumerate(alike):
        redundant[channel] = bool((others & kept).any())
        kept[channel] = others[channel] and not redundant[channel]
    return torch.from_numpy(redundant)
