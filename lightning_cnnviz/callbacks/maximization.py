"""Inputs that maximize units and classes, while training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import Progress, SampleOptions
from lightning_cnnviz.callbacks._base.shown import ShownSampleMonitor
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.maximization.maximize import home_of, maximize, strongest_images, unit_input_size
from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore, Objective, UnitActivation
from lightning_cnnviz.core.maximization.optimum import optimum_invariance
from lightning_cnnviz.core.maximization.parametrization import Box, Parametrization, color_correlation
from lightning_cnnviz.core.maximization.regularization import RandomTransform, TotalVariation, check_transforms
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import evenly, resolve_features, select_layers
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps
from lightning_cnnviz.render.maximization import MaximizedLayer, maximization_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Report

__all__ = ["MaximizationMonitor"]

# Without an argument, so many convolutions are shown, from the first to the last, and so many classes.
_LAYERS, _CLASSES = 4, 4


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be maximized together: objectives of one layer, or classes."""

    name: str
    captions: tuple[str, ...]
    objectives: tuple[Objective, ...]
    size: tuple[int, int, int]


class MaximizationMonitor(ShownSampleMonitor):
    """Shows inputs that the network itself makes up to drive its units most (Erhan et al. 2009; Simonyan et al. 2014).

    For each chosen feature map, and for classes, the result from several starts, beside the strongest of some real
    images: one sheet a layer under `maximization/<layer>`, the ascent under `maximization/<layer>/steps`; for the first
    of them the directions in which the optimum may change with the least and the most effect (Le et al. 2010).

    A look costs features x starts x steps forward and backward passes as far as the layer, on images as large as the
    unit's receptive field: a few seconds on a small network; on a large one, look every few epochs, or at the end.

    Args:
        layers: As `TopPatchesMonitor`'s; by default four convolutions from the first to the last.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        classes: Classes that are shown: the first n, or a list; by default four where the network gives class scores.
        objective: `"unit"` for one unit of the feature map, `"channel"` for its mean over an image of full size.
        starts: Number of starts of each.
        steps: Number of steps of each.
        learning_rate: Of the ascent.
        transforms: What an image has to stand; None for nothing.
        penalty: Weight of the image's total variation, in parts of the activation, for values of standard
            deviation 1; 0 for none.
        invariance: For how many feature maps of each layer the invariance about the optimum is shown; 0 for none.
        images: How many real images the strongest are looked for in; or the images themselves.
        normalization: Mean and std to undo for display, which also bound the values; by default found in the data
            set's transforms.
        class_names: Names of the classes; by default the data set's `classes`.
        options: See `SampleMonitor`.

    Raises:
        ValueError: At set-up, or before the first step: no such layer, a feature map or class out of range, or another
            argument that is.
    """

    def __init__(
        self,
        layers: str | list[str] | None = None,
        *,
        features: int | list[int] | dict[str, list[int]] | None = 6,
        classes: int | list[int] | None = None,
        objective: Literal["unit", "channel"] = "unit",
        starts: int = 2,
        steps: int = 64,
        learning_rate: float = 0.1,
        transforms: RandomTransform | Literal["default"] | None = "default",
        penalty: float = 0.25,
        invariance: int = 1,
        images: int | Tensor | tuple[Tensor, Tensor] = 32,
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        **options: Unpack[SampleOptions],
    ) -> None:
        super().__init__(images, normalization=normalization, class_names=class_names, **options)
        for name, value, least in (("starts", starts, 1), ("steps", steps, 1), ("invariance", invariance, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: give {least} or more")
        if objective not in ("unit", "channel"):
            raise ValueError(f'objective={objective!r}: give "unit" or "channel"')
        if not (learning_rate > 0 and penalty >= 0):
            raise ValueError(f"learning_rate={learning_rate}, penalty={penalty}: give numbers above 0, or 0 as penalty")
        check_transforms(transforms)
        self.layers, self.features, self.classes, self.objective = layers, features, classes, objective
        self.starts, self.steps, self.learning_rate = starts, steps, learning_rate
        self.transforms, self.penalty, self.invariance = transforms, penalty, invariance
        self._plans: list[_Plan] = []

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        select_layers(network, "conv" if self.layers is None else self.layers)
        self._plans = []

    def check_sample(self, network: nn.Module, sample: Sample) -> None:
        """Find out what there is to maximize, and refuse what there is not."""
        super().check_sample(network, sample)
        image = sample.images[:1].to(home_of(network)[1])
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        traced = trace_feature_maps(network, image, chosen)
        if self.layers is None:
            traced = evenly(traced, _LAYERS)
        self._plans = [self._layer_plan(network, maps, image) for maps in traced]
        classes = self._class_plan(network, image)
        if classes is not None:
            self._plans.append(classes)

    def experiment_on(self, network: nn.Module, sample: Sample, progress: Progress) -> list[MaximizedLayer]:
        """Climb, layer by layer."""
        return [self._maximized(network, plan, sample, progress) for plan in self._plans]

    def experiment(self, network: nn.Module, progress: Progress) -> list[MaximizedLayer]:
        """Climb, comparing with all images of the sample."""
        return self.experiment_on(network, self.sample, progress)

    def takes_part(self, rank: int) -> bool:
        """The first rank alone."""
        return rank == 0

    def merge(self, results: list[Any]) -> list[MaximizedLayer]:
        """Return the first rank's."""
        found: list[MaximizedLayer] = results[0]
        return found

    def render(self, result: list[MaximizedLayer]) -> Report:
        """Draw the sheets."""
        return maximization_report(result, self.shown.normalization, compared=len(self.sample))

    def _layer_plan(self, network: nn.Module, maps: FeatureMaps, image: Tensor) -> _Plan:
        channels = resolve_features(maps.layer, maps.shape[0], self.features)
        kind = UnitActivation if self.objective == "unit" else ChannelActivation
        size = (image.shape[1], image.shape[2], image.shape[3])
        if self.objective == "unit":
            size = unit_input_size(network, maps, size, channels)
        captions = tuple(f"channel {channel}" for channel in channels)
        return _Plan(maps.layer, captions, tuple(kind(maps, channel) for channel in channels), size)

    def _class_plan(self, network: nn.Module, image: Tensor) -> _Plan | None:
        if self.classes in (0, []):
            return None
        with analysis_mode(network):
            output = network(image.clone())
        scores = getattr(output, "logits", output)
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            if self.classes is None:
                return None
            raise ValueError(
                f"classes={self.classes}: {type(network).__name__} returns no scores (N, classes); give classes=0"
            )
        count = scores.shape[1]
        wanted = self.classes if self.classes is not None else _CLASSES
        indices = list(range(min(wanted, count))) if isinstance(wanted, int) else wanted
        wrong = [index for index in indices if not 0 <= index < count]
        if wrong or (isinstance(wanted, int) and wanted < 0):
            raise ValueError(f"classes={self.classes}: the network has {count} classes (0 to {count - 1})")
        names = self.class_names or []
        captions = tuple(names[index] if index < len(names) else f"class {index}" for index in indices)
        objectives = tuple(ClassScore(index, names[index] if index < len(names) else "") for index in indices)
        return _Plan("classes", captions, objectives, (image.shape[1], image.shape[2], image.shape[3]))

    def _maximized(self, network: nn.Module, plan: _Plan, sample: Sample, progress: Progress) -> MaximizedLayer:
        images = sample.images.float()
        deviation = float(images.std()) or 1.0
        found = maximize(
            network,
            plan.objectives,
            plan.size,
            starts=self.starts,
            steps=self.steps,
            learning_rate=self.learning_rate,
            parametrization=Parametrization(bounds=_bounds(self.shown.normalization), colors=color_correlation(images)),
            transforms=self.transforms,
            penalty=self.penalty / deviation * TotalVariation() if self.penalty else None,
            seed=self.seed,
            progress=progress,
        )
        center = images.mean((0, 2, 3)).tolist()
        # Class scores have no place in this: their optimum is a whole scene.
        examined = range(min(self.invariance, len(plan.objectives)) if plan.name != "classes" else 0)
        invariances = tuple(
            (
                number,
                optimum_invariance(
                    network,
                    plan.objectives[number],
                    found.images[found.ranked(number)[0]],
                    center=center,
                    seed=self.seed,
                    progress=progress,
                ),
            )
            for number in examined
            if float(found.activations[found.of(number)].max()) > 0  # else there is no optimum to turn
        )
        return MaximizedLayer(
            name=plan.name,
            captions=plan.captions,
            optima=found,
            strongest=strongest_images(network, plan.objectives, sample.images),
            invariances=invariances,
        )


def _bounds(shown_as: Normalization) -> Box:
    """The network's inputs that are shown as black to white."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (shown_as.mean, shown_as.std))
    return Box((-mean / std).tolist(), ((1 - mean) / std).tolist())
