"""How alike the channels of each layer are, while training goes on."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor, FeedOptions
from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.core.images.correlation import ChannelCorrelation, RunningCorrelation
from lightning_cnnviz.core.network.layers import SelectedLayer, select_layers

__all__ = ["CorrelationMonitor"]


class CorrelationMonitor(FeedMonitor):
    """Shows which channels of a layer say the same: the correlations of their feature maps' means over the images.

    For each chosen layer the matrix of correlations under `correlation/<layer>`, with channels that are alike side by
    side, and which fraction of the channels is redundant under `correlation/<layer>/redundant`. No labels are
    needed.

    Args:
        layers: `"conv"` for every convolution, or names, globs and keywords (see `select_layers`).
        threshold: From which absolute correlation on a channel repeats an earlier one, above 0 and up to 1.
        options: See `FeedMonitor`.

    Raises:
        ValueError: At set-up: no such layer (with the closest names), a threshold out of range, or no validation data.
    """

    view = "correlation"

    def __init__(
        self, layers: str | list[str] = "conv", *, threshold: float = 0.95, **options: Unpack[FeedOptions]
    ) -> None:
        super().__init__(**options)
        self.layers, self.threshold = layers, threshold
        self._chosen: list[SelectedLayer] = []

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers, and try the threshold."""
        self._chosen = select_layers(network, self.layers)
        self.running(network)

    def running(self, network: nn.Module, look: Look | None = None) -> RunningCorrelation:
        """Gather from the first image on."""
        return RunningCorrelation(network, self._chosen, threshold=self.threshold)

    def part(self, look: Look, running: Any) -> tuple[ChannelCorrelation, ...]:
        """Compute the correlations."""
        correlations: tuple[ChannelCorrelation, ...] = running.compute()
        return correlations
