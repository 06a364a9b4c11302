"""Monitors that show patches: with one normalization undone at every look, so that looks can be compared."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor, FeedOptions
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.render.normalization import (
    ChannelSpec,
    Normalization,
    check_channels,
    chosen_normalization,
    find_normalization,
    normalization_from_range,
)

__all__ = ["PatchMonitor", "PatchOptions"]


class PatchOptions(FeedOptions, total=False):
    """The options that every monitor of patches takes."""

    display_channels: ChannelSpec


class PatchMonitor(FeedMonitor):
    """Shows patches; where no normalization is given or found, it assumes one at the first look, and keeps to it.

    Args:
        normalization: Mean and std to undo for display; by default found in the data set's transforms.
        display_channels: Which channels of the images are shown: three as red, green and blue (`(3, 2, 1)`), or one in
            gray. By default all: one in gray, three as colors, of any other number the mean in gray.
        options: See `FeedMonitor`.

    Raises:
        ValueError: Neither one nor three channels are to be shown.
    """

    axes = (1, 2, 3)

    def __init__(
        self,
        normalization: tuple[list[float], list[float]] | None = None,
        *,
        display_channels: ChannelSpec = None,
        **options: Unpack[FeedOptions],
    ) -> None:
        super().__init__(**options)
        check_channels(display_channels)
        self.normalization, self.display_channels = normalization, display_channels
        self._assumed: Normalization | None = None

    def prepare(self, network: nn.Module) -> None:
        """Forget what an earlier run has assumed."""
        self._assumed = None

    def normalization_of(self, patches: TopPatches) -> Normalization:
        """Return what is undone to show patches."""
        shown = list(patches.all_patches())
        chosen = chosen_normalization(self.normalization, self.dataset, shown, self.display_channels)
        if self.normalization is not None or find_normalization(self.dataset) is not None:
            return chosen
        if self._assumed is None:
            self._assumed = normalization_from_range(shown)
        return self._assumed.shows(chosen.channels or None, chosen.of)

    def state_dict(self) -> dict[str, Any]:
        """Return which run this is, and the normalization that is assumed in it."""
        state, kept = super().state_dict(), self._assumed
        if kept is not None:
            state["normalization"] = {"mean": list(kept.mean), "std": list(kept.std), "source": kept.source}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint, and with the normalization that was assumed in it."""
        super().load_state_dict(state_dict)
        if "normalization" in state_dict:
            kept = state_dict["normalization"]
            self._assumed = Normalization(tuple(kept["mean"]), tuple(kept["std"]), kept["source"])
