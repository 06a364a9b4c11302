"""What has become of each unit: the channels of two networks, compared by what they do on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.comparison.similarity import FEWEST_IMAGES, centered_gram, channel_correlations
from lightning_cnnviz.core.data.batches import BatchFn, numbered_batches
from lightning_cnnviz.core.network.calling import give, rows_of
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.layers import LayerSpec, select_for_views
from lightning_cnnviz.core.tracing.feature_maps import channel_means, trace_feature_maps

__all__ = ["LayerComparison", "UnitComparison", "compare_units"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerComparison:
    """The channels of one layer, beside those of a layer of another network.

    Attributes:
        layer: The layer's name.
        other: The name of the layer of the other network that it is compared with.
        cka: How alike the two layers are as a whole, 1 at most: linear CKA, see `centered_gram`.
        correlation: `(C,)` float64, -1 to 1: each channel's correlation with the channel of the same number; NaN of
            channels that are constant over the images, and where numbers mean nothing since networks differ.
        partners: `(C,)` int64: the channel of the other layer that each channel is matched with, so that the sum of
            correlations is largest and no channel is taken twice; -1 of constant channels and of those left over.
        partner_correlation: `(C,)` float64, -1 to 1: the correlation with that channel; NaN where there is none.
        chance: What `partner_correlation` is on average when one network's images are shuffled: matching finds some
            likeness in anything, the more of it the fewer images and the more channels there are.
    """

    layer: str
    other: str
    cka: float
    correlation: Tensor
    partners: Tensor
    partner_correlation: Tensor
    chance: float

    def __post_init__(self) -> None:
        shapes = {tuple(value.shape) for value in (self.correlation, self.partners, self.partner_correlation)}
        if len(shapes) != 1 or self.correlation.ndim != 1:
            raise ValueError(f"layer '{self.layer}': correlation, partners and partner_correlation differ: {shapes}")

    @property
    def similarity(self) -> Tensor:
        """How much of each channel is still there, `(C,)`: its correlation, or that with its partner."""
        return self.partner_correlation if bool(self.correlation.isnan().all()) else self.correlation

    @property
    def changed(self) -> Tensor:
        """The channels, `(C,)` int64, those that changed most first; those of which nothing is known last."""
        return self.similarity.nan_to_num(2.0).argsort(stable=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitComparison:
    """Two networks, compared by their activations on the same images.

    Of each image and channel, one number counts: the mean of the feature map over its height and width.

    Attributes:
        layers: The layers of the first network, in the order in which they run, each beside one of the other network.
        other_layers: The names of the other network's layers, in the order in which they run.
        cka: `(L, M)` float64: linear CKA of each layer of the first network with each of the other, see
            `centered_gram`; NaN of layers that are constant over the images.
        same_units: Whether a channel's number means the same in both, since the layers have the same names and numbers
            of channels. If not, each layer is compared with the one of the highest CKA.
        images: Number of images.
        left_out: Number of images that were left out, since the features of a network were not finite.
    """

    layers: tuple[LayerComparison, ...]
    other_layers: tuple[str, ...]
    cka: Tensor
    same_units: bool
    images: int
    left_out: int = 0

    def __post_init__(self) -> None:
        if tuple(self.cka.shape) != (len(self.layers), len(self.other_layers)):
            raise ValueError(f"CKA of {len(self.layers)} x {len(self.other_layers)} layers is {tuple(self.cka.shape)}")


def compare_units(
    model: nn.Module,
    other: nn.Module,
    loader: Iterable[Any],
    layers: LayerSpec = "conv",
    *,
    other_layers: LayerSpec | None = None,
    most_images: int = 1000,
    other_inputs: Callable[[Tensor], Tensor] | None = None,
    batch_fn: BatchFn | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> UnitComparison:
    """Compare the channels of two networks by what they do on the same images, in one pass of each.

    Where both have layers of the same names and sizes (two epochs, or a network before and after fine-tuning) channels
    are compared number by number. In any case they are matched, one to one, by the sum of their correlations (as in Li
    et al., "Convergent Learning: Do Different Neural Networks Learn the Same Representations?", 2016). Both networks
    run in eval mode and are left as they were.

    Memory grows with `most_images` and not with the data set: of more images, that number at most is kept, evenly.

    Args:
        model: A network that takes images `(N, C, H, W)`.
        other: Another one, or a copy of it with other weights.
        loader: A DataLoader, or any iterable of batches; needs no labels.
        layers: See `select_layers`; by default every convolution, read behind the BatchNorm that directly follows it
            and in front of the nonlinearity.
        other_layers: The same of the other network; by default what `layers` says.
        most_images: At least 4.
        other_inputs: Turns the images into what the other network is given, where that has another size or
            normalization.
        batch_fn: See `read_batch`.
        progress: Wraps the iterable of batches to show progress.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a named layer does not run exactly once in a pass.
        TypeError: A batch holds no images.
        ValueError: `most_images` is too small, or fewer than 4 images have finite features.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
        >>> other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = other[0].weight.copy_(model[0].weight[[2, 0, 1]])
        ...     _ = other[0].bias.zero_()
        >>> found = compare_units(model, other, [torch.rand(50, 1, 6, 6)]).layers[0]
        >>> found.partners.tolist(), found.partner_correlation.round(decimals=3).tolist()
        ([1, 2, 0], [1.0, 1.0, 1.0])
    """
    if most_images < FEWEST_IMAGES:
        raise ValueError(f"most_images={most_images}: give at least {FEWEST_IMAGES}")
    sides = (_Side(model, layers), _Side(other, layers if other_layers is None else other_layers))
    kept = _EvenlyKept(most_images)
    with analysis_mode(model), analysis_mode(other) if other is not model else nullcontext():
        for batch in numbered_batches(loader, batch_fn, progress):
            places = kept.places(len(batch.images))
            images = batch.images[places]
            if not len(images):
                continue
            given = images if other_inputs is None else other_inputs(images)
            for network in (model, other):
                give(network, batch.given, batch.images)
            with rows_of(model, places), rows_of(other, places) if other is not model else nullcontext():
                kept.add([sides[0].means(images), sides[1].means(given)])
    finite, left_out = kept.finite()
    if len(finite) < FEWEST_IMAGES:
        raise ValueError(
            f"{len(finite)} images have finite features in both networks, and {left_out} have not: a comparison takes "
            f"at least {FEWEST_IMAGES}"
        )
    first, second = ({layer: rows[finite] for layer, rows in side.items()} for side in kept.features())
    return _compared(first, second, left_out)


def _compared(first: Mapping[str, Tensor], second: Mapping[str, Tensor], left_out: int) -> UnitComparison:
    grams = torch.stack([centered_gram(rows).float().flatten() for rows in first.values()])
    # The second network's matrices one at a time: they have as many numbers as there are pairs of images.
    cka = torch.stack([grams @ centered_gram(rows).float().flatten() for rows in second.values()], 1).double()
    same = [(name, rows.shape[1]) for name, rows in first.items()] == [(n, r.shape[1]) for n, r in second.items()]
    names = tuple(second)
    layers = []
    for place, (layer, rows) in enumerate(first.items()):
        beside = place if same else int(cka[place].nan_to_num(-2.0).argmax())
        others = second[names[beside]]
        correlations = channel_correlations(rows, others)
        partners, partner_correlation = _matched(correlations)
        shuffled = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
        _, by_chance = _matched(channel_correlations(rows, shuffled))
        layers.append(
            LayerComparison(
                layer=layer,
                other=names[beside],
                cka=float(cka[place, beside]),
                correlation=correlations.diagonal().clone() if same else partner_correlation * torch.nan,
                partners=partners,
                partner_correlation=partner_correlation,
                chance=float(by_chance.nanmean()),
            )
        )
    images = len(next(iter(first.values())))
    return UnitComparison(
        layers=tuple(layers), other_layers=names, cka=cka, same_units=same, images=images, left_out=left_out
    )


def _matched(correlations: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one partners `(C,)` of the largest sum of correlations, and the correlations with them."""
    from scipy.optimize import linear_sum_assignment

    partners = torch.full((len(correlations),), -1, dtype=torch.int64)
    values = torch.full((len(correlations),), torch.nan, dtype=torch.float64)
    known = ~correlations.isnan()
    rows, columns = known.any(1).nonzero()[:, 0], known.any(0).nonzero()[:, 0]
    chosen = correlations[rows][:, columns]
    first, second = (torch.from_numpy(places) for places in linear_sum_assignment(chosen.numpy(), maximize=True))
    partners[rows[first]] = columns[second]
    values[rows[first]] = chosen[first, second]
    return partners, values


class _Side:
    """One of the two networks, and where its layers are read."""

    def __init__(self, model: nn.Module, layers: LayerSpec) -> None:
        self._model, self._layers = model, select_for_views(model, layers)
        self._device = model_device(model)
        self._sites: dict[str, Site] = {}

    def means(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network, and return the spatial means of each layer's feature maps, `(N, C)` on the CPU."""
        images = images.to(self._device)
        if not self._sites:
            with rows_of(self._model, 0):
                traced = trace_feature_maps(self._model, images[:1], self._layers)
            self._sites = {maps.layer: maps.site for maps in traced}
        found: dict[str, Tensor] = {}

        def take(layer: str, maps: Tensor) -> None:
            found[layer] = channel_means(maps)

        with hooked(self._sites, take):
            self._model(images.clone())
        return {layer: found[layer].cpu() for layer in self._sites}


class _EvenlyKept:
    """Rows of features of evenly spread images: every image, or every second, fourth, ... where there are many."""

    def __init__(self, most: int) -> None:
        self._most, self._stride, self._arrived = most, 1, 0
        self._batches: list[list[dict[str, Tensor]]] = []
        self._numbers: list[Tensor] = []

    def places(self, count: int) -> Tensor:
        """Return which of the next `count` images are wanted."""
        numbers = torch.arange(self._arrived, self._arrived + count)
        self._arrived += count
        wanted = numbers % self._stride == 0
        self._numbers += [numbers[wanted]] if bool(wanted.any()) else []
        return wanted

    def add(self, sides: Sequence[dict[str, Tensor]]) -> None:
        """Take the features of the images that were wanted last."""
        self._batches.append(list(sides))
        while sum(map(len, self._numbers)) > self._most:
            self._stride *= 2
            for place, numbers in enumerate(self._numbers):
                kept = numbers % self._stride == 0
                self._numbers[place] = numbers[kept]
                self._batches[place] = [
                    {layer: rows[kept] for layer, rows in side.items()} for side in self._batches[place]
                ]

    def features(self) -> list[dict[str, Tensor]]:
        """Return the features `(N, C)` of each network, by layer."""
        sides = zip(*self._batches, strict=True)
        return [{layer: torch.cat([batch[layer] for batch in side]) for layer in side[0]} for side in sides]

    def finite(self) -> tuple[Tensor, int]:
        """Return the places of images whose features are all finite, and the number of the others."""
        layers = [rows for side in self.features() for rows in side.values()]
        fine = torch.stack([rows.isfinite().all(1) for rows in layers]).all(0)
        return fine.nonzero()[:, 0], int((~fine).sum())
