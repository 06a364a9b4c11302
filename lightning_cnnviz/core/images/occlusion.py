"""What a network looks at: a gray square slid over the image (Zeiler & Fergus 2013, section 4.2 and Fig. 7)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Projector, Unit
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import rows_of
from lightning_cnnviz.core.network.classification import (
    Classified,
    Scorer,
    check_images,
    classify,
    fill_values,
    interleave,
    most_probable,
)
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.inputs import as_floats
from lightning_cnnviz.core.network.layers import LayerSpec, SelectedLayer
from lightning_cnnviz.core.network.memory import images_at_once, with_less
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.core.tracing.default_layers import NoFeatureMapsError, layer_maps
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps

__all__ = ["OcclusionMaps", "check_occlusion", "occlude", "occluder_boxes"]

log = logging.getLogger(__name__)

# Without arguments, in proportion to the image: 50 pixels in steps of 16 on one of 224, 144 positions.
_SIZE, _STRIDE = 50 / 224, 16 / 224


@dataclass(frozen=True, eq=False, kw_only=True)
class OcclusionMaps:
    """What becomes of N images' features and classes, by the position of an occluder.

    Attributes:
        layer: Where features are read; empty where none is, see `unfollowed`.
        size: Height and width of the occluder, in pixels.
        boxes: `(rows, columns, 4)` int64, what it covers at each position: top, left, bottom, right, half-open. At the
            lower and right border it may be cut.
        image_size: Height and width of the images.
        untouched: What the network makes of the images as they are.
        channels: `(N,)` int64, each image's strongest feature map: the largest sum of activations above zero; -1 where
            no feature map is finite, or no layer is followed.
        untouched_activations: `(N,)`, that sum without an occluder; NaN where there is no such feature map.
        activations: `(N, rows, columns)`, that sum by the occluder's position; NaN or infinite where the network is.
        probabilities: `(N, rows, columns)`, 0 to 1, of each image's own class; NaN where the scores are not finite.
        predictions: `(N, rows, columns)` int64, the most probable class; -1 where the scores are not finite.
        projections: For each image `(C, H, W)`, the strongest unit of its strongest feature map projected to pixels, in
            the network's values with either sign, NaN where there is no such feature map; none where the network cannot
            be projected.
        unprojected: Why there are no projections; empty where there are.
        layers_behind: How many layers with weights work on tokens between the layer and the head, where none was named:
            the head does not pool its maps then.
        unfollowed: Why no layer is followed: there is none whose feature maps are what the network has learned, and
            none was named. All that is of a layer is NaN then. Empty where one is.
    """

    layer: str
    size: tuple[int, int]
    boxes: Tensor
    image_size: tuple[int, int]
    untouched: Classified
    channels: Tensor
    untouched_activations: Tensor
    activations: Tensor
    probabilities: Tensor
    predictions: Tensor
    projections: tuple[Tensor, ...]
    unprojected: str = ""
    layers_behind: int = 0
    unfollowed: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.channels), *self.boxes.shape[:2])
        if {tuple(values.shape) for values in (self.activations, self.probabilities, self.predictions)} != {shape}:
            raise ValueError(f"maps of {len(self.channels)} images at {tuple(self.boxes.shape[:2])} positions: {shape}")

    @classmethod
    def joined(cls, parts: Sequence[OcclusionMaps]) -> OcclusionMaps:
        """Join the parts of several ranks: rank r had images r, r + ranks, ...."""
        first = parts[0]
        projections: tuple[Tensor, ...] = ()
        if all(part.projections for part in parts):
            order = interleave([torch.arange(len(part.projections)) + 10**6 * r for r, part in enumerate(parts)])
            projections = tuple(parts[int(n) // 10**6].projections[int(n) % 10**6] for n in order)
        names = ("channels", "untouched_activations", "activations", "probabilities", "predictions")
        whole = {name: interleave([getattr(part, name) for part in parts]) for name in names}
        untouched = Classified.joined([part.untouched for part in parts])
        why = next((part.unprojected for part in parts if part.unprojected), "")
        return cls(
            layer=first.layer,
            size=first.size,
            boxes=first.boxes,
            image_size=first.image_size,
            untouched=untouched,
            **whole,
            projections=projections,
            unprojected=why,
            layers_behind=first.layers_behind,
            unfollowed=first.unfollowed,
        )


def occlude(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    layer: LayerSpec | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] | Tensor | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    follow: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> OcclusionMaps:
    """Slide a square over images and record, at each position, activations, probabilities and the most probable class.

    It takes as long as so many images as there are positions, in batches, and 10 to 35 passes over one image beside: to
    trace the network, once a call, and to project (`tests/benchmarks/cost.py`). The network is left as it was.

    Args:
        model: Any network that takes images `(N, C, H, W)` and returns scores, see `find_task`.
        images: `(N, C, H, W)` float or uint8, in the values that the network is given (see `as_floats`).
        labels: `(N,)`, the true classes, or as the task has them (see `read_labels`); without them, the most probable
            class of the untouched image.
        layer: Whose strongest feature map is followed; by default the last before the classifier. Where there is none,
            or only a vision transformer's patches, none is followed, and the result says so.
        size: Of the occluder in pixels, or its height and width; by default 50 of 224.
        stride: Its step in pixels, or down and right, up to its size; by default 16 of 224.
        fill: What the occluder is made of, in the network's values: one value, or one a channel; by default the mean of
            `images`.
        task: What outputs and labels mean, for example `"multilabel"` (see `TaskKind`); by default it is found.
        output_fn: Takes what the network returns, and returns the tensor of scores, for example
            `lambda output: output["species"]`.
        follow: Of segmentation: the class that is followed, in the images that have it in their label map, or without
            one by the network; the result is of these (see `Classified.numbers`). By default in each image the class of
            the most pixels, other than class 0 where there is another.
        batch_size: Positions that are run together; by default as many as fit well into the free memory.
        progress: Wraps the iterable of images to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once in a pass.
        ValueError: The occluder is larger than the image, the stride larger than the occluder; the network does not
            take the images or returns no scores, labels are no classes of it, or the layer has no feature maps.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> result = occlude(model, torch.rand(2, 1, 28, 28), size=7, stride=7)
        >>> result.layer, result.probabilities.shape
        ('1', torch.Size([2, 4, 4]))
    """
    check_images(images)
    boxes, size, stride = _geometry(images, size, stride)
    images = as_floats(model, images.detach().to(model_device(model)))
    filled = fill_values(images, fill)
    with analysis_mode(model), ExitStack() as those:
        together = batch_size or images_at_once(model, images[:1])
        options: Any = {"task": task, "output_fn": output_fn, "follow": follow}
        untouched = classify(model, images, labels, **options, batch_size=together)
        images = images[untouched.rows]
        those.enter_context(rows_of(model, untouched.rows))
        followed, unfollowed = _followed(model, images[:1], layer)
        scorer = Scorer(model, untouched.task, output_fn)
        site = None if followed is None else followed[0].site
        sweep = _Sweep(scorer, site, filled, boxes, together, untouched)
        numbers: Iterable[Any] = range(len(images))
        for number in progress(numbers) if progress is not None else numbers:
            _, sweep.together = with_less(partial(sweep.run, images[number], number), sweep.together, "position")
    with rows_of(model, untouched.rows):
        projections, why = _projections(model, images, followed, sweep.channels)
    height, width = images.shape[-2:]
    return OcclusionMaps(
        layer="" if followed is None else followed[0].layer,
        size=size,
        boxes=boxes,
        image_size=(height, width),
        untouched=untouched,
        channels=torch.tensor(sweep.channels),
        untouched_activations=torch.tensor(sweep.untouched),
        activations=torch.stack(sweep.activations),
        probabilities=torch.stack(sweep.probabilities),
        predictions=torch.stack(sweep.predictions),
        projections=projections,
        unprojected=why,
        layers_behind=0 if followed is None else followed[1].layers_behind,
        unfollowed=unfollowed,
    )


def check_occlusion(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    layer: LayerSpec | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
) -> Task:
    """Try everything that `occlude` needs, at the cost of a pass over the images and of a few over one.

    Returns:
        What outputs and labels mean, to be given to the look itself.

    Raises:
        ValueError: See `occlude`.
    """
    check_images(images)
    _geometry(images, size, stride)
    images = as_floats(model, images.detach().to(model_device(model)))
    with analysis_mode(model):
        untouched = classify(model, images, labels, task=task, output_fn=output_fn)
        _followed(model, images[:1], layer)
    return untouched.task


def occluder_boxes(image_size: tuple[int, int], size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return what an occluder covers at each position: `(rows, columns, 4)` int64, top, left, bottom, right, half-open.

    Every pixel is covered: the last position of a row or column may reach over the border, and is cut there.

    Example:
        >>> occluder_boxes((10, 10), (4, 4), (4, 4))[-1, -1].tolist()
        [8, 8, 10, 10]
    """
    starts = [
        torch.arange(math.ceil((whole - part) / step) + 1) * step
        for whole, part, step in zip(image_size, size, stride, strict=True)
    ]
    top, left = torch.meshgrid(*starts, indexing="ij")
    bottom, right = (top + size[0]).clamp(max=image_size[0]), (left + size[1]).clamp(max=image_size[1])
    return torch.stack([top, left, bottom, right], 2)


class _Sweep:
    """Covers one image after the other at each position, and keeps what the passes show."""

    def __init__(
        self, scorer: Scorer, site: Site | None, fill: Tensor, boxes: Tensor, together: int, untouched: Classified
    ) -> None:
        self._scorer, self._boxes, self.together = scorer, boxes, together
        self._sites = {} if site is None else {"site": site}
        self._fill, self._classified = fill.view(-1, 1, 1), untouched
        self._sums: list[Tensor] = []
        self.channels: list[int] = []
        self.untouched: list[float] = []
        self.activations: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.predictions: list[Tensor] = []

    def run(self, image: Tensor, number: int, together: int) -> None:
        """Occlude one image `(C, H, W)`, the n-th, at so many positions at a time."""
        target = int(self._classified.targets[number])
        regions = self._classified.regions
        region = None if regions is None else regions[number, None]
        self._sums, passes = [], []
        with rows_of(self._scorer.model, number), hooked(self._sites, self._see):
            for images in (image[None], *self._covered(image, together)):
                own = None if region is None else region.expand(len(images), -1, -1)
                passes.append(self._scorer(images, own).probabilities)
        probabilities = torch.cat(passes)
        sums = torch.cat(self._sums) if self._sites else torch.full_like(probabilities[:, :1], torch.nan)
        finite = sums[0].isfinite()
        channel = int(sums[0].masked_fill(~finite, -1).argmax()) if bool(finite.any()) else -1
        self.channels.append(channel)
        lost = torch.full((len(sums),), torch.nan, device=sums.device)
        activations = lost if channel < 0 else sums[:, channel]
        followed = lost if target < 0 else probabilities[:, target]
        self.untouched.append(float(activations[0]))
        by_position = (activations[1:], followed[1:], most_probable(probabilities[1:]))
        kept = (self.activations, self.probabilities, self.predictions)
        for values, into in zip(by_position, kept, strict=True):
            into.append(values.view(self._boxes.shape[:2]).cpu())

    def _covered(self, image: Tensor, together: int) -> Iterator[Tensor]:
        """The image with the occluder at each position, row by row, so many at a time."""
        for boxes in self._boxes.flatten(0, 1).split(together):
            images = image.repeat(len(boxes), 1, 1, 1)
            for own, (top, left, bottom, right) in zip(images, boxes.tolist(), strict=True):
                own[:, top:bottom, left:right] = self._fill
            yield images

    def _see(self, _name: str, value: Tensor) -> None:
        # As a ReLU would read it; a layer behind its ReLU stays as it is.
        self._sums.append(value.detach().clamp(min=0).float().sum((2, 3)))


def _followed(
    model: nn.Module, image: Tensor, layer: LayerSpec | None
) -> tuple[tuple[FeatureMaps, SelectedLayer] | None, str]:
    """The layer whose strongest feature map is followed; or why there is none."""
    try:
        return layer_maps(model, image, layer), ""
    except NoFeatureMapsError as error:
        return None, str(error)


def _geometry(
    images: Tensor, size: int | tuple[int, int] | None, stride: int | tuple[int, int] | None
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """The positions' boxes, and size and stride as height and width."""
    height, width = images.shape[-2:]
    if size is None:
        size = max(1, round(_SIZE * min(height, width)))
    size = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(size) < 1 or size[0] > height or size[1] > width:
        raise WrongArgumentError(
            f"size={size}: the occluder (height, width) has to be between 1 and the images' {height} x {width} pixels"
        )
    if stride is None:
        stride = max(1, min(*size, round(_STRIDE * min(height, width))))
    stride = (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])
    if min(stride) < 1 or stride[0] > height or stride[1] > width:
        raise WrongArgumentError(
            f"stride={stride}: the step (down, right) has to be between 1 and the images' {height} x {width} pixels"
        )
    if stride[0] > size[0] or stride[1] > size[1]:
        raise WrongArgumentError(
            f"stride={stride} is larger than the occluder, size={size}: parts of the image would never be covered; "
            "give a smaller stride or a larger size"
        )
    return occluder_boxes((height, width), size, stride), size, stride


def _projections(
    model: nn.Module, images: Tensor, followed: tuple[FeatureMaps, SelectedLayer] | None, channels: Sequence[int]
) -> tuple[tuple[Tensor, ...], str]:
    """Each image's strongest feature map projected; or why that cannot be."""
    if followed is None:
        return (), ""
    maps, layer = followed
    units = [Unit(number, layer.name, channel) for number, channel in enumerate(channels) if channel >= 0]
    nothing = torch.full(images.shape[1:], torch.nan)
    if not units:
        return tuple(nothing for _ in channels), ""
    try:
        with torch.autocast(images.device.type, enabled=False):
            known = {tuple(images.shape[1:]): [maps]}
            projection = Projector(model, [layer], traced=known).project(images, units)
    except ValueError as error:
        log.debug("layer '%s' cannot be projected: %s", layer.name, error)
        return (), str(error)
    pixels = iter([projection.on_image(number) for number in range(len(units))])
    return tuple(nothing if channel < 0 else next(pixels) for channel in channels), ""
