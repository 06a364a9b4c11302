"""Monitors that make an experiment of their own on the network: on its weights, or on a few images drawn once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.cost import wait_for_device
from lightning_cnnviz.callbacks._base.monitor import Monitor, MonitorOptions
from lightning_cnnviz.callbacks._base.options import name_for_loader
from lightning_cnnviz.callbacks._base.sample import DisplayedSample
from lightning_cnnviz.callbacks._base.subscriber import is_due
from lightning_cnnviz.callbacks._base.trainer import validated_weights
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.record.identity import DataIdentity
from lightning_cnnviz.render.display import Display

__all__ = ["ExperimentMonitor", "Progress"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps an iterable of pieces of work to show progress."""


class ExperimentMonitor(Monitor):
    """Makes an experiment of its own at the end of an epoch, and once in `trainer.validate` and `trainer.test`.

    By default rank zero makes it alone, and the others wait; with `every_rank`, each makes a part.

    Args:
        sample: The images that it is made on, the same ones at every look; None for none.
        options: See `Monitor`.
    """

    options_of = (DisplayedSample,)

    def __init__(self, sample: DisplayedSample | None = None, **options: Unpack[MonitorOptions]) -> None:
        if sample is not None:
            own = sample.data is not None or not isinstance(sample.images, int)
            name_for_loader(options, sample.dataloader_idx, own or None)
        super().__init__(**options)
        self._images = sample

    # What a concrete monitor says.

    @abstractmethod
    def experiment(self, network: nn.Module, progress: Progress) -> Any:
        """Return this rank's part of the result, None where it has none, and leave everything as it was.

        It is called in whatever mode training or evaluation is.
        """

    def check(self, network: nn.Module) -> None:
        """Refuse what the experiment could not be made on; called once a stage, when the images are drawn.

        Raises:
            ValueError: Labels are missing, or the images are too small, or the like.
        """

    def dry_run(self, network: nn.Module, trainer: Any) -> None:
        """Try what needs data, before the first training step and before each look outside of fit, on every rank."""
        if self._images is not None and not self._images.is_drawn:
            self._images.draw(self._who, trainer, network)
            self.check(network)

    @property
    def drawn(self) -> DisplayedSample:
        """The images that the experiment is made on; there once training has begun."""
        assert self._images is not None, f"{self._who} looks at no images"
        return self._images

    @property
    def sample(self) -> Sample:
        """All of these images, on the CPU."""
        return self.drawn.sample

    @property
    def display(self) -> Display:
        """How they are shown, the same way at every look."""
        return self.drawn.display

    def display_of(self, result: Any) -> Display:
        """Return how the images are shown; of an experiment without any, nothing."""
        return Display() if self._images is None else self.display

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that it was made with, those of its images too, by name."""
        own = super().arguments
        return own if self._images is None else own | self._images.arguments

    def data_of(self, result: Any) -> DataIdentity:
        """Return which images were experimented on."""
        if self._images is None:
            return DataIdentity()
        return DataIdentity(images=len(self.sample), loader=self.drawn.loader, source=self.drawn.source)

    # When: Lightning's hooks.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the images of an earlier run."""
        if self._images is not None:
            self._images.forget()
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what could not work, before the first step."""
        super().on_train_start(trainer, pl_module)
        self._with_all("trying it", lambda: self._try(trainer, pl_module), raises=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, where a look is due after this step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if is_due(self, self.due_after, trainer):
            self._with_all("an experiment", lambda: self._experiment(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look, where a look is due."""
        super().on_train_epoch_end(trainer, pl_module)
        if is_due(self, self.due, trainer):
            self._with_all("an experiment", lambda: self._experiment(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the trained network, where the newest look is not at that."""
        super().on_train_end(trainer, pl_module)
        if is_due(self, self.due_at_end, trainer):
            self._with_all("an experiment", lambda: self._experiment(trainer, pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once in `trainer.validate` and in `trainer.test`."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._with_all("an experiment", lambda: self._experiment(trainer, pl_module), raises=True)

    # How: a look.

    def _experiment(self, trainer: Any, pl_module: Any) -> None:
        outside = trainer.state.fn != "fit"
        if outside:
            self._try(trainer, pl_module)
        if not self.well_everywhere():
            return
        network = self.network_of(pl_module)
        wait_for_device(trainer)
        with self._feed.costs.look(self), validated_weights(trainer):
            self.look(trainer, lambda: self.experiment(network, self.progress), raises=outside)

    def _try(self, trainer: Any, pl_module: Any) -> None:
        if self.well_everywhere():
            self.dry_run(self.network_of(pl_module), trainer)
