"""A running top-k of units, as a torchmetrics Metric: bounded memory, and ranks merge to the single-process answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["NO_LABEL", "TopK", "pack", "strongest_units", "unpack"]

NO_LABEL = -(2**31)
"""Stands for "no label" in the state."""
_NO_IMAGE = -1
# Above so many candidates a feature map, it pays to see which of them push each other out.
_CROWD = 2


class TopK(Metric):
    """The k strongest units of each of many feature maps, over any number of images, in any order.

    Units rank by activation; equal ones by the image's index, then by row and column. So the result depends neither on
    how the data set was cut into batches, nor on the order of arrival, nor on the number of ranks. An image that comes
    twice (as padding of a distributed sampler does) counts once.

    All feature maps of all layers lie behind one another in the states, which take 28 bytes a kept unit:

    Attributes:
        values: `(F, k)` activations, strongest first; -inf where there are fewer than k units.
        images: `(F, k)` int64, the images' indices; -1 where empty.
        details: `(F, k, 4)` int32: label, then position, then the corners of the receptive field, each as two 16-bit
            numbers: `row << 16 | column`, `top << 16 | left`, `bottom << 16 | right`.

    Args:
        features: F, the number of feature maps.
        k: Number of units kept of each.
        per_image: Number of units of one feature map that may come from one image; None for any number.
        dtype: float32, or float64 for a network that computes in it.
    """

    full_state_update = False
    values: Tensor
    images: Tensor
    details: Tensor

    def __init__(
        self,
        features: int,
        k: int = 9,
        *,
        per_image: int | None = 1,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k={k}: at least one unit is kept of each feature map")
        if per_image is not None and per_image < 1:
            raise ValueError(f"per_image={per_image}: at least one unit of an image counts; None for any number")
        self.k = k
        self.per_image = k if per_image is None else min(per_image, k)
        self.add_state("values", torch.full((features, k), -torch.inf, dtype=dtype), dist_reduce_fx=None)
        self.add_state("images", torch.full((features, k), _NO_IMAGE), dist_reduce_fx=None)
        self.add_state("details", torch.zeros(features, k, 4, dtype=torch.int32), dist_reduce_fx=None)

    def admits(self, first: int, peaks: Tensor, images: Tensor | None) -> Tensor:
        """Say which feature maps of which images may enter the lists of a layer, given all of them at once.

        Those named are all that will stay, and some that will not: such as tie for the last place.

        Args:
            first: Position of the layer's first feature map.
            peaks: `(N, C)` float32 or float64, the strongest activation of each feature map on each image; not NaN.
            images: `(N,)` int64, or None where all come behind all earlier ones: then ties do not enter.

        Returns:
            `(E,)` int64, ascending: n * C + c.
        """
        # With numpy: on arrays this small, torch's operations cost several times what they do.
        strongest = peaks.numpy()
        lines = slice(first, first + strongest.shape[1])
        values = self.values.numpy()[lines]
        weakest = values[:, -1]
        enters = strongest > weakest
        if images is not None:
            enters |= (strongest == weakest) & (images.numpy()[:, None] < self.images.numpy()[lines, -1])
        found = np.flatnonzero(enters)
        if len(found) > _CROWD * strongest.shape[1]:
            # While the lists fill up, most of a batch push each other out.
            known = np.concatenate([values, strongest.T], axis=1, dtype=values.dtype)
            enters &= strongest >= np.partition(known, -self.k, axis=1)[:, -self.k]
            found = np.flatnonzero(enters)
        return torch.from_numpy(found)

    def update(self, rows: Tensor, values: Tensor, images: Tensor, details: Tensor, *, fresh: bool = False) -> None:
        """Merge candidates into the lists of some feature maps.

        Args:
            rows: `(A,)` int64, which feature maps, each once.
            values: `(A, M)` their candidates' activations; -inf for none.
            images: `(A, M)` int64.
            details: `(A, M, 4)` int32, as in the state.
            fresh: Whether the candidates of a line stand in the order of their images (those of one image in the order
                of rank, at most `per_image`), all behind every image so far: then there is less to do.
        """
        with torch.inference_mode(False), torch.no_grad():
            merged = self._best(
                torch.cat([self.values[rows], values.to(self.values.dtype)], 1),
                torch.cat([self.images[rows], images], 1),
                torch.cat([self.details[rows], details], 1),
                fresh=fresh,
            )
            self.values[rows], self.images[rows], self.details[rows] = merged

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(values, images, details)`, merged over all ranks."""
        if self.values.ndim == 2:
            return self.values, self.images, self.details
        # The states of all ranks, (ranks, F, k), lie side by side: (F, ranks * k).
        states = (self.values, self.images, self.details)
        values, images, details = (state.transpose(0, 1).flatten(1, 2) for state in states)
        return self._best(values, images, details)

    def _best(
        self, values: Tensor, images: Tensor, details: Tensor, *, fresh: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k best of each line, under the tie rule and the limit of units an image."""
        values = values + 0.0  # -0.0 ties with 0.0
        if fresh:
            values, order = values.sort(dim=1, descending=True, stable=True)
            images = images.gather(1, order)
        else:
            order = _order(values, images, details)
            values, images = values.gather(1, order), images.gather(1, order)
            spare = self._spare(images, details[..., 1].gather(1, order)) & (values > -torch.inf)
            if bool(spare.any()):
                values = values.masked_fill(spare, -torch.inf)
                again = values.sort(dim=1, descending=True, stable=True).indices
                values, images, order = values.gather(1, again), images.gather(1, again), order.gather(1, again)
        values, images, order = (kept[:, : self.k].contiguous() for kept in (values, images, order))
        details = details.gather(1, order[..., None].expand(-1, -1, 4))
        empty = values == -torch.inf
        return values, images.masked_fill(empty, _NO_IMAGE), details.masked_fill(empty[..., None], 0)

    def _spare(self, images: Tensor, positions: Tensor) -> Tensor:
        """Which units come behind enough others of their image, or are there already; lines are sorted."""
        same_image = images[:, :, None] == images[:, None, :]
        earlier = torch.ones(images.shape[1], images.shape[1], dtype=torch.bool, device=images.device).tril(-1)
        same_image &= earlier
        if self.per_image == 1:
            return same_image.any(2)
        twice = (same_image & (positions[:, :, None] == positions[:, None, :])).any(2)
        return twice | ((same_image & ~twice[:, None, :]).sum(2) >= self.per_image)


def _order(values: Tensor, images: Tensor, details: Tensor) -> Tensor:
    """Sort each line by value (descending), image, position: stable sorts, the least important key first."""
    order = details[..., 1].sort(dim=1, stable=True).indices
    order = order.gather(1, images.gather(1, order).sort(dim=1, stable=True).indices)
    return order.gather(1, values.gather(1, order).sort(dim=1, descending=True, stable=True).indices)


def strongest_units(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return values and positions `(E, count)` of the strongest units of feature maps `(E, H, W)`.

    Fewer where a map has fewer units; equal ones are in order of position (row by row).
    """
    flat = maps.flatten(1)
    if count == 1:
        return flat.max(dim=1, keepdim=True)
    values, positions = flat.sort(dim=1, descending=True, stable=True)
    return values[:, :count], positions[:, :count]


def pack(high: Tensor, low: Tensor) -> Tensor:
    """Two numbers from 0 to 32,767 in one int32."""
    return (high.to(torch.int32) << 16) | low.to(torch.int32)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `pack`, as int64."""
    return (packed >> 16).to(torch.int64), (packed & 0xFFFF).to(torch.int64)
