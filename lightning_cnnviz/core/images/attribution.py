"""Which pixels speak for a class: the usual attributions, by captum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.network.calling import CalledNetwork, rows_of
from lightning_cnnviz.core.network.classification import (
    Classified,
    Scorer,
    check_images,
    classify,
    fill_values,
    interleave,
)
from lightning_cnnviz.core.network.gradients import OrderedGradients
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, model_device
from lightning_cnnviz.core.network.inputs import as_floats
from lightning_cnnviz.core.network.layers import LayerSpec
from lightning_cnnviz.core.network.memory import images_at_once, in_chunks, with_less
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.core.tracing.default_layers import NoFeatureMapsError, layer_site
from lightning_cnnviz.core.tracing.readable import check_readable

__all__ = ["AttributionMaps", "AttributionMethod", "attribute", "check_attribution", "check_method"]

AttributionMethod = Literal["gradcam", "integrated_gradients", "saliency", "guided_gradcam"]
"""Grad-CAM (Selvaraju et al. 2017): feature maps weighted by their mean gradients, above zero; guided Grad-CAM: times
guided backpropagation (Springenberg et al. 2014); integrated gradients (Sundararajan et al. 2017); saliency (Simonyan
et al. 2013): the gradient's magnitude."""

_STEPS = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributionMaps:
    """How much each pixel speaks for a class.

    Attributes:
        method: By which method.
        layer: Whose feature maps Grad-CAM weighs; empty for the methods of pixels.
        untouched: What the network makes of the N images; its targets are the classes that pixels speak for.
        maps: `(N, C, H, W)`, as large as the images; Grad-CAM's `(N, 1, H, W)`. Of either sign, but for Grad-CAM and
            saliency, which are never below zero. In logits: for integrated gradients a part of the difference to the
            baseline's, for the others a change for each unit of input or activation. NaN of images whose scores are
            not finite.
        layers_behind: How many layers with weights work on tokens between the layer and the head, where none was named:
            the head does not pool its maps then.
    """

    method: AttributionMethod
    layer: str
    untouched: Classified
    maps: Tensor
    layers_behind: int = 0

    def __post_init__(self) -> None:
        if self.maps.ndim != 4 or len(self.maps) != len(self.untouched):
            raise ValueError(f"maps are {tuple(self.maps.shape)}; there are {len(self.untouched)} images")

    @classmethod
    def joined(cls, parts: Sequence[AttributionMaps]) -> AttributionMaps:
        """Join the parts of several ranks: rank r had images r, r + ranks, ...."""
        untouched = Classified.joined([part.untouched for part in parts])
        maps = interleave([part.maps for part in parts])
        return replace(parts[0], untouched=untouched, maps=maps)


def attribute(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    method: AttributionMethod = "gradcam",
    *,
    layer: LayerSpec | None = None,
    baseline: float | Sequence[float] | Tensor | None = None,
    steps: int = _STEPS,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    follow: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> AttributionMaps:
    """Attribute the logit of each image's class to its pixels; the network is left as it was.

    Guided Grad-CAM rectifies gradients at every ReLU, however it is spelled; captum's own sees modules alone.

    Args:
        model: Any network that takes images `(N, C, H, W)` and returns scores, see `find_task`.
        images: `(N, C, H, W)` float or uint8, in the values that the network is given (see `as_floats`).
        labels: `(N,)`, the true classes, or as the task has them (see `read_labels`); without them, the class that is
            most probable by the network.
        method: See `AttributionMethod`.
        layer: Whose feature maps Grad-CAM weighs; by default the last before the classifier. A vision transformer's
            patches have to be named.
        baseline: Where integrated gradients start, in the network's values: one value, or one a channel; by default the
            mean of `images`.
        steps: Of the integral.
        task: What outputs and labels mean, for example `"multilabel"` (see `TaskKind`); by default it is found.
        output_fn: Takes what the network returns, and returns the tensor of scores, for example
            `lambda output: output["species"]`.
        follow: Of segmentation: the class that is followed, in the images that have it in their label map, or without
            one by the network; the result is of these (see `Classified.numbers`). By default in each image the class of
            the most pixels, other than class 0 where there is another.
        batch_size: Images that are run together; by default as many as fit well into the free memory.
        progress: Wraps the iterable of batches to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once in a pass.
        ValueError: There is no such method; the network does not take the images or returns no scores, labels are no
            classes of it, or the layer has no feature maps.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> result = attribute(model, torch.rand(2, 1, 28, 28), torch.tensor([0, 2]))
        >>> result.layer, result.maps.shape
        ('1', torch.Size([2, 1, 28, 28]))
    """
    check_method(method)
    check_readable(model)
    if steps < 2:
        raise ValueError(f"steps={steps}: an integral takes 2 or more")
    check_images(images)
    images = as_floats(model, images.detach().to(model_device(model)))
    start = fill_values(images, baseline).view(1, -1, 1, 1)
    parts: list[Tensor] = []
    with analysis_mode(model), ExitStack() as those:
        together = batch_size or images_at_once(model, images[:1], gradients=True)
        options: Any = {"task": task, "output_fn": output_fn, "follow": follow}
        untouched = classify(model, images, labels, **options, batch_size=together)
        images = images[untouched.rows]
        those.enter_context(rows_of(model, untouched.rows))
        name, site, behind = _site(model, images[:1], method, layer)
        explain = _Explanation(Scorer(model, untouched.task, output_fn), method, site, start, steps, together)
        classes, regions = untouched.targets.clamp(min=0).to(images.device), untouched.regions
        pairs = list(zip(images.split(together), classes.split(together), strict=True))
        for number, (batch, targets) in enumerate(progress(pairs) if progress is not None else pairs):
            own = None if regions is None else regions[number * together :][: len(batch)]
            with rows_of(model, slice(number * together, number * together + len(batch))):
                parts += in_chunks(partial(explain.part, batch, targets, own), len(batch))
    # Rules that rectify, or pool, make finite numbers of NaN.
    maps = torch.cat(parts).masked_fill(~untouched.scored[:, None, None, None], torch.nan)
    return AttributionMaps(method=method, layer=name, untouched=untouched, maps=maps, layers_behind=behind)


def check_attribution(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    method: AttributionMethod = "gradcam",
    *,
    layer: LayerSpec | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
) -> Task:
    """Try everything that `attribute` needs, with the first of some images; labels are checked for all.

    Returns:
        What outputs and labels mean, to be given to the look itself.

    Raises:
        ValueError: See `attribute`.
    """
    check_method(method)
    check_readable(model)
    check_images(images)
    images = as_floats(model, images.detach().to(model_device(model)))
    with analysis_mode(model):
        untouched = classify(model, images, labels, task=task, output_fn=output_fn)
        targets = untouched.targets.clamp(min=0).to(images.device)
        _, site, _ = _site(model, images[:1], method, layer)
        start = fill_values(images, None).view(1, -1, 1, 1)
        scorer = Scorer(model, untouched.task, output_fn)
        regions = None if untouched.regions is None else untouched.regions[:1]
        with rows_of(model, 0):
            _Explanation(scorer, method, site, start, 2, 2)(images[:1], targets[:1], regions)
    return untouched.task


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        ValueError: Names those that there are.
    """
    if method not in get_args(AttributionMethod):
        raise ValueError(f"method={method!r}: it is one of {', '.join(map(repr, get_args(AttributionMethod)))}")


class _Explanation:
    """Attributes a batch by captum."""

    def __init__(
        self, scorer: Scorer, method: AttributionMethod, site: Site | None, start: Tensor, steps: int, together: int
    ) -> None:
        self._scorer, self._method, self._site = scorer, method, site
        self._start, self._steps, self._together = start, steps, together
        self._regions: Tensor | None = None

    def __call__(self, images: Tensor, targets: Tensor, regions: Tensor | None = None) -> Tensor:
        """Return the maps `(N, C, H, W)` of a batch; one by one where images have regions or inputs of their own."""
        if len(images) > 1 and (regions is not None or isinstance(self._scorer.model, CalledNetwork)):
            single = []
            for number in range(len(images)):
                one = slice(number, number + 1)
                with rows_of(self._scorer.model, one):
                    single.append(self(images[one], targets[one], None if regions is None else regions[one]))
            return torch.cat(single)
        self._regions = regions
        # A copy, since captum asks for gradients of what it is given; it warns where it has to do so itself.
        own = images.clone().requires_grad_()
        with torch.enable_grad(), OrderedGradients():
            if self._method == "saliency":
                return self._saliency(own, targets)
            if self._method == "integrated_gradients":
                return torch.cat([self._integrated(own[n : n + 1], targets[n : n + 1]) for n in range(len(own))])
            maps = self._gradcam(own, targets)
        if self._method == "gradcam":
            return maps
        return maps * self._guided(images, targets)

    def part(self, images: Tensor, targets: Tensor, regions: Tensor | None, part: slice) -> Tensor:
        """Return the maps of some images of a batch, on the CPU."""
        own = None if regions is None else regions[part]
        with rows_of(self._scorer.model, part):
            return self(images[part], targets[part], own).detach().float().cpu()

    def _logits(self, images: Tensor) -> Tensor:
        regions = None if self._regions is None else self._regions.expand(len(images), -1, -1)
        return self._scorer(images, regions).scores

    def _saliency(self, images: Tensor, targets: Tensor) -> Tensor:
        from captum.attr import Saliency  # when it is needed: it brings matplotlib along

        maps: Tensor = Saliency(self._logits).attribute(images, target=targets)
        return maps

    def _integrated(self, image: Tensor, target: Tensor) -> Tensor:
        from captum.attr import IntegratedGradients

        def integrated(together: int) -> Tensor:
            maps: Tensor = IntegratedGradients(self._logits).attribute(
                image,
                baselines=self._start.expand_as(image),
                target=target,
                n_steps=self._steps,
                internal_batch_size=together,
            )
            return maps

        maps, self._together = with_less(integrated, self._together, "step")
        return maps

    def _gradcam(self, images: Tensor, targets: Tensor) -> Tensor:
        from captum.attr import LayerAttribution

        assert self._site is not None
        with _kept(self._site) as maps:
            logits = self._logits(images)
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), maps[0])
        found, slope = maps[0], gradient
        if self._site.channels_last:
            found, slope = found.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)
        coarse = (found * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
        size = (images.shape[-2], images.shape[-1])
        fine: Tensor = LayerAttribution.interpolate(coarse, size, interpolate_mode="bilinear")
        return fine

    def _guided(self, images: Tensor, targets: Tensor) -> Tensor:
        """Guided backpropagation from the logits: the projection of a unit of strength one."""
        units = [Unit(number, "logits", target, 0, 0, 1.0) for number, target in enumerate(targets.tolist())]
        with torch.autocast(images.device.type, enabled=False):
            projection = project(_WithLogits(self._scorer.model, self._logits), images, units, method="guided")
        return torch.stack([projection.on_image(number) for number in range(len(units))]).to(images.device)


@contextmanager
def _kept(site: Site) -> Iterator[list[Tensor]]:
    """Keep the value at a site, as part of the pass; the network goes on with a copy, which it may write into."""
    maps: list[Tensor] = []

    def after(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        maps.append(output)
        return output.clone()

    def before(_module: nn.Module, inputs: Any) -> Any:
        maps.append(inputs[0])
        return inputs[0].clone(), *inputs[1:]

    if site.side == "output":
        handle = site.module.register_forward_hook(after)
    else:
        handle = site.module.register_forward_pre_hook(before)
    try:
        yield maps
    finally:
        handle.remove()


class _WithLogits(nn.Module):
    """A network whose logits are a layer."""

    def __init__(self, model: nn.Module, scores: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.logits, self._scores = model, nn.Identity(), scores

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.logits(self._scores(images))
        return logits


def _site(model: nn.Module, image: Tensor, method: str, layer: LayerSpec | None) -> tuple[str, Site | None, int]:
    if "gradcam" not in method:
        return "", None, 0
    try:
        name, site, chosen = layer_site(model, image, layer)
    except NoFeatureMapsError as error:
        raise NoFeatureMapsError(
            f'{method} weighs feature maps, and {error}; or give method="integrated_gradients" or "saliency", which '
            "take no layer"
        ) from error
    return name, site, chosen.layers_behind
