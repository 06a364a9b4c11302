"""What is maximized of a network, layer by layer and for its classes, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.maximize import (
    Maximization,
    Strongest,
    maximize,
    strongest_images,
    unit_input_size,
)
from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore, Objective, UnitActivation
from lightning_cnnviz.core.maximization.optimum import OptimumInvariance, optimum_invariance
from lightning_cnnviz.core.maximization.parametrization import Box, Parametrization, color_correlation
from lightning_cnnviz.core.maximization.regularization import RandomTransform, TotalVariation
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.classification import classify
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import FeatureSpec, LayerSpec, evenly, resolve_features, select_layers
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.core.tracing.default_layers import find_default_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps

__all__ = ["MaximizationPlan", "MaximizedLayer", "input_bounds", "maximize_plan", "plan_classes", "plan_layers"]

# Without an argument, so many convolutions are shown, from the first to the last, and so many classes.
_LAYERS, _CLASSES = 4, 4
# About an optimum, at most: half the steps, and two thirds of the products, that `optimum_invariance` takes by itself.
# Activations differ by less than a thousandth, curvatures by less than a twentieth of their range.
_SETTLE, _ITERATIONS = 48, 32


@dataclass(frozen=True, eq=False, kw_only=True)
class MaximizationPlan:
    """What is maximized together: objectives of one layer, or classes.

    Attributes:
        name: The layer's name, or `"classes"`; of one of several heads `"<head>/classes"`.
        captions: What each objective is called beside its images, for example `"channel 3"`.
        objectives: The objectives.
        size: Channels, height and width of the images that are made; of signals and volumes as they have them.
        task: Of classes: what the network's output means.
        output_fn: Of classes: takes what the network returns, and returns the tensor of scores.
        among: How many feature maps the layer has, or how many classes there are; None where that is not known.
    """

    name: str
    captions: tuple[str, ...]
    objectives: tuple[Objective, ...]
    size: tuple[int, ...]
    task: Task | None = None
    output_fn: OutputFn | None = None
    among: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class MaximizedLayer:
    """What maximizes one layer's feature maps, or the classes.

    Attributes:
        name: The layer's name, or `"classes"`; of one of several heads `"<head>/classes"`.
        captions: What each objective is called beside its images, for example `"channel 3"`.
        optima: The maximizing inputs.
        strongest: The real images to compare with, where there are any.
        invariances: Of some objectives, by their number.
        channels: Of each objective its feature map; None for a class.
        task: Of classes: what the network's output means.
        among: How many feature maps the layer has, or how many classes there are; None where that is not known.
    """

    name: str
    captions: tuple[str, ...]
    optima: Maximization
    strongest: Strongest | None = None
    invariances: tuple[tuple[int, OptimumInvariance], ...] = ()
    channels: tuple[int | None, ...] = ()
    task: Task | None = None
    among: int | None = None


def plan_layers(
    network: nn.Module,
    image: Tensor,
    layers: LayerSpec | None = None,
    features: FeatureSpec = 6,
    *,
    objective: Literal["unit", "channel"] = "unit",
    class_names: Sequence[str] | None = None,
) -> list[MaximizationPlan]:
    """Plan which feature maps are maximized, one plan a layer.

    Args:
        network: The network.
        image: `(1, C, H, W)`, a signal or a volume, on the network's device and of its dtype.
        layers: See `select_layers`; by default four convolutions from the first to the last.
        features: Feature maps: the first n of each layer, a list of them, a list by layer, None for all.
        objective: `"unit"` for the middle unit of the map, on an image as large as its receptive field; `"channel"` for
            the map's mean on an image of full size.
        class_names: Names of the classes: a convolution that is the classifier has its feature maps called so.

    Raises:
        LayerNotFoundError: There is no such layer.
        ValueError: A feature map is out of range.
    """
    size = tuple(image.shape[1:])
    traced = trace_feature_maps(network, image, select_layers(network, "conv" if layers is None else layers))
    plans = []
    names = class_names or ()
    # The network is walked through for that alone where a layer might be it.
    ends = find_default_layers(network, image) if any(maps.shape[0] == len(names) for maps in traced) else None
    for maps in evenly(traced, _LAYERS) if layers is None else traced:
        channels = resolve_features(maps.layer, maps.shape[0], features)
        classifier = None if ends is None else ends.classifier
        is_classifier = classifier is not None and classifier.name == maps.layer and maps.shape[0] == len(names)
        plans.append(
            MaximizationPlan(
                name=maps.layer,
                captions=tuple(names[channel] if is_classifier else f"channel {channel}" for channel in channels),
                objectives=tuple(
                    (UnitActivation if objective == "unit" else ChannelActivation)(maps, channel)
                    for channel in channels
                ),
                size=unit_input_size(network, maps, size, channels) if objective == "unit" else size,
                among=maps.shape[0],
            )
        )
    return plans


def plan_classes(
    network: nn.Module,
    images: Tensor,
    classes: int | list[int] | None,
    class_names: Sequence[str] | None = None,
    *,
    labels: Tensor | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
) -> MaximizationPlan | None:
    """Plan which class scores are maximized; None for none.

    Args:
        network: The network.
        images: `(N, C, H, W)`, one or more, on the network's device and of its dtype.
        classes: The first n, or a list; None for four, where the network gives class scores. Maps of scores count as
            such where labels are maps, or where it is told.
        class_names: Names of the classes.
        labels: Of the images, to find out what scores mean (see `read_labels`).
        task: What outputs and labels mean (see `TaskKind`); by default it is found.
        output_fn: Takes what the network returns, and returns the tensor of scores.

    Raises:
        ValueError: A class is out of range, or the network gives no class scores and some were asked for.
    """
    if classes in (0, []):
        return None
    told = task is not None or output_fn is not None
    try:
        with analysis_mode(network):
            found = classify(network, images.clone(), labels, task=task, output_fn=output_fn)
    except ValueError as error:
        if classes is None and not told:
            return None
        raise WrongArgumentError(f"classes={classes}: {error}; give classes=0 for none") from error
    if classes is None and not told and found.task.kind == "segmentation" and labels is None:
        return None  # maps of features rather
    count = found.classes
    wanted = _CLASSES if classes is None else classes
    indices = list(range(min(wanted, count))) if isinstance(wanted, int) else wanted
    if any(not 0 <= index < count for index in indices) or (isinstance(wanted, int) and wanted < 0):
        raise WrongArgumentError(f"classes={classes}: the network has {count} classes (0 to {count - 1})")
    names = [class_names[index] if class_names and index < len(class_names) else "" for index in indices]
    what = "class" if found.task.has_classes else "value"
    return MaximizationPlan(
        name="classes",
        captions=tuple(name or f"{what} {index}" for index, name in zip(indices, names, strict=True)),
        objectives=tuple(ClassScore(index, name) for index, name in zip(indices, names, strict=True)),
        size=tuple(images.shape[1:]),
        task=found.task,
        output_fn=output_fn,
        among=count,
    )


def input_bounds(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Box:
    """Return what values made images may have: what is shown as black to white; of signals, those that they take.

    Args:
        images: `(N, C, H, W)`, signals or volumes, in the network's values.
        mean: Of their normalization.
        std: Likewise.

    Example:
        >>> input_bounds(torch.tensor([[[-1.0, 4.0], [2.0, 2.0]]]), [0.0], [1.0])
        Box(low=[-1.0, 1.5], high=[4.0, 2.5])
    """
    if images.ndim > 3:
        middle, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        return Box((-middle / spread).tolist(), ((1 - middle) / spread).tolist())
    values = images.float().transpose(0, 1).flatten(1).nan_to_num(0, 0, 0)
    low, high = values.amin(1), values.amax(1)
    still = 0.5 * (low == high)  # a channel that never changes
    return Box((low - still).tolist(), (high + still).tolist())


def maximize_plan(
    network: nn.Module,
    plan: MaximizationPlan,
    images: Tensor,
    *,
    bounds: Box,
    starts: int = 2,
    steps: int = 64,
    learning_rate: float = 0.1,
    transforms: RandomTransform | Literal["default"] | None = "default",
    penalty: float = 0.25,
    invariance: int = 1,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> MaximizedLayer:
    """Maximize what a plan names, and compare with real images.

    Args:
        network: The network.
        plan: From `plan_layers` or `plan_classes`.
        images: `(N, C, H, W)`, real images in the network's values: their colors and their range of values are those of
            the images that are made, and the strongest of them stand beside these.
        bounds: The values that images may take.
        starts: See `maximize`.
        steps: See `maximize`.
        learning_rate: See `maximize`.
        transforms: See `maximize`.
        penalty: Weight of the image's total variation, in parts of the activation, for values of standard deviation 1;
            0 for none.
        invariance: For how many feature maps the invariance about the optimum is measured.
        seed: Of the starts.
        progress: Wraps an iterable of pieces of work to show progress.

    Raises:
        ValueError: See `maximize`.
    """
    images = images.float()
    deviation = float(images.std()) or 1.0
    optima = maximize(
        network,
        plan.objectives,
        plan.size,
        starts=starts,
        steps=steps,
        learning_rate=learning_rate,
        parametrization=Parametrization(bounds=bounds, colors=color_correlation(images)),
        transforms=transforms,
        penalty=penalty / deviation * TotalVariation() if penalty else None,
        task=plan.task,
        output_fn=plan.output_fn,
        seed=seed,
        progress=progress,
    )
    center = images.transpose(0, 1).flatten(1).mean(1).tolist()
    invariances = []
    # Class scores have no place in this: their optimum is a whole scene.
    for number in range(min(invariance, len(plan.objectives)) if plan.task is None else 0):
        if float(optima.activations[optima.of(number)].max()) > 0:  # else there is no optimum to turn
            optimum = optima.images[optima.ranked(number)[0]]
            about = optimum_invariance(
                network,
                plan.objectives[number],
                optimum,
                center=center,
                settle=_SETTLE,
                iterations=_ITERATIONS,
                seed=seed,
                progress=progress,
            )
            invariances.append((number, about))
    return MaximizedLayer(
        name=plan.name,
        captions=plan.captions,
        optima=optima,
        strongest=strongest_images(network, plan.objectives, images, task=plan.task, output_fn=plan.output_fn),
        invariances=tuple(invariances),
        channels=tuple(getattr(objective, "channel", None) for objective in plan.objectives),
        task=plan.task,
        among=plan.among,
    )
