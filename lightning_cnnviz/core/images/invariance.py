"""What a network does not care about: its features of transformed images (Zeiler & Fergus 2013, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.images.transforms import (
    TRANSFORMS,
    PixelScale,
    Transform,
    TransformSpec,
    resolve_transforms,
)
from lightning_cnnviz.core.network.calling import rows_of
from lightning_cnnviz.core.network.classification import (
    Classified,
    Scorer,
    check_images,
    classify,
    fill_values,
    interleave,
)
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.inputs import as_floats
from lightning_cnnviz.core.network.layers import LayerNotFoundError, LayerSpec, one_piece, select_layers
from lightning_cnnviz.core.network.memory import images_at_once, in_chunks
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.core.tracing.default_layers import find_default_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps
from lightning_cnnviz.core.tracing.readable import check_readable

__all__ = [
    "DEFAULT_TRANSFORMS",
    "DistanceKind",
    "InvarianceCurves",
    "Sweep",
    "area",
    "check_invariance",
    "half_width",
    "measure_invariance",
]

DEFAULT_TRANSFORMS = ("translation", "scale", "rotation")
"""Those of the paper."""

DistanceKind = Literal["raw", "relative", "unit"]
"""Between the features f of the original and g of the transformed image: |g - f| (the paper's), |g - f| / |f|, and the
distance between the unit vectors g / |g| and f / |f|, from 0 to 2."""

# Elements of feature maps whose differences are taken at once: on a CPU they stay in its caches.
_ELEMENTS, _ELEMENTS_ON_CPU = 2**27, 2**22


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """One transform over its values, on N images and L layers.

    Attributes:
        transform: Its name.
        label: Of its axis, with the unit.
        identity: The value that changes nothing, if any.
        values: `(V,)` float64, ascending.
        raw: `(L, N, V)` float32, Euclidean distance between the features of the original and the transformed image;
            NaN or infinite where these are.
        relative: `(L, N, V)`, the same over the norm of the original's features; NaN where that is zero.
        unit: `(L, N, V)`, 0 to 2, between the features scaled to length one; NaN where either is zero.
        probabilities: `(N, V)`, 0 to 1, of each image's own class; NaN where the network's scores are not finite.
    """

    transform: str
    label: str
    identity: float | None
    values: Tensor
    raw: Tensor
    relative: Tensor
    unit: Tensor
    probabilities: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(distances.shape) for distances in (self.raw, self.relative, self.unit)}
        if shapes != {(len(self.raw), *self.probabilities.shape)} or self.probabilities.shape[1:] != self.values.shape:
            raise ValueError(f"sweep '{self.transform}': distances {shapes} do not fit {self.probabilities.shape}")

    @property
    def finite(self) -> Tensor:
        """At which layers all features of an image and of its copies are finite, `(L, N)` bool."""
        return self.raw.isfinite().all(2)

    def distances(self, kind: DistanceKind) -> Tensor:
        """Return the distances `(L, N, V)` of a kind."""
        values: Tensor = getattr(self, kind)
        return values


@dataclass(frozen=True, eq=False, kw_only=True)
class InvarianceCurves:
    """How features and probabilities change along transforms.

    Attributes:
        layers: Names of the L layers; `"input of x"` is what the module x is given.
        untouched: What the network makes of the N images as they are.
        sweeps: One a transform.
    """

    layers: tuple[str, ...]
    untouched: Classified
    sweeps: tuple[Sweep, ...]

    @classmethod
    def joined(cls, parts: Sequence[InvarianceCurves]) -> InvarianceCurves:
        """Join the parts of several ranks: rank r had images r, r + ranks, ...."""
        sweeps = []
        for same in zip(*(part.sweeps for part in parts), strict=True):
            kinds = get_args(DistanceKind)
            distances = {kind: interleave([sweep.distances(kind) for sweep in same], 1) for kind in kinds}
            probabilities = interleave([sweep.probabilities for sweep in same])
            first = same[0]
            sweeps.append(
                Sweep(
                    transform=first.transform,
                    label=first.label,
                    identity=first.identity,
                    values=first.values,
                    probabilities=probabilities,
                    **distances,
                )
            )
        untouched = Classified.joined([part.untouched for part in parts])
        return cls(layers=parts[0].layers, untouched=untouched, sweeps=tuple(sweeps))


def measure_invariance(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    layers: LayerSpec | None = None,
    transforms: TransformSpec | Sequence[TransformSpec] = DEFAULT_TRANSFORMS,
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    fill: float | Sequence[float] | Tensor | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    follow: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> InvarianceCurves:
    """Transform images along sweeps; measure how far features move and what becomes of the class (section 4, Fig. 5).

    Transforms act on the images before normalization. Geometric ones commute with it where `fill` is in the network's
    values, so they are made on the images as given; for the others normalization is undone and redone. A copy that is
    bit for bit the original has distance 0 and the original's probability.

    The network is run once over each transformed copy, in eval mode and without gradients, and left as it was.
    Distances are taken while it runs: beside the originals', no feature maps are kept.

    Args:
        model: Any network that takes images `(N, C, H, W)` and returns scores, see `find_task`.
        images: `(N, C, H, W)` float or uint8, in the values that the network is given (see `as_floats`).
        labels: `(N,)`, the true classes, or as the task has them (see `read_labels`); without them, the class that the
            network finds for the untouched image.
        layers: See `select_layers`; by default the first convolution (behind the BatchNorm that directly follows it)
            and what the classifier, the last layer with weights, is given.
        transforms: Names among `core.images.transforms.TRANSFORMS`, or `Transform(name, function, values)` of your own.
        normalization: `(mean, std)` of the images, undone for transforms of pixels; None where they are pixels of 0
            to 1.
        fill: In the network's values, what comes in from beyond the border: one value, or one a channel; by default the
            mean of `images`.
        task: What outputs and labels mean, for example `"multilabel"` (see `TaskKind`); by default it is found.
        output_fn: Takes what the network returns, and returns the tensor of scores, for example
            `lambda output: output["species"]`.
        follow: Of segmentation: the class that is followed, in the images that have it in their label map, or without
            one by the network; the result is of these (see `Classified.numbers`). By default in each image the class of
            the most pixels, other than class 0 where there is another.
        batch_size: Copies that are run together; by default as many as fit well into the free memory.
        progress: Wraps the iterable of pieces of work to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: `layers` matches nothing, or a layer does not run exactly once in a pass.
        ValueError: The network does not take the images or returns no scores, labels are no classes of it, there is no
            such transform, or a transform changes an image's shape.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> curves = measure_invariance(model, torch.rand(2, 1, 28, 28), torch.tensor([0, 2]), transforms="rotation")
        >>> curves.layers, curves.sweeps[0].raw.shape
        (('0', 'input of 4'), torch.Size([2, 2, 36]))
    """
    check_images(images)
    scale = PixelScale.of(normalization, images.shape[1])
    images = as_floats(model, images.detach().to(model_device(model)))
    filled = fill_values(images, fill)
    chosen = resolve_transforms(transforms, images, filled)
    with analysis_mode(model), ExitStack() as those:
        together = batch_size or images_at_once(model, images[:1])
        options: Any = {"task": task, "output_fn": output_fn, "follow": follow}
        untouched = classify(model, images, labels, **options, batch_size=together)
        images = images[untouched.rows]
        those.enter_context(rows_of(model, untouched.rows))
        sites = _sites(model, images[:1], layers)
        measuring = _Measuring(Scorer(model, untouched.task, output_fn), images, sites, chosen, scale, untouched)
        for piece in progress(measuring.plan(together)) if progress is not None else measuring.plan(together):
            measuring.run_in_parts(*piece)
    return measuring.result()


def check_invariance(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    layers: LayerSpec | None = None,
    transforms: TransformSpec | Sequence[TransformSpec] = DEFAULT_TRANSFORMS,
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
) -> Task:
    """Try everything that `measure_invariance` needs, at the cost of a pass over the images and of a few over one.

    Returns:
        What outputs and labels mean, to be given to the look itself.

    Raises:
        ValueError: See `measure_invariance`.
    """
    check_images(images)
    scale = PixelScale.of(normalization, images.shape[1])
    images = as_floats(model, images.detach().to(model_device(model)))
    with analysis_mode(model):
        untouched = classify(model, images, labels, task=task, output_fn=output_fn)
        _sites(model, images[:1], layers)
        for transform in resolve_transforms(transforms, images, fill_values(images, None)):
            for value in (transform.values[0], transform.values[-1]):
                scale.apply(transform, images, value)
    return untouched.task


def area(curves: Tensor, values: Tensor) -> Tensor:
    """Return the area under curves `(..., V)` over the width of the sweep: their mean height, by trapezoids.

    Divided by the width, areas of sweeps in pixels, factors and degrees compare.
    """
    return torch.trapezoid(curves.double(), values.double(), dim=-1) / (values[-1] - values[0])


def half_width(probabilities: Tensor, values: Tensor, identity: float | None, untouched: Tensor) -> Tensor:
    """Return how far from the identity a probability falls to half of its own, the mean of both sides.

    Args:
        probabilities: `(N, V)`.
        values: `(V,)`, ascending.
        identity: The value at which the probability is the untouched one.
        untouched: `(N,)`, that probability.

    Returns:
        `(N,)` float64 in units of the values, linear between them: half of the width at half of the height. Of a sweep
        to one side of the identity, that side's distance. Where it never halves on one side, that side ends with the
        sweep: the width is then a lower bound. NaN where there is no identity within the sweep, or where a probability
        is NaN.
    """
    if identity is None or not float(values[0]) <= identity <= float(values[-1]):
        return torch.full((len(probabilities),), math.nan, dtype=torch.float64)
    widths = []
    points = values.double().tolist()
    for line, start in zip(probabilities.double().tolist(), untouched.double().tolist(), strict=True):
        if not math.isfinite(sum(line) + start):
            widths.append(math.nan)
            continue
        right = [(x, p) for x, p in zip(points, line, strict=True) if x > identity]
        left = [(x, p) for x, p in zip(points, line, strict=True) if x < identity][::-1]
        ends = [_first_crossing(identity, start, side, start / 2) for side in (left, right) if side]
        widths.append(sum(abs(end - identity) for end in ends) / max(1, len(ends)))
    return torch.tensor(widths, dtype=torch.float64)


def _first_crossing(at: float, height: float, side: Sequence[tuple[float, float]], level: float) -> float:
    for x, p in side:
        if p < level:
            return at + (x - at) * (height - level) / (height - p)
        at, height = x, p
    return at


def _sites(model: nn.Module, image: Tensor, layers: LayerSpec | None) -> dict[str, Site]:
    """Where features are read, in the order in which the layers run."""
    if layers is not None:
        return {maps.layer: maps.site for maps in trace_feature_maps(model, image, select_layers(model, layers))}
    check_readable(model)
    ends = find_default_layers(model, image)
    last = ends.classifier or ends.deep
    if ends.first is None or last is None:
        raise LayerNotFoundError(
            f"{type(model).__name__} has no convolution that runs exactly once in a pass; "
            + (one_piece(model) or "choose layers=[...]")
        )
    (first,) = trace_feature_maps(model, image, [ends.first])
    sites = {first.layer: first.site}
    if ends.classifier is None:  # a head of functions: the last maps stand for what it is given
        (deep,) = trace_feature_maps(model, image, [last])
        sites.setdefault(deep.layer, deep.site)
    elif ends.classifier.name != ends.first.name:
        sites[f"input of {ends.classifier.name}"] = Site(ends.classifier.module, "input")
    return sites


Piece = tuple[slice, list[tuple[int, int]]]
"""Some of the images, and (transform, value) by number."""


class _Measuring:
    """The sweeps while they run."""

    def __init__(
        self,
        scorer: Scorer,
        images: Tensor,
        sites: Mapping[str, Site],
        transforms: Sequence[Transform],
        scale: PixelScale,
        untouched: Classified,
    ) -> None:
        self._scorer, self._images, self._sites = scorer, images, dict(sites)
        self._transforms, self._scale, self._untouched = transforms, scale, untouched
        shape = (len(sites), len(images))
        self._moved = [torch.zeros(*shape, len(transform.values)) for transform in transforms]
        self._norms = [torch.zeros_like(moved) for moved in self._moved]
        self._probabilities = [torch.zeros(len(images), len(transform.values)) for transform in transforms]
        self._own_norms = torch.zeros(shape)
        self._own: dict[str, Tensor] = {}
        self._own_slice: slice | None = None

    def plan(self, together: int) -> list[Piece]:
        """The batches: several images, each at several values."""
        count = min(together, len(self._images))
        values = max(1, together // count)
        queue = [
            (number, at) for number, transform in enumerate(self._transforms) for at in range(len(transform.values))
        ]
        return [
            (slice(start, min(start + count, len(self._images))), queue[at : at + values])
            for start in range(0, len(self._images), count)
            for at in range(0, len(queue), values)
        ]

    def run_in_parts(self, chosen: slice, places: Sequence[tuple[int, int]]) -> None:
        """Run one batch; in parts where memory does not suffice: of fewer values first, then of fewer images."""

        def images(part: slice) -> None:
            own = slice(chosen.start + part.start, chosen.start + part.stop)
            in_chunks(lambda some: self.run(own, places[some]), len(places))

        in_chunks(images, chosen.stop - chosen.start)

    def run(self, chosen: slice, places: Sequence[tuple[int, int]]) -> None:
        """Run one batch of transformed copies, after the originals where these are new."""
        if self._own_slice != chosen:
            self._run_originals(chosen)
        originals = self._images[chosen]
        copies = torch.cat([self._copy(originals, *place) for place in places])
        measured: dict[str, tuple[Tensor, Tensor]] = {}

        def see(name: str, value: Any) -> None:
            measured[name] = _distances(_features(name, value, len(copies)), self._own[name], len(places))

        with rows_of(self._scorer.model, chosen), hooked(self._sites, see):
            probabilities = self._scorer(copies, self._regions(chosen, places)).probabilities
        shape = (len(places), len(originals))
        targets = self._untouched.targets[chosen].repeat(len(places)).to(probabilities.device)
        own = probabilities.gather(1, targets.clamp(min=0)[:, None]).view(shape).cpu()
        own = own.masked_fill(self._untouched.targets[chosen] < 0, math.nan)
        same = (copies.view(*shape, -1) == originals.flatten(1)).all(2).cpu()
        own = torch.where(same, self._untouched.probabilities[chosen], own)
        moved = torch.stack([measured[name][0] for name in self._sites]).cpu()
        moved = torch.where(same, 0 * self._own_norms[:, None, chosen], moved)  # NaN where these are not finite
        norms = torch.stack([measured[name][1] for name in self._sites]).cpu()
        norms = torch.where(same, self._own_norms[:, None, chosen], norms)
        for line, (transform, at) in enumerate(places):
            self._probabilities[transform][chosen, at] = own[line]
            self._moved[transform][:, chosen, at] = moved[:, line]
            self._norms[transform][:, chosen, at] = norms[:, line]

    def _regions(self, chosen: slice, places: Sequence[tuple[int, int]]) -> Tensor | None:
        """Of segmentation, where the followed class's pixels are in the copies: they move as the image does."""
        regions = self._untouched.regions
        if regions is None:
            return None
        height, width = self._images.shape[-2:]
        large = F.interpolate(regions[chosen, None].float(), size=(height, width), mode="nearest")
        moved = []
        for number, at in places:
            transform = self._transforms[number]
            # Those of pixels leave everything in its place; without a fill of the image's, nothing comes in.
            moves = not transform.on_pixels and transform.name in TRANSFORMS
            value = transform.values[at]
            own = TRANSFORMS[transform.name]((height, width), [0.0]) if moves else transform
            moved.append(own.apply(large, value) if moves and value != transform.identity else large)
        return F.interpolate(torch.cat(moved), size=regions.shape[1:], mode="nearest")[:, 0] > 0.5

    def result(self) -> InvarianceCurves:
        """Put the curves together."""
        sweeps = []
        own = self._own_norms[..., None]
        for transform, moved, norms, probabilities in zip(
            self._transforms, self._moved, self._norms, self._probabilities, strict=True
        ):
            # |g/|g| - f/|f||^2 = (|g - f|^2 - (|g| - |f|)^2) / (|g| |f|): no cancellation where g is near f.
            squares = (moved.square() - (norms - own).square()).clamp(min=0) / (norms * own)
            unit = squares.sqrt().masked_fill((norms == 0) | (own == 0), math.nan).clamp(max=2)
            relative = (moved / own).masked_fill(own == 0, math.nan)
            sweeps.append(
                Sweep(
                    transform=transform.name,
                    label=transform.label,
                    identity=transform.identity,
                    values=torch.tensor(transform.values, dtype=torch.float64),
                    raw=moved,
                    relative=relative,
                    unit=unit,
                    probabilities=probabilities,
                )
            )
        return InvarianceCurves(layers=tuple(self._sites), untouched=self._untouched, sweeps=tuple(sweeps))

    def _run_originals(self, chosen: slice) -> None:
        originals, self._own, self._own_slice = self._images[chosen], {}, None

        def keep(name: str, value: Any) -> None:
            # A copy: what follows may write into it.
            self._own[name] = _features(name, value, len(originals)).clone()

        with rows_of(self._scorer.model, chosen), hooked(self._sites, keep):
            self._scorer.model(originals.clone())
        for line, name in enumerate(self._sites):
            self._own_norms[line, chosen] = torch.linalg.vector_norm(_wide(self._own[name]), dim=1).cpu()
        self._own_slice = chosen

    def _copy(self, originals: Tensor, transform: int, at: int) -> Tensor:
        chosen, dtype = self._transforms[transform], originals.dtype
        # Half precision would not tell where neighboring pixels lie.
        exact = originals if dtype in (torch.float32, torch.float64) else originals.float()
        return self._scale.apply(chosen, exact, chosen.values[at]).to(dtype)


def _features(name: str, value: Any, count: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != count:
        got = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"features at '{name}' are {got} for {count} images; one tensor of features an image is needed"
        )
    return value.reshape(count, -1)


def _distances(features: Tensor, own: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """Distances to the originals, and norms, `(values, images)` each; features `(values x images, D)`."""
    lines, own = features.view(values, *own.shape), _wide(own)
    step = max(1, (_ELEMENTS_ON_CPU if features.device.type == "cpu" else _ELEMENTS) // max(1, own.numel()))
    # One piece of memory for all differences: asking for it anew takes longer than the arithmetic.
    room = own.new_empty(min(step, values), *own.shape)
    moved, norms = [], []
    for at in range(0, values, step):
        part = _wide(lines[at : at + step])
        moved.append(torch.linalg.vector_norm(torch.sub(part, own, out=room[: len(part)]), dim=2))
        norms.append(torch.linalg.vector_norm(part, dim=2))
    return torch.cat(moved), torch.cat(norms)


def _wide(features: Tensor) -> Tensor:
    """Features in single precision, at least: sums of many in half precision are no distances."""
    return features if features.dtype == torch.float64 else features.float()
