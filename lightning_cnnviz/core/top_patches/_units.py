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
            pairs of 16-bit numbers: row and column, and the receptive field's top left and bottom right corners.
    """

    scores: Tensor
    activations: Tensor
    images: Tensor
    details: Tensor

    @classmethod
    def none(cls, *shape: int, dtype: torch.dtype = torch.float32) -> Units:
        """Return places without units."""
        nothing = torch.full(shape, -torch.inf, dtype=dtype)
        details = torch.zeros(*shape, 4, dtype=torch.int32)
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
    ) -> Units:
        """Pack units of one shape `(...)`.

        Args:
            scores: See the attributes.
            activations: Likewise.
            images: Likewise.
            labels: Whole numbers of 32 bits, or None.
            rows: From 0 to 32,767.
            columns: Likewise.
            boxes: `(..., 4)`, top, left, bottom, right, likewise.
        """
        labels = torch.full_like(rows, NO_LABEL) if labels is None else labels
        corners = _pair(boxes[..., 0], boxes[..., 1]), _pair(boxes[..., 2], boxes[..., 3])
        details = torch.stack([labels.to(torch.int32), _pair(rows, columns), *corners], dim=-1)
        return cls(scores, activations, images, details)

    @property
    def labels(self) -> Tensor:
        """int64; `NO_LABEL` where the image has none."""
        return self.details[..., 0].to(torch.int64)

    @property
    def positions(self) -> Tensor:
        """int32, one number for each place in a feature map, in the order of rows, then columns."""
        return self.details[..., 1]

    @property
    def rows(self) -> Tensor:
        """int64."""
        return _first(self.positions)

    @property
    def columns(self) -> Tensor:
        """int64."""
        return _second(self.positions)

    @property
    def boxes(self) -> Tensor:
        """`(..., 4)` int64, receptive fields: top, left, bottom, right."""
        corners = self.details[..., 2], self.details[..., 3]
        return torch.stack([part(corner) for corner in corners for part in (_first, _second)], dim=-1)

    def each(self, function: Callable[[Tensor], Tensor]) -> Units:
        """Do the same with each tensor."""
        return Units(*map(function, self))

    def ordered(self, order: Tensor) -> Units:
        """Return units `(F, k)` in another order `(F, n)`, line by line."""
        return Units(
            self.scores.gather(1, order),
            self.activations.gather(1, order),
            self.images.gather(1, order),
            self.details.gather(1, order[..., None].expand(-1, -1, 4)),
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
