"""The table of a network's layers, once, before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_cnnviz.callbacks._base.monitor import Monitor
from lightning_cnnviz.callbacks._base.trainer import chosen_loader, data_loaders
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.data.sample import draw_sample
from lightning_cnnviz.core.layer_table.table import LayerTable, layer_table
from lightning_cnnviz.core.network.calling import ForwardFn, give
from lightning_cnnviz.core.network.layers import image_axes
from lightning_cnnviz.sinks.base import Sink

__all__ = ["LayerTableMonitor"]


class LayerTableMonitor(Monitor):
    """Shows, once before training, what the network does with an image, layer by layer.

    Output sizes with the sums that give them, parameters, multiply-adds, activation memory, cumulative strides,
    receptive fields, and what does not fit: a table under `layer_table/layers`, the totals under
    `layer_table/...`. In `trainer.validate` and `trainer.test`, once before the first batch.

    Args:
        input_size: Channels, height and width of an image, of a signal channels and length, of a volume channels,
            depth, height and width; by default that of an image, signal or volume of the validation (or test) data, or
            of the training data where there is none.
        data: A loader to take the image from instead.
        dataloader_idx: Which of several validation, test or training loaders to take it from.
        batch_fn: Takes a batch and returns `(images, labels)` or images, for batches of unusual form.
        name: See `Monitor`.
        model: See `Monitor`.
        forward_fn: See `Monitor`.
        sinks: See `Monitor`.
        on_error: See `Monitor`. Nothing is lost before training, so a failure to make the table always stops the run.

    Raises:
        ValueError: Before training: there is neither a size nor data, or the network refuses such an image.
    """

    view = "layer_table"
    axes = (1, 2, 3)

    every_rank = True  # so that all of them refuse what cannot be shown

    def __init__(
        self,
        input_size: Sequence[int] | None = None,
        *,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        name: str = "",
        model: str | None = None,
        forward_fn: ForwardFn | None = None,
        sinks: list[Sink] | None = None,
        on_error: Literal["report", "raise"] = "report",
    ) -> None:
        super().__init__(name=name, model=model, forward_fn=forward_fn, sinks=sinks, on_error=on_error)
        if input_size is not None and (len(input_size) not in (2, 3, 4) or min(input_size) < 1):
            raise ValueError(
                f"input_size={input_size}: give channels, height and width, as in (3, 224, 224), of a signal channels "
                "and length, as in (12, 1000), of a volume channels, depth, height and width"
            )
        self.input_size, self.data = input_size, data
        self.dataloader_idx, self.batch_fn = dataloader_idx, batch_fn

    def prepare(self, network: nn.Module) -> None:
        """There is nothing to check before an image is known."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Show the table."""
        super().on_train_start(trainer, pl_module)
        self._look_once(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Show the table in `trainer.validate`."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._look_once(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Show the table in `trainer.test`."""
        self.on_validation_start(trainer, pl_module)

    def _look_once(self, trainer: Any, pl_module: Any) -> None:
        def table() -> LayerTable:
            network = self.network_of(pl_module)
            image = self.input_size if self.input_size is not None else self._image(trainer, network)
            with trainer.precision_plugin.forward_context():
                return layer_table(network, image)

        self.look(trainer, table, raises=True)

    def _image(self, trainer: Any, network: nn.Module) -> Tensor:
        sample = draw_sample(self._loader(trainer), 1, self.batch_fn, axes={2, image_axes(network)})
        give(network, sample.given)
        return sample.images

    def _loader(self, trainer: Any) -> Iterable[Any]:
        if self.data is not None:
            loader: Iterable[Any] = self.data
            return loader
        loaders = data_loaders(trainer)
        if loaders is None:
            loaders = trainer.train_dataloader
        if loaders is None:
            raise ValueError(
                f"{self._who} takes the size of an image from the trainer's data, and there is none: give "
                "input_size=(channels, height, width), or data=<a loader>"
            )
        chosen: Iterable[Any] = chosen_loader(loaders, self.dataloader_idx)
        return chosen
