"""Inputs that maximize units and classes, while training goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.options import space_out
from lightning_cnnviz.callbacks._base.sample import DisplayedSample, SampleOptions
from lightning_cnnviz.core.maximization.maximize import home_of
from lightning_cnnviz.core.maximization.plan import (
    MaximizationPlan,
    MaximizedLayer,
    input_bounds,
    maximize_plan,
    plan_classes,
    plan_layers,
)
from lightning_cnnviz.core.maximization.regularization import RandomTransform, check_transforms
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.heads import NetworkHead
from lightning_cnnviz.core.network.layers import select_layers

__all__ = ["MaximizationMonitor"]


class MaximizationMonitor(ExperimentMonitor):
    """Shows inputs that the network itself makes up to drive its units most (Erhan et al. 2009; Simonyan et al. 2014).

    For each chosen feature map, and for classes, the result from several starts, beside the strongest of some real
    images: one sheet a layer under `maximization/<layer>`, the ascent under `maximization/<layer>/steps`; for the first
    of them the directions in which the optimum may change with the least and the most effect (Le et al. 2010).

    A look costs features x starts x steps forward and backward passes as far as the layer, on images as large as the
    unit's receptive field: about a second on a small network, a minute on SqueezeNet at 224 x 224 pixels and one core.
    So it looks after every fifth epoch, and at the end of training. More steps give stronger optima of the same form.

    Args:
        layers: As `TopPatchesMonitor`'s; by default four convolutions from the first to the last.
        features: Feature maps that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        classes: Classes that are shown: the first n, or a list; by default four where the network gives class scores.
            Of several heads, these of each, under `maximization/<head>/classes`.
        objective: `"unit"` for one unit of the feature map, `"channel"` for its mean over an image of full size.
        starts: Number of starts of each.
        steps: Number of steps of each.
        learning_rate: Of the ascent.
        transforms: What an image has to stand; None for nothing.
        penalty: Weight of the image's total variation, in parts of the activation, for values of standard
            deviation 1; 0 for none.
        invariance: For how many feature maps of each layer the invariance about the optimum is shown; 0 for none.
        images: How many real images the strongest are looked for in; or the images themselves.
        options: See `DisplayedSample` and `Monitor`; the normalization also bounds the values. `every_n_epochs` is 5
            where no other schedule is given.

    Raises:
        ValueError: At set-up, or before the first step: no such layer, a feature map or class out of range, or another
            argument that is.
    """

    view, axes = "maximization", (1, 2, 3)
    of_convolutions = True

    def __init__(
        self,
        layers: str | list[str] | None = None,
        *,
        features: int | list[int] | dict[str, list[int]] | None = 6,
        classes: int | list[int] | None = None,
        objective: Literal["unit", "channel"] = "unit",
        starts: int = 2,
        steps: int = 32,
        learning_rate: float = 0.1,
        transforms: RandomTransform | Literal["default"] | None = "default",
        penalty: float = 0.25,
        invariance: int = 1,
        images: int | Tensor | tuple[Tensor, Tensor] = 32,
        **options: Unpack[SampleOptions],
    ) -> None:
        space_out(options)
        sample, others = DisplayedSample.with_options(images, options)
        super().__init__(sample, **others)
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
        self._plans: list[MaximizationPlan] = []

    def prepare(self, network: nn.Module) -> None:
        """Try the layers' names."""
        select_layers(network, "conv" if self.layers is None else self.layers)
        self._plans = []

    def check(self, network: nn.Module) -> None:
        """Find out what there is to maximize, and refuse what there is not."""
        sample, own = self.drawn.on_device_of(network), self.drawn
        images = sample.images.to(home_of(network)[1])
        what: dict[str, Any] = {"objective": self.objective, "class_names": self.display.class_names}
        self._plans = plan_layers(network, images[:1], self.layers, self.features, **what)
        if self.classes not in (0, []):
            self._plans += [
                plan for head in own.heads(network, images) if (plan := self._of_head(network, head, images))
            ]

    def _of_head(self, network: nn.Module, head: NetworkHead, images: Tensor) -> MaximizationPlan | None:
        """The classes of one head of several, under its name; of a network of one head those of the data set."""
        what: Any = {"labels": head.labels, "task": self.drawn.task, "output_fn": head.output_fn}
        if not head.name:
            return plan_classes(network, images, self.classes, self.display.class_names, **what)
        try:
            plan = plan_classes(network, images, self.classes, **what)
        except WrongArgumentError as error:
            raise WrongArgumentError(f"the head '{head.name}': {error}") from error
        return None if plan is None else replace(plan, name=f"{head.name}/{plan.name}")

    def experiment(self, network: nn.Module, progress: Progress) -> list[MaximizedLayer]:
        """Climb, layer by layer."""
        self.drawn.on_device_of(network)  # so that real images have beside them what belongs to them
        bounds = input_bounds(self.sample.images, *self.display.mean_and_std)
        return [
            maximize_plan(
                network,
                plan,
                self.sample.images,
                bounds=bounds,
                starts=self.starts,
                steps=self.steps,
                learning_rate=self.learning_rate,
                transforms=self.transforms,
                penalty=self.penalty,
                invariance=self.invariance,
                seed=self.drawn.seed,
                progress=progress,
            )
            for plan in self._plans
        ]
