"""Units in parallel tensors: what ranks them, how strong they are, and where they are, packed into few bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NO_IMAGE", "NO_LABEL", "Units"]

NO_LABEL = -(2**31)
"""The label of units whose image has none."""
NO_IMAGE = -1
"""The image of a place without a unit."""


class Units(NamedTuple):
    """A unit at each place of tensors of one shape `(...)`, 32 bytes each (in float32).

    Attributes:
        scores: What ranks them; -inf at places without a unit.
        activations: How strong they are; -inf likewise.
        images: int64, the images' indices; `NO_IMAGE` likewise.
        details: `(..., 4)` int32, zeros likewise. Only this file knows how they are laid out: the label, then three
            pairs of 16-bit numbers: row and column, and the receptive field's top left and bottom right corners. Of
            volumes `(..., 6)`: then the depth, and the pair of the field's front and back.
    """

    scores: Tensor
    activations: Tensor
    images: Tensor
    details: Tensor

    @classmethod
    def none(cls, *shape: int, dtype: torch.dtype = torch.float32, deep: bool = False) -> Units:
        """Return places without units, of volumes where they are deep."""
        nothing = torch.full(shape, -torch.inf, dtype=dtype)
        details = torch.zeros(*shape, 6 if deep else 4, dtype=torch.int32)
        return cls(nothing, nothing.clone(), torch.full(shape, NO_IMAGE), details)

    @classmethod
    def packed(
        cls,
        *,
        scores: Tensor,
        activations: Tensor,
        images: Tensor,
        labels: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        boxes: Tensor,
        depths: Tensor | None = None,
    ) -> Units:
        """Pack units of one shape `(...)`.

        Args:
            scores: See the attributes.
            activations: Likewise.
            images: Likewise.
            labels: Whole numbers of 32 bits, or None.
            rows: From 0 to 32,767.
            columns: Likewise.
            boxes: `(..., 4)`, top, left, bottom, right, likewise; of volumes `(..., 6)`, with the front before the top,
                and the back before the bottom.
            depths: Of volumes, likewise.
        """
        labels = torch.full_like(rows, NO_LABEL) if labels is None else labels
        first, last = boxes.chunk(2, dim=-1)
        parts = [labels.to(torch.int32), _pair(rows, columns)]
        parts += [_pair(corner[..., -2], corner[..., -1]) for corner in (first, last)]
        if depths is not None:
            parts += [depths.to(torch.int32), _pair(first[..., 0], last[..., 0])]
        details = torch.stack(parts, dim=-1)
        return cls(scores, activations, images, details)

    @property
    def labels(self) -> Tensor:
        """int64; `NO_LABEL` where the image has none."""
        return self.details[..., 0].to(torch.int64)

    @property
    def positions(self) -> Tensor:
        """One whole number for each place in a feature map, in the order of depths, then rows, then columns."""
        if self.depths is None:
            return self.details[..., 1]
        return (self.depths << 32) | self.details[..., 1].to(torch.int64)

    @property
    def rows(self) -> Tensor:
        """int64."""
        return _first(self.details[..., 1])

    @property
    def columns(self) -> Tensor:
        """int64."""
        return _second(self.details[..., 1])

    @property
    def depths(self) -> Tensor | None:
        """int64; None where these are no volumes."""
        return self.details[..., 4].to(torch.int64) if self.details.shape[-1] > 4 else None

    @property
    def boxes(self) -> Tensor:
        """`(..., 4)` int64, receptive fields: top, left, bottom, right; of volumes `(..., 6)`, see `packed`."""
        corners = self.details[..., 2], self.details[..., 3]
        edges = [part(corner) for corner in corners for part in (_first, _second)]
        if self.depths is not None:
            ends = self.details[..., 5]
            edges = [_first(ends), *edges[:2], _second(ends), *edges[2:]]
        return torch.stack(edges, dim=-1)

    def each(self, function: Callable[[Tensor], Tensor]) -> Units:
        """Do the same with each tensor."""
        return Units(*map(function, self))

    def ordered(self, order: Tensor) -> Units:
        """Return units `(F, k)` in another order `(F, n)`, line by line."""
        return Units(
            self.scores.gather(1, order),
            self.activations.gather(1, order),
            self.images.gather(1, order),
            self.details.gather(1, order[..., None].expand(-1, -1, self.details.shape[-1])),
        )

    def cleared(self) -> Units:
        """Leave nothing at places whose score is -inf."""
        empty = self.scores == -torch.inf
        return Units(
            self.scores,
            self.activations.masked_fill(empty, -torch.inf),
            self.images.masked_fill(empty, NO_IMAGE),
            self.details.masked_fill(empty[..., None], 0),
        )


def _pair(first: Tensor, second: Tensor) -> Tensor:
    """Two numbers from 0 to 32,767 in one int32."""
    return (first.to(torch.int32) << 16) | second.to(torch.int32)


def _first(pair: Tensor) -> Tensor:
    return (pair >> 16).to(torch.int64)


def _second(pair: Tensor) -> Tensor:
    return (pair & 0xFFFF).to(torch.int64)
