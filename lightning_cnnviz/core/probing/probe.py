"""Linear probes: what each layer already knows (Zeiler & Fergus 2013, Table 7; Donahue et al. 2013)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.features import Features, LayerFeatures
from lightning_cnnviz.core.probing.probed import Measure, Probed, ProbedClasses
from lightning_cnnviz.core.probing.protocols import Manifest, Protocol, Split, check_classes, find_protocol
from lightning_cnnviz.core.probing.settling import drawn_splits, probed_of, settled
from lightning_cnnviz.core.probing.strengths import Choice, choose_strength

__all__ = ["LayerProbe", "ProbeScores", "gram_matrix", "probe", "probe_layers"]

_CHOICE_TOLERANCE = 1e-5  # while C is chosen, accuracies matter alone
_ROWS = 1024  # of a block of the Gram matrix


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeScores:
    """How well classes, labels or values can be told from the features of one layer.

    Attributes:
        layer: The layer's name.
        heads: `"svm"`, `"softmax"`, `"knn"`; of several labels an image `"logistic"`, of values `"ridge"`.
        accuracy: `(heads, splits)` float64, on the test images: what `measure` says. Accuracies are 0 to 1, averaged as
            the protocol says; R2 is at most 1. NaN where the layer's features are not finite, so that nothing is
            fitted, or where the test images do not differ in what is told.
        C: `(heads, splits)` float64, chosen on training images; NaN for knn.
        converged: `(heads, splits)` bool: whether the solver came within its tolerance of the optimum: of the SVM by
            the duality gap, 1e-11 of the objective, which bounds the distance; of softmax by an estimate.
        dimensions: Number of features.
        classes: Number of classes; of labels that some images have and some have not; of values.
        protocol: How it was measured.
        digest: Of the split manifest: equal digests, equal images.
        nonfinite: The lowest index of an image whose features are not finite, or None.
        tried: `(heads, splits, 2)` float64, the smallest and the largest C that were tried; None in results of earlier
            versions.
        bracketed: `(heads, splits)` bool: whether the chosen C lies inside what was tried, or accuracy no longer
            changes at that end; None in results of earlier versions.
        measure: What the numbers are.
        chance: What would be measured without looking at the features; None in results of earlier versions.
        pixels: Of how many pixels of each image the class is told; 0 where it is that of the image.
        class_numbers: Of label maps: the number of each class; none of others, and in results of earlier versions.
        class_accuracy: Of label maps: `(heads, splits, classes)` float64, 0 to 1, the accuracy on the pixels of each
            class; NaN where no tested pixel is of it. None of others, and in results of earlier versions.
    """

    layer: str
    heads: tuple[str, ...]
    accuracy: Tensor
    C: Tensor
    converged: Tensor
    dimensions: int
    classes: int
    protocol: Protocol
    digest: str
    nonfinite: int | None = None
    tried: Tensor | None = None
    bracketed: Tensor | None = None
    measure: Measure = "accuracy"
    chance: float | None = None
    pixels: int = 0
    class_numbers: tuple[int, ...] = ()
    class_accuracy: Tensor | None = None

    def __post_init__(self) -> None:
        parts = [self.accuracy, self.C, self.converged]
        parts += [] if self.tried is None else [self.tried[..., 0]]
        parts += [] if self.bracketed is None else [self.bracketed]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) != 1 or self.accuracy.shape[0] != len(self.heads):
            raise ValueError(f"scores of {len(self.heads)} heads have shapes {sorted(shapes)}")

    def mean(self, head: str) -> float:
        """Mean over splits: of accuracies, 0 to 1."""
        return float(self.accuracy[self.heads.index(head)].mean())

    def std(self, head: str) -> float:
        """Standard deviation over splits (of a sample: n - 1), NaN for a single split."""
        values = self.accuracy[self.heads.index(head)]
        return float(values.std()) if len(values) > 1 else float("nan")


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerProbe:
    """The probes of all layers, in the order in which the layers run.

    Attributes:
        scores: One for each layer.
        control: The same of a network with random weights; None where it was not asked for.
        images: Number of training (or all) images and of test images that features were read of.
    """

    scores: tuple[ProbeScores, ...]
    control: tuple[ProbeScores, ...] | None = None
    images: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[ProbeScores]:
        return iter(self.scores)

    def __getitem__(self, layer: str) -> ProbeScores:
        for scores in self.scores:
            if scores.layer == layer:
                return scores
        raise KeyError(f"no probe of layer '{layer}'; there are {[scores.layer for scores in self.scores]}")


def probe(
    features: Tensor | LayerFeatures,
    labels: Tensor,
    protocol: str | Protocol = "full",
    *,
    test: tuple[Tensor | LayerFeatures, Tensor] | None = None,
    manifest: Manifest | None = None,
    layer: str = "",
    device: torch.device | str | None = None,
) -> ProbeScores:
    """Fit linear probes on the features of one layer and test them.

    C, scaling and weights depend on the training images of a split alone. Where the best C is at an end of `Cs`, more
    are tried beyond it, see `Protocol`. Where features outnumber training images, the Gram matrix of all images is
    computed once and serves every split, head and C.

    Args:
        features: `(N, D)` floats, or those of a layer that `tap_features` read.
        labels: `(N,)` int64 class numbers, not necessarily consecutive. Several labels an image: `(N, K)` int8 zeros
            and ones, each told from the rest and measured by mean average precision. Values: `(N, V)` floats, fitted by
            ridge regression and measured by R2. See `probe_targets`.
        protocol: A name in `PROTOCOLS`, or one of your own.
        test: Features and labels to test on; by default what a split leaves of each class.
        manifest: Splits that were drawn before; by default drawn now.
        layer: Name in the result; by default that of `features`.
        device: Where the arithmetic is done; by default where tensors lie.

    Raises:
        ValueError: One class alone, too few images of a class (named with their counts), labels of another form, or
            that are the same for all images, features that are not finite, or shapes that do not fit.

    Example:
        >>> labels = torch.arange(40) % 2
        >>> features = torch.nn.functional.one_hot(labels).float() + 0.01 * torch.arange(40).view(-1, 1) / 40
        >>> probe(features, labels, Protocol(per_class=10, splits=3)).accuracy
        tensor([[1., 1., 1.],
                [1., 1., 1.]], dtype=torch.float64)
    """
    protocol = find_protocol(protocol)
    learned = _as_layer(features, layer, labels)
    tested = None if test is None else _as_layer(test[0], learned.layer, test[1])
    if tested is not None and tested.dimensions != learned.dimensions:
        raise ValueError(f"{learned.dimensions} features to learn from, but {tested.dimensions} to test on")
    targets, wanted = settled(labels, None if test is None else test[1])
    probed, numbers, asked = probed_of(targets, wanted, protocol)
    if manifest is None:
        manifest = drawn_splits(targets, protocol, test_targets=wanted)
    if asked is not None and wanted is not None and asked.ndim == 1:
        used = torch.cat([split.test for split in manifest.splits]).unique()
        if bool((asked[used] < 0).any()):
            check_classes(targets, wanted)
    data = _Data(learned, tested, protocol, device, [split.train for split in manifest.splits])
    results = [
        _probe_split(data, split, probed, numbers, numbers if asked is None else asked, protocol)
        for split in manifest.splits
    ]

    def column(value: Callable[[_Tested], Any], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor([[value(one) for one in row] for row in zip(*results, strict=True)], dtype=dtype)

    return ProbeScores(
        layer=learned.layer,
        heads=probed.heads(protocol.heads),
        accuracy=column(lambda one: one.value),
        C=column(lambda one: one.choice.C),
        tried=column(lambda one: (one.choice.lowest, one.choice.highest)),
        bracketed=column(lambda one: one.choice.bracketed, torch.bool),
        converged=column(lambda one: one.converged, torch.bool),
        dimensions=learned.dimensions,
        classes=probed.count,
        protocol=protocol,
        digest=manifest.digest,
        measure=probed.measure,
        chance=probed.chance,
        class_numbers=probed.numbers if isinstance(probed, ProbedClasses) else (),
        class_accuracy=_by_class(results) if isinstance(probed, ProbedClasses) else None,
    )


def probe_layers(
    features: Features,
    protocol: str | Protocol = "full",
    *,
    test: Features | None = None,
    manifest: Manifest | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> LayerProbe:
    """Probe all layers on the same splits; see `probe`. A layer whose features are not finite has scores of NaN.

    Example:
        >>> from torch import nn
        >>> from lightning_cnnviz.core.probing.tap import tap_features
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> features = tap_features(model, [(torch.rand(20, 1, 12, 12), torch.arange(20) % 2)], pool=100)
        >>> [scores.accuracy.shape for scores in probe_layers(features, Protocol(per_class=5, splits=3))]
        [torch.Size([2, 3]), torch.Size([2, 3])]
    """
    for given in (features,) if test is None else (features, test):
        if not isinstance(given, Features):
            raise TypeError(
                f"features are a {type(given).__name__}; give what tap_features(network, loader) returns: "
                "probe_layers(tap_features(network, loader))"
            )
    protocol = find_protocol(protocol)
    targets, wanted = settled(features.labels, None if test is None else test.labels)
    if manifest is None:
        manifest = drawn_splits(
            targets,
            protocol,
            indices=features.indices,
            test_targets=wanted,
            test_indices=None if test is None else test.indices,
            pixels=features.pixels,
        )
    scores = []
    for layer in progress(features) if progress is not None else features:
        tested = None if test is None or wanted is None else (test[layer.layer], wanted)
        strange = _first_nonfinite(features, layer)
        if strange is None and test is not None:
            strange = _first_nonfinite(test, test[layer.layer])
        if strange is not None:
            probed, *_ = probed_of(targets, wanted, protocol)
            scores.append(_unmeasured(layer, probed, protocol, manifest, strange))
            continue
        scores.append(probe(layer, targets, protocol, test=tested, manifest=manifest, device=device))
    images = (features.images, 0 if test is None else test.images)
    scores = [
        replace(one, pixels=features.pixels) if features.pixels else replace(one, class_numbers=(), class_accuracy=None)
        for one in scores
    ]
    return LayerProbe(scores=tuple(scores), images=images)


def _first_nonfinite(features: Features, layer: LayerFeatures) -> int | None:
    """The lowest index of an image with a feature that is not finite."""
    finite = torch.ones(layer.images, dtype=torch.bool)
    for chunk in layer.chunks():
        finite &= chunk.isfinite().all(1)
    return None if bool(finite.all()) else int(features.indices[~finite].min()) // max(features.pixels, 1)


def _unmeasured(
    layer: LayerFeatures, probed: Probed, protocol: Protocol, manifest: Manifest, nonfinite: int
) -> ProbeScores:
    heads = probed.heads(protocol.heads)
    shape = (len(heads), len(manifest.splits))
    return ProbeScores(
        layer=layer.layer,
        heads=heads,
        accuracy=torch.full(shape, torch.nan, dtype=torch.float64),
        C=torch.full(shape, torch.nan, dtype=torch.float64),
        converged=torch.ones(shape, dtype=torch.bool),
        tried=torch.full((*shape, 2), torch.nan, dtype=torch.float64),
        bracketed=torch.ones(shape, dtype=torch.bool),
        dimensions=layer.dimensions,
        classes=probed.count,
        protocol=protocol,
        digest=manifest.digest,
        nonfinite=nonfinite,
        measure=probed.measure,
        chance=probed.chance,
    )


def gram_matrix(chunks: Iterable[Tensor], device: torch.device | str | None = None) -> Tensor:
    """Return the inner products `(N, N)` float64 of images, given blocks `(N, width)` of their features.

    Products are of float32, sums over blocks of float64; memory is that of the matrix and of one block.

    Example:
        >>> features = torch.arange(6.0).view(2, 3)
        >>> gram_matrix([features[:, :2], features[:, 2:]])
        tensor([[ 5., 14.],
                [14., 50.]], dtype=torch.float64)
    """
    gram: Tensor | None = None
    for chunk in chunks:
        chunk = chunk.to(device or chunk.device)
        count = len(chunk)
        if gram is None:
            gram = torch.zeros(count, count, dtype=torch.float64, device=chunk.device)
        for start in range(0, count, _ROWS):
            rows = chunk[start : start + _ROWS]
            # On and below the diagonal: the rest is the same mirrored.
            gram[start : start + len(rows), : start + len(rows)] += rows @ chunk[: start + len(rows)].T
    if gram is None:
        raise ValueError("there are no features to multiply")
    return gram.tril_().add_(gram.tril(-1).T)


class _Data:
    """Features of training and test images, as matrices scaled by what a part of the training images says."""

    def __init__(
        self,
        train: LayerFeatures,
        tested: LayerFeatures | None,
        protocol: Protocol,
        device: torch.device | str | None,
        learned: Sequence[Tensor],
    ) -> None:
        self._train, self._tested, self._scaling = train, tested, protocol.scaling
        self._device = device
        self._offset = 0 if tested is None else train.images
        self._near = learned[0]
        self.in_gram = train.dimensions > max(len(places) for places in learned)
        self._gram: Tensor | None = None
        self._dense: Tensor | None = None
        if self.in_gram and self._scaling != "standard":
            self._gram = gram_matrix(self._chunks(), device)
        elif not self.in_gram:
            self._dense = torch.cat([*self._chunks(train.dimensions)]).to(device or "cpu")

    @property
    def space(self) -> Literal["gram", "features"]:
        """What the matrices are."""
        return "gram" if self.in_gram else "features"

    def matrices(self, learned: Tensor, others: Tensor, *, test: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs of the solver for the images learned from, those of others, and squared norms of the former.

        Args:
            learned: Places of the images that scaling and solver may see.
            others: Places of images to classify; of the test set where `test` is true.
            test: Whether they are of the test set.
        """
        others = others + self._offset if test else others
        if not self.in_gram:
            return self._scaled_features(learned, others)
        gram = self._gram if self._gram is not None else self._standardized_gram(learned)
        learned, others = learned.to(gram.device), others.to(gram.device)
        inner, outer = gram[learned][:, learned], gram[others][:, learned]
        if self._scaling == "center":
            means = inner.mean(0)
            outer = outer - outer.mean(1, keepdim=True) - means + means.mean()
            inner = inner - means[:, None] - means + means.mean()
            size = _positive(inner.diagonal().mean())
            inner, outer = inner / size, outer / size
        return inner.float(), outer.float(), inner.diagonal().float()

    def _scaled_features(self, learned: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self._dense is not None
        inner = self._dense[learned.to(self._dense.device)].double()
        outer = self._dense[others.to(self._dense.device)].double()
        if self._scaling != "none":
            means = inner.mean(0)
            inner, outer = inner - means, outer - means
            if self._scaling == "standard":
                spread = inner.square().mean(0).sqrt()
                spread = _inverse(spread) / inner.shape[1] ** 0.5
                inner, outer = inner * spread, outer * spread
            else:
                size = _positive(inner.square().sum(1).mean()).sqrt()
                inner, outer = inner / size, outer / size
        return inner.float(), outer.float(), inner.square().sum(1).float()

    def _standardized_gram(self, learned: Tensor) -> Tensor:
        def chunks() -> Iterator[Tensor]:
            for chunk in self._chunks():
                seen = chunk[learned].double()
                means = seen.mean(0)
                spread = _inverse((seen - means).square().mean(0).sqrt())
                yield ((chunk.double() - means) * spread / self._train.dimensions**0.5).float()

        return gram_matrix(chunks(), self._device)

    def _chunks(self, width: int = 4096) -> Iterator[Tensor]:
        """Features of all images, about a mean unless scaling takes them as they are.

        What is scaled is centered by the training images of each split later on. To take another mean off before (that
        of the first split's training images) is then no other problem, and single precision is not spent on what all
        images have in common.
        """
        pairs = zip(self._train.chunks(width), self._tested.chunks(width), strict=True) if self._tested else ()
        for chunk in (torch.cat(pair) for pair in pairs) if self._tested else self._train.chunks(width):
            if self._scaling != "none":
                chunk = chunk - chunk[self._near].mean(0, dtype=torch.float64).float()
            yield chunk


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """One head on one split."""

    value: float
    converged: bool
    choice: Choice
    by_class: Tensor | None = None


def _probe_split(
    data: _Data, split: Split, probed: Probed, targets: Tensor, wanted: Tensor, protocol: Protocol
) -> list[_Tested]:
    """Fit and test each head."""
    chosen = _chosen_strengths(data, split, probed, targets, protocol)
    inner, outer, norms = data.matrices(split.train, split.test, test=True)
    own = targets[split.train].to(inner.device)
    results = []
    for head in probed.heads(protocol.heads):
        if head == "knn":
            products = outer if data.in_gram else outer @ inner.T
            count = min(protocol.neighbors, len(own))
            scores = probed.votes(own[(norms - 2 * products).topk(count, largest=False).indices])
            choice, converged = Choice(C=math.nan, lowest=math.nan, highest=math.nan, bracketed=True), True
        else:
            choice = chosen[head]
            (fitted,) = probed.fit(inner, own, head, [choice.C], space=data.space)
            scores, converged = fitted.scores(outer), fitted.converged
        value = probed.measured(scores, wanted[split.test])
        by_class = probed.by_class(scores, wanted[split.test]) if isinstance(probed, ProbedClasses) else None
        results.append(_Tested(value=value, converged=converged, choice=choice, by_class=by_class))
    return results


def _by_class(results: Sequence[Sequence[_Tested]]) -> Tensor:
    """Of each head and split, the accuracy of each class."""
    rows = [[one.by_class for one in row if one.by_class is not None] for row in zip(*results, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


def _chosen_strengths(
    data: _Data, split: Split, probed: Probed, targets: Tensor, protocol: Protocol
) -> dict[str, Choice]:
    """C of each head: the best on the held-out training images, of equal ones the smallest."""
    heads = [head for head in probed.heads(protocol.heads) if head != "knn"]
    if not protocol.chooses:
        alone = protocol.Cs[0]
        return dict.fromkeys(heads, Choice(C=alone, lowest=alone, highest=alone, bracketed=True))
    inner, outer, _ = data.matrices(split.fit, split.held_out, test=False)
    own, wanted = targets[split.fit].to(inner.device), targets[split.held_out]

    @cache
    def least_missed() -> float:
        scores = _least_squares(inner, own, probed.count, in_gram=data.in_gram)
        return 1 - probed.measured(scores, own)

    def choice_of(head: str) -> Choice:
        fits: dict[float, Any] = {}
        options: dict[str, Any] = {"space": data.space, "tolerance": _CHOICE_TOLERANCE}

        def underfits() -> bool:
            missed = 1 - probed.measured(fits[max(fits)].scores(inner), own)
            return missed > 0 and missed > 2 * least_missed()

        def values_of(strengths: Sequence[float]) -> list[float]:
            nearest = min(fits, key=lambda C: abs(math.log(C / strengths[0]))) if fits else None  # noqa: N803
            start = None if nearest is None else fits[nearest]
            path = probed.fit(inner, own, head, strengths, start=start, **options)
            fits.update(zip(strengths, path, strict=True))
            measured = [probed.measured(fit.scores(outer), wanted) for fit in path]
            # Where the held-out images do not tell, all are equal.
            return [-math.inf if math.isnan(value) else value for value in measured]

        return choose_strength(
            values_of, protocol.Cs, protocol.extensions, underfits=underfits, held_out=len(split.held_out)
        )

    return {head: choice_of(head) for head in heads}


def _least_squares(inputs: Tensor, own: Tensor, count: int, *, in_gram: bool) -> Tensor:
    """The scores `(N, count)` of the images learned from, by least squares with hardly any regularization: one solve.

    It says how much of them a linear classifier can fit, where one with large C would need long.
    """
    wanted = torch.nn.functional.one_hot(own, count) if own.ndim == 1 else own.clamp(min=0)
    wanted = wanted.double().nan_to_num()
    mean = wanted.mean(0)
    # Inner products came in single precision.
    inner = inputs.double() - (0 if in_gram else inputs.double().mean(0))
    products, least = (inner, 1e-6) if in_gram else (inner.T @ inner, 1e-13)
    products = products + least * _positive(products.diagonal().mean()) * torch.eye(len(products)).to(products)
    right = wanted - mean if in_gram else inner.T @ (wanted - mean)
    weights: Tensor = torch.linalg.solve(products, right)
    return inner @ weights + mean


def _as_layer(features: Tensor | LayerFeatures, layer: str, labels: Tensor) -> LayerFeatures:
    if isinstance(features, Tensor):
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(f"features are {features.dtype} of shape {tuple(features.shape)}: give floats (N, D)")
        wrong = ~features.isfinite().all(1)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0])
            raise ValueError(f"features{f' of layer {layer!r}' if layer else ''} of image {image} are NaN or infinite")
        count, width = features.shape
        features = LayerFeatures(
            layer=layer, values=features.detach().float(), shape=(width, 1, 1), pooled=(1, 1), images=count
        )
    if not isinstance(features, LayerFeatures) or not isinstance(labels, Tensor):
        raise TypeError(
            f"features are a {type(features).__name__} and labels a {type(labels).__name__}; give tensors (N, D) and "
            "(N,). Those of a network's layers: probe_layers(tap_features(network, loader))"
        )
    if labels.shape[:1] != (features.images,):
        raise ValueError(
            f"{features.images} images, but labels of shape {tuple(labels.shape)}: give one class an image, or a row "
            "of labels or values"
        )
    return features


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))


def _inverse(spread: Tensor) -> Tensor:
    """One over the standard deviation; 0 for features that do not vary."""
    still = spread <= 1e-7 * _positive(spread.max())
    return torch.where(still, torch.zeros_like(spread), 1 / torch.where(still, torch.ones_like(spread), spread))
