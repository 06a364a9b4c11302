"""Monitors that make an experiment of their own on the network: on its weights, or on a few images drawn once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.display import class_names
from lightning_cnnviz.callbacks._base.monitor import Monitor, MonitorOptions
from lightning_cnnviz.callbacks._base.trainer import chosen_loader, find_network, mixed_precision, step_of
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.data.sample import Sample, draw_sample
from lightning_cnnviz.report import Report

__all__ = ["ExperimentMonitor", "Progress", "SampleMonitor", "SampleOptions"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps an iterable of pieces of work to show progress."""


class ExperimentMonitor(Monitor):
    """Makes an experiment of its own at the end of an epoch, and once in `trainer.validate` and `trainer.test`.

    By default the first rank makes it alone, and the others wait.

    Args:
        options: See `Monitor`.
    """

    # What a concrete monitor says.

    def rehearse(self, network: nn.Module, trainer: Any) -> None:
        """Check, before the first training step and before each look outside of fit, what needs data; every rank."""

    @abstractmethod
    def experiment(self, network: nn.Module, progress: Progress) -> Any:
        """Return the result; everything is left as it was. Called in whatever mode training or evaluation is."""

    @abstractmethod
    def render(self, result: Any) -> Report:
        """Turn a result into a report; called on rank zero alone."""

    def takes_part(self, rank: int) -> bool:
        """Say whether a rank makes the experiment, or a share of it."""
        return rank == 0

    def merge(self, results: list[Any]) -> Any:
        """Return the whole result, given the results of the ranks that took part; called on rank zero alone."""
        return results[0]

    # When: Lightning's hooks.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what could not work, before the first step."""
        with self._guard(raises=True):
            self.rehearse(find_network(self._who, pl_module, self.model), trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look, where a look is due."""
        if self._due(trainer):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once where only the end was asked for."""
        if self.epochs == "last":
            self._look(trainer, pl_module, within_epoch=False)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once in `trainer.validate`."""
        if trainer.state.fn == "validate":
            self._look(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once in `trainer.test`."""
        self._look(trainer, pl_module)

    # How: a look.

    def _look(self, trainer: Any, pl_module: Any, *, within_epoch: bool = True) -> None:
        network = find_network(self._who, pl_module, self.model)
        raises = trainer.state.fn != "fit"
        self._agree(trainer)
        if self._failure is not None:
            return
        result: Any = None
        with self._guard(raises=raises):
            if raises:
                self.rehearse(network, trainer)
            if self.takes_part(trainer.global_rank):
                with mixed_precision(trainer):
                    result = self.experiment(network, self.progress)
        # Ranks meet here: one that has failed must not leave the others waiting for it.
        self._agree(trainer)
        if self._failure is not None:
            return
        with self._guard(raises=raises):
            results = _gathered(result, trainer.world_size)
            self._looks += 1
            self._step = step_of(trainer, within_epoch=within_epoch)
            if self._outlet.is_open:
                whole = self.merge([found for rank, found in enumerate(results) if self.takes_part(rank)])
                self._outlet.show(self.render(whole), self._step)

    def _agree(self, trainer: Any) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._failure is None, all=True):
            self._failure = self._failure or "it failed on another rank"


class SampleOptions(MonitorOptions, total=False):
    """The options that every monitor of a sample of images takes."""

    data: Any
    dataloader_idx: int
    batch_fn: BatchFn | None
    seed: int


class SampleMonitor(ExperimentMonitor):
    """Makes its experiment on a few images, the same ones at every look; ranks share the images.

    Args:
        images: How many images are drawn; or the images themselves `(N, C, H, W)`, in the values that the network is
            given, or `(images, labels)`.
        data: A loader to draw them from, instead of the validation's (or test's).
        dataloader_idx: Which of several validation (or test) loaders to draw from.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        seed: Which images are drawn.
        options: See `Monitor`.
    """

    def __init__(
        self,
        images: int | Tensor | tuple[Tensor, Tensor] = 5,
        *,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        seed: int = 0,
        **options: Unpack[MonitorOptions],
    ) -> None:
        super().__init__(**options)
        if isinstance(images, int) and images < 1:
            raise ValueError(f"images={images}: give 1 or more, or the images themselves")
        self.images, self.data, self.dataloader_idx, self.batch_fn = images, data, dataloader_idx, batch_fn
        self.seed = seed
        self._sample: Sample | None = None
        self._dataset: Any = None
        self._share = (0, 1)

    # What a concrete monitor says.

    @abstractmethod
    def experiment_on(self, network: nn.Module, sample: Sample, progress: Progress) -> Any:
        """Return the result for some of the images, which are on the network's device."""

    @abstractmethod
    def merge(self, results: list[Any]) -> Any:
        """Return the result for all images in the order of the sample; rank r had images r, r + ranks, ...."""

    def check_sample(self, network: nn.Module, sample: Sample) -> None:
        """Refuse images that the experiment could not be made on; called before training, once.

        Raises:
            ValueError: Labels are missing, or the images are too small, or the like.
        """

    # How: the sample.

    @property
    def sample(self) -> Sample:
        """The images, on the CPU; there once training has begun."""
        assert self._sample is not None, "no images have been drawn"
        return self._sample

    @property
    def dataset(self) -> Any:
        """The data set that the images are from, where it is known."""
        return self._dataset

    @property
    def class_names(self) -> Any:
        """Names of the classes, where the data set tells."""
        return class_names(self._dataset)

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Forget the images of an earlier run."""
        self._sample = self._dataset = None

    def rehearse(self, network: nn.Module, trainer: Any) -> None:
        """Draw the images, and try them."""
        self._share = (trainer.global_rank, trainer.world_size)
        if self._sample is None:
            # The first rank's: where a loader has no indices, each rank would have images of its own.
            self._sample = trainer.strategy.broadcast(self._draw(trainer))
            self.check_sample(network, self._on_device(network, self._sample))

    def takes_part(self, rank: int) -> bool:
        """Every rank that has an image."""
        return rank < len(self.sample)

    def experiment(self, network: nn.Module, progress: Progress) -> Any:
        """Make the experiment on this rank's images."""
        rank, ranks = self._share
        return self.experiment_on(
            network, self._on_device(network, self.sample.part(slice(rank, None, ranks))), progress
        )

    def _draw(self, trainer: Any) -> Sample:
        if not isinstance(self.images, int):
            images, labels = (self.images, None) if isinstance(self.images, Tensor) else self.images
            if images.ndim != 4 or not len(images):
                raise ValueError(f"{self._who}(images=...): they are {tuple(images.shape)}; give (N, C, H, W)")
            return Sample(images=images, labels=labels, indices=torch.arange(len(images)))
        loader = self.data
        if loader is None:
            loaders = trainer.test_dataloaders if trainer.state.fn == "test" else trainer.val_dataloaders
            if loaders is None and trainer.state.fn == "fit":
                # Without a sanity check, Lightning makes them only when the first validation is due.
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
                loaders = trainer.val_dataloaders
            if loaders is None:
                raise ValueError(
                    f"{self._who} draws its images from the validation data, and there is none: give data=<a loader>, "
                    "or images=<a tensor>"
                )
            loader = chosen_loader(loaders, self.dataloader_idx)
        self._dataset = getattr(loader, "dataset", None)
        return draw_sample(loader, self.images, self.batch_fn, seed=self.seed)

    def _on_device(self, network: nn.Module, sample: Sample) -> Sample:
        parameter = next(network.parameters(), None)
        if parameter is None:
            return sample
        images = sample.images.to(parameter.device)
        if images.is_floating_point():
            images = images.to(parameter.dtype)  # as the trainer does with half and double precision
        return Sample(
            images=images,
            labels=None if sample.labels is None else sample.labels.to(parameter.device),
            indices=sample.indices,
        )


def _gathered(result: Any, ranks: int) -> list[Any]:
    """The results of all ranks; they hold tensors on the CPU."""
    if ranks == 1:
        return [result]
    results: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(results, result)
    return results
