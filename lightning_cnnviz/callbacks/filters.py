"""Filters while training goes on; and, for those who want it, the paper's remedy against a few that dominate."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytorch_lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.monitor import MonitorOptions
from lightning_cnnviz.callbacks._base.trainer import find_network
from lightning_cnnviz.core.images.filters import LayerFilters, convolutions, layer_filters, renormalize_
from lightning_cnnviz.core.network.layers import resolve_features
from lightning_cnnviz.core.network.twins import copy_network
from lightning_cnnviz.core.network.weights import scale_filters_

__all__ = ["FilterMonitor", "RenormalizeFilters"]


class FilterMonitor(ExperimentMonitor):
    """Shows the kernels of the first convolution as pictures on one common scale (Zeiler & Fergus 2013, Fig. 6).

    One sheet a layer under `filters/<layer>`, the filters' RMS from strong to weak under `filters/<layer>/rms`, and
    under `filters/<layer>/...` which fraction of the filters dominates (RMS above 10 times the median) and which
    is near zero (at most 0.01 of it), and the median and largest RMS. `RenormalizeFilters` is the paper's remedy.

    Args:
        layers: The network's first convolution by default; or names, globs and keywords (see
            `core.network.layers.select_layers`) of convolutions.
        features: Filters that are shown: the first n of each layer, a list of them, a list by layer, None for all.
        channels: Of kernels that are no color or gray pictures, how many input channels are shown.
        options: See `Monitor`.

    Raises:
        ValueError: At set-up: no such convolution (with the closest names), a filter out of range, or channels < 1.
    """

    view = "filters"

    def __init__(
        self,
        layers: str | list[str] | None = None,
        *,
        features: int | list[int] | dict[str, list[int]] | None = 96,
        channels: int = 16,
        **options: Unpack[MonitorOptions],
    ) -> None:
        super().__init__(**options)
        if channels < 1:
            raise ValueError(f"channels={channels}: show 1 or more")
        self.layers, self.features, self.channels = layers, features, channels

    def prepare(self, network: nn.Module) -> None:
        """Find the convolutions."""
        for name, module in convolutions(network, self.layers):
            resolve_features(name, module.out_channels, self.features)

    def experiment(self, network: nn.Module, progress: Progress) -> tuple[LayerFilters, ...]:
        """Copy the kernels."""
        return layer_filters(network, self.layers, self.features)


class RenormalizeFilters(pl.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
    """CHANGES TRAINING: after each optimizer step, scales filters whose RMS exceeds a radius back to that radius.

    Zeiler & Fergus (2013), section 3.1, found that a few filters of the first layer came to dominate, and did so with
    their convolutions to prevent it. This is no monitor; it shows nothing (see `FilterMonitor`). Biases, and filters
    within the radius, stay as they are.

    Args:
        radius: The largest RMS of a filter's weights; the paper's is 0.1, for inputs of roughly -128 to 128.
        layers: The network's first convolution by default; `"conv"` for all, as in the paper, or names, globs and
            keywords (see `select_layers`) of convolutions.
        model: Name of the submodule that is the network; see `Monitor`.

    Raises:
        ValueError: The radius is not positive; at set-up: no such convolution, or what computes its weights
            would undo it (spectral_norm).
    """

    def __init__(self, radius: float = 0.1, layers: str | list[str] | None = None, *, model: str | None = None) -> None:
        super().__init__()
        if not radius > 0:
            raise ValueError(f"radius={radius}: give a positive number; the paper's is 0.1")
        self.radius, self.layers, self.model = radius, layers, model
        self._modules: list[nn.Conv2d] = []
        self._steps = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the convolutions, and say that training is changed."""
        if trainer.state.fn != "fit":
            return
        who = type(self).__name__
        found = convolutions(find_network(who, pl_module, self.model, called=False), self.layers)
        for name, module in found:
            _check_scalable(who, name, module)
        self._modules = [module for _, module in found]
        names = ", ".join(name for name, _ in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        rank_zero_info(f"{who} changes training: filters of {names} are kept within an RMS of {self.radius:g}")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count optimizer steps from here."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Scale back after a step; while gradients accumulate there is none."""
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            renormalize_(self._modules, self.radius)


def _check_scalable(who: str, name: str, module: nn.Conv2d) -> None:
    try:
        scale_filters_(copy_network(module), torch.full((module.out_channels,), 0.5))
    except ValueError as error:
        raise ValueError(f"{who}: layer '{name}': {error}") from error
