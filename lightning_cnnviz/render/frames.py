"""How patches and projections of a layer are laid out in tiles of one size: images, signals as curves, or slices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patch_slices import SLICE_NAMES, draw_patch_slices, patch_slices_size
from lightning_cnnviz.render.patches import place_patch, placed_at, scale_of, to_gray_centered
from lightning_cnnviz.render.signals import CHART_SIZE, draw_signal, signal_sentence, value_range

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """Tiles of one size for the patches of a layer.

    Attributes:
        lengths: How long the largest patch is along each axis: one number of signals, two of images, three of volumes.
        channels: How many channels patches have.
        span: Of signals, the lowest and the highest value, which is the scale of all.
    """

    lengths: tuple[int, ...]
    channels: int = 3
    span: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, patches: Iterable[Tensor], normalization: Normalization | None = None) -> Frame:
        """Return that for some patches, of which the channels are drawn that the normalization says."""
        patches = list(patches)
        axes = {patch.ndim - 1 for patch in patches} or {2}
        longest = [max((patch.shape[axis + 1] for patch in patches), default=1) or 1 for axis in range(max(axes))]
        span = (0.0, 1.0)
        if axes == {1}:
            chosen = [patch[list(_drawn(len(patch), normalization))] for patch in patches]
            span = value_range(chosen)
        return cls(tuple(longest), len(patches[0]) if patches else 3, span)

    @classmethod
    def of_layer(cls, layer: LayerTopPatches, normalization: Normalization | None = None) -> Frame:
        """Return that of all patches of a layer."""
        return cls.of((patch for patches in layer.patches for patch in patches), normalization)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        if len(self.lengths) == 1:
            return CHART_SIZE
        if len(self.lengths) == 3:
            return patch_slices_size(self.lengths, clip=self._is_clip)
        return self.lengths[0], self.lengths[1]

    def inside(self, box: Tensor) -> tuple[int, int, int, int] | None:
        """Return where in a tile the patch of a box lies, where it does not fill it; None where axes surround it."""
        return placed_at(box, self.size) if self.is_image else None

    @property
    def is_image(self) -> bool:
        """Whether tiles are the pixels of patches themselves."""
        return len(self.lengths) == 2

    @property
    def said(self) -> str:
        """How large receptive fields are, in words."""
        unit = "samples" if len(self.lengths) == 1 else "px"
        return " x ".join(map(str, self.lengths)) + f" {unit}"

    def patch(self, values: Tensor, box: Tensor, normalization: Normalization) -> Tensor:
        """Draw a patch, `(3, H, W)` uint8, where it lies in a full one that no border cuts off."""
        if len(self.lengths) == 1:
            return self._curve(values[list(_drawn(len(values), normalization))], box, self.span)
        if len(self.lengths) == 3:
            return draw_patch_slices(values, box.tolist(), self.lengths, normalization.to_pixels, clip=self._is_clip)
        return place_patch(normalization.to_pixels(values), box, self.size)

    def projection(self, values: Tensor, box: Tensor, scale: float | None = None) -> Tensor:
        """Draw a projection likewise, in values of either sign: up to `scale`, by default that of `scale_of`."""
        scale = self.scale_of(values) if scale is None else scale
        if len(self.lengths) == 1:
            return self._curve(values.float(), box, (-scale, scale) if scale > 0 else (-1.0, 1.0))
        if len(self.lengths) == 3:
            return draw_patch_slices(
                values, box.tolist(), self.lengths, lambda part: to_gray_centered(part, scale), clip=self._is_clip
            )
        return place_patch(to_gray_centered(values, scale), box, self.size)

    def scale_of(self, values: Tensor) -> float:
        """Return the magnitude that is shown in full: of a signal the largest, which its axis ends at."""
        if len(self.lengths) > 1:
            return scale_of(values)
        return float(values.float().nan_to_num(0, 0, 0).abs().max()) if values.numel() else 0.0

    def notes(self, normalization: Normalization) -> tuple[str, ...]:
        """Say to the reader what is drawn, and what it means where nothing is."""
        beyond = "Blue is what lies beyond an image's border."
        if len(self.lengths) == 1:
            return signal_sentence(normalization.channels, self.channels), "Blue is what lies beyond a signal's ends."
        if len(self.lengths) == 3:
            names = ", ".join(SLICE_NAMES[self._is_clip])
            lie = "rows and columns; below it depth (downwards) and columns; beside it rows and depth (to the right)"
            slices = f"Three slices go through the middle of a unit's field ({names}): {lie}."
            return slices, normalization.sentence(), beyond
        return normalization.sentence(), beyond

    @property
    def _is_clip(self) -> bool:
        return self.channels == 3

    def _curve(self, values: Tensor, box: Tensor, span: tuple[float, float]) -> Tensor:
        start = int(box[1])
        begin = start + values.shape[1] - self.lengths[0] if start == 0 else start
        low, high = span
        return draw_signal(values, low=low, high=high, first=start, window=(begin, begin + self.lengths[0]))


def _drawn(channels: int, normalization: Normalization | None) -> tuple[int, ...]:
    """Which channels of a signal are drawn: all, unless some were chosen."""
    chosen = () if normalization is None else normalization.channels
    return tuple(chosen) or tuple(range(channels))
