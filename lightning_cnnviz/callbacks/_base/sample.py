"""A few images, the same ones at every look, and how people see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from lightning_cnnviz.callbacks._base.monitor import MonitorOptions
from lightning_cnnviz.callbacks._base.trainer import chosen_loader, data_loaders, source_of
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.data.distributed import from_first
from lightning_cnnviz.core.data.sample import Sample, draw_sample
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import give
from lightning_cnnviz.core.network.classification import classes_present, classify
from lightning_cnnviz.core.network.heads import ByHead, NetworkHead, find_heads
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.inputs import as_floats
from lightning_cnnviz.core.network.layers import image_axes
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.render.display import Display, display_of_sample
from lightning_cnnviz.render.normalization import ChannelSpec, check_channels

__all__ = ["DisplayedSample", "SampleOptions"]

# Of segmentation, so many classes are followed.
_CLASSES = 4


class _DrawOptions(TypedDict, total=False):
    data: Any
    dataloader_idx: int
    batch_fn: BatchFn | None
    seed: int
    normalization: tuple[list[float], list[float]] | None
    class_names: list[str] | None
    display_channels: ChannelSpec
    task: TaskKind | None
    output_fn: OutputFn | None


class SampleOptions(MonitorOptions, _DrawOptions, total=False):
    """The options that every monitor of a few images takes: see `DisplayedSample` and `Monitor`."""


class DisplayedSample:
    """A few images, drawn once and the same ones at every look, with how they are shown; ranks share the images.

    Args:
        images: How many images are drawn; or the images themselves `(N, C, H, W)`, or a network's signals or volumes,
            in the values that it is given, or `(images, labels)`.
        data: A loader to draw them from, instead of the validation's (or test's).
        dataloader_idx: Which of several validation (or test) loaders to draw from.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        seed: Which images are drawn.
        normalization: Mean and std of the network's input; by default found in the data set's transforms.
        class_names: Names of the classes; by default the data set's `classes`.
        display_channels: Which channels of the images are shown: three as red, green and blue (`(3, 2, 1)`), or one in
            gray. By default all: one in gray, three as colors, of any other number the mean in gray.
        task: For occlusion, invariance, attribution and the classes of maximization: what outputs and labels mean, for
            example `"multilabel"`; by default it is found from the first outputs and labels, and reports say what was
            found. Of segmentation, up to four classes that are in the images are looked at by themselves, each under
            its name, over its pixels.
        output_fn: Likewise: takes what the network returns, and returns the tensor of scores. By default each of
            several heads is looked at by itself, under its name; labels of its own are looked for in the batch under
            the same name.

    Raises:
        ValueError: No image is asked for, or neither one nor three channels are to be shown.
    """

    def __init__(
        self,
        images: int | Tensor | tuple[Tensor, Tensor],
        *,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        seed: int = 0,
        normalization: tuple[list[float], list[float]] | None = None,
        class_names: list[str] | None = None,
        display_channels: ChannelSpec = None,
        task: TaskKind | None = None,
        output_fn: OutputFn | None = None,
    ) -> None:
        if isinstance(images, int) and images < 1:
            raise ValueError(f"images={images}: give 1 or more, or the images themselves")
        self.images, self.data, self.dataloader_idx, self.batch_fn = images, data, dataloader_idx, batch_fn
        self.seed, self.normalization, self.class_names = seed, normalization, class_names
        self.task, self.output_fn = task, output_fn
        check_channels(display_channels)
        self.display_channels = display_channels
        self._drawn: tuple[Sample, Display] | None = None
        self._loader, self._source = -1, ""
        self._rank, self._ranks = 0, 1
        self._heads: list[tuple[NetworkHead, Task]] = []

    @classmethod
    def with_options(
        cls, images: int | Tensor | tuple[Tensor, Tensor], options: SampleOptions
    ) -> tuple[DisplayedSample, MonitorOptions]:
        """Return the sample that some options mean, and the options that are left for the monitor."""
        own = {name: value for name, value in options.items() if name in _DrawOptions.__annotations__}
        rest = {name: value for name, value in options.items() if name not in own}
        return cls(images, **cast(_DrawOptions, own)), cast(MonitorOptions, rest)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that it was made with, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def forget(self) -> None:
        """Let the next run draw images of its own."""
        self._drawn = None

    def draw(self, who: str, trainer: Any, network: nn.Module) -> None:
        """Draw the images, on every rank the same, and settle how they are shown.

        Batches come as the LightningModule hands them to its steps, through its hooks of the transfer to the device.
        Images of 8 bits become floats, see `as_floats`.

        Raises:
            ValueError: There is no data to draw from, or the given images have another shape.
        """
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        own = not isinstance(self.images, int) or self.data is not None
        self._loader = -1 if own else self.dataloader_idx
        self._source = "" if own else source_of(trainer, self.dataloader_idx)
        loader = None
        if isinstance(self.images, int):
            loader = self._trainers_loader(who, trainer) if self.data is None else self.data
        # The first rank's: where a loader has no indices, each rank would have images of its own.
        sample: Sample = from_first(self._images_from(who, loader, trainer, image_axes(network)))
        give(network, sample.given)
        sample = replace(sample, images=as_floats(network, sample.images))
        self._drawn = sample, self._displayed(sample, getattr(loader, "dataset", None))

    @property
    def is_drawn(self) -> bool:
        """Whether there are images."""
        return self._drawn is not None

    @property
    def loader(self) -> int:
        """Which of the trainer's loaders they are from; -1 for none of them."""
        return self._loader

    @property
    def source(self) -> str:
        """Which loader that is, for people."""
        return self._source

    @property
    def sample(self) -> Sample:
        """All the images, on the CPU."""
        return self._both[0]

    @property
    def display(self) -> Display:
        """How they are shown, the same way at every look."""
        return self._both[1]

    def on_device_of(self, network: nn.Module) -> Sample:
        """Return all the images as the network takes them."""
        return _moved(self.sample, network)

    def part(self, network: nn.Module) -> Sample | None:
        """Return this rank's images as the network takes them: rank r has r, r + ranks, ...; None where it has none."""
        own = self.sample.part(slice(self._rank, None, self._ranks))
        return _moved(own, network) if len(own) else None

    def settle_heads(self, network: nn.Module, check: Callable[[NetworkHead, TaskKind | None], Task]) -> None:
        """Find the network's heads, and the task of each, by a check that tries all that a view needs."""
        heads = self.heads(network, self.on_device_of(network).images)
        self._heads = [(head, check(head, self.task)) for head in heads]

    def heads(self, network: nn.Module, images: Tensor) -> list[NetworkHead]:
        """Return the network's heads, one that `output_fn` tells, or several of their own names.

        Args:
            network: The network, that the sample is given to; see `on_device_of`.
            images: All of the sample, as the network takes them.
        """
        if self.output_fn is not None:
            return [NetworkHead(output_fn=self.output_fn, labels=self.sample.labels)]
        return find_heads(network, images, self.sample.labels, self.sample.given)

    def for_each_head(self, network: nn.Module, make: Callable[[Sample, NetworkHead, Task], Any]) -> Any:
        """Return what is made of this rank's images; None without images.

        One result a head where there are several; of segmentation one a class, of those that are in the most images,
        from the images that have it.
        """
        made: list[tuple[str, Any]] = []
        for head, task in self._heads:
            if task.kind == "segmentation":
                made += self._for_each_class(network, make, head, task)
            else:
                every = torch.arange(len(self.sample))
                made.append((head.name, self._made(network, make, head, task, every)))
        if all(result is None for _, result in made):
            return None
        if len(made) == 1 and not made[0][0]:
            return made[0][1]
        return ByHead(names=tuple(name for name, _ in made), results=tuple(result for _, result in made))

    def _for_each_class(
        self, network: nn.Module, make: Callable[[Sample, NetworkHead, Task], Any], head: NetworkHead, task: Task
    ) -> list[tuple[str, Any]]:
        """Of segmentation: what is made of this rank's images of each class, under the class's name."""
        images = self.on_device_of(network).images
        with analysis_mode(network):
            found = classify(network, images, head.labels, task=task, output_fn=head.output_fn)
        made = []
        for number in classes_present(found, _CLASSES):
            assert found.present is not None
            images_of = found.present[:, number].nonzero().flatten()
            names = self.display.class_names or ()
            name = names[number].replace("/", " ") if number < len(names) else ""
            name = name if name and names.count(names[number]) == 1 else f"class {number}"
            result = self._made(network, make, replace(head, follow=number), task, images_of)
            made.append((f"{head.name}/{name}" if head.name else name, result))
        return made

    def _made(
        self,
        network: nn.Module,
        make: Callable[[Sample, NetworkHead, Task], Any],
        head: NetworkHead,
        task: Task,
        numbers: Tensor,
    ) -> Any:
        """What is made of those of some images that are this rank's; None where none is."""
        own = numbers[self._rank :: self._ranks]
        if not len(own):
            return None
        labels = None if head.labels is None else head.labels[own.to(head.labels.device)]
        result = make(_moved(self.sample.part(own), network), replace(head, labels=labels), task)
        if head.follow is None:
            return result
        return replace(result, untouched=replace(result.untouched, numbers=own))

    @property
    def _both(self) -> tuple[Sample, Display]:
        assert self._drawn is not None, "no images have been drawn"
        return self._drawn

    def _images_from(self, who: str, loader: Any, trainer: Any, axes: int) -> Sample:
        if isinstance(self.images, int):
            with _validating(trainer):
                transfer = trainer.strategy.batch_to_device  # with the LightningModule's hooks
                return draw_sample(loader, self.images, self.batch_fn, transfer=transfer, seed=self.seed, axes={axes})
        images, labels = (self.images, None) if isinstance(self.images, Tensor) else self.images
        if images.ndim != axes + 2 or not len(images):
            wanted = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}[axes]
            raise WrongArgumentError(f"{who}(images=...): they are {tuple(images.shape)}; give {wanted}")
        return Sample(images=images, labels=labels, indices=torch.arange(len(images)))

    def _trainers_loader(self, who: str, trainer: Any) -> Any:
        loaders = data_loaders(trainer)
        if loaders is None:
            raise ValueError(
                f"{who} draws its images from the validation data, and there is none: give data=<a loader>, or "
                "images=<a tensor>"
            )
        return chosen_loader(loaders, self.dataloader_idx)

    def _displayed(self, sample: Sample, dataset: Any) -> Display:
        options: Any = {"normalization": self.normalization, "names": self.class_names}
        return display_of_sample(sample, dataset, channels=self.display_channels, **options)


@contextmanager
def _validating(trainer: Any) -> Iterator[None]:
    """Let the hooks of a LightningModule see that nothing is trained."""
    stage = trainer.state.stage
    trainer.state.stage = type(stage).VALIDATING if stage is not None else None
    try:
        yield
    finally:
        trainer.state.stage = stage


def _moved(sample: Sample, network: nn.Module) -> Sample:
    give(network, sample.given)
    parameter = next(network.parameters(), None)
    if parameter is None:
        return sample
    images = sample.images.to(parameter.device)
    if images.is_floating_point():
        images = images.to(parameter.dtype)  # as the trainer does with half and double precision
    labels = None if sample.labels is None else sample.labels.to(parameter.device)
    return replace(sample, images=images, labels=labels)
