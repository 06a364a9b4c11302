"""A running top-k of units: bounded memory, and ranks merge to the answer of a single process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.top_patches._units import Units

__all__ = ["TopK"]

# With more candidates than this for each feature map, it pays to leave out those that push each other out.
_CROWD = 2


class TopK:
    """The k best units of each of many feature maps, over any number of images, in any order.

    Units rank by score; equal ones by the image's index, then by activation, then by row and column. So the result
    depends neither on how the data set was cut into batches, nor on the order of arrival, nor on the number of ranks.
    An image that comes twice (as padding of a distributed sampler does) counts once.

    Args:
        features: F, the number of feature maps; those of all layers lie behind one another.
        k: Number of units kept of each.
        per_image: Number of units of one feature map that may come from one image; None for any number.
        dtype: float32, or float64 for a network that computes in it.
        deep: Whether feature maps are those of volumes.

    Attributes:
        units: `(F, k)`, the best first.
    """

    def __init__(
        self,
        features: int,
        k: int = 9,
        *,
        per_image: int | None = 1,
        dtype: torch.dtype = torch.float32,
        deep: bool = False,
    ) -> None:
        if k < 1:
            raise WrongArgumentError(f"k={k}: at least one unit is kept of each feature map")
        if per_image is not None and per_image < 1:
            raise WrongArgumentError(
                f"per_image={per_image}: at least one unit of an image counts; None for any number"
            )
        self.k = k
        self.per_image = k if per_image is None else min(per_image, k)
        self.units = Units.none(features, k, dtype=dtype, deep=deep)

    def admits(self, first: int, scores: Tensor, images: Tensor | None) -> Tensor:
        """Say which feature maps of which images may enter the lists of a layer, given all of them at once.

        All that will stay are among them, and some that will not, for example those that tie for the last place.

        Args:
            first: Position of the layer's first feature map.
            scores: `(N, C)`, of the dtype of `units`, the best score of each feature map on each image; not NaN.
            images: `(N,)` int64, or None if all have higher indices than any so far: then ties do not enter.

        Returns:
            `(E,)` int64, ascending: n * C + c.
        """
        # With numpy: on arrays this small, torch's operations cost several times what they do.
        best = scores.numpy()
        lines = slice(first, first + best.shape[1])
        kept = self.units.scores.numpy()[lines]
        last = kept[:, -1]
        enters = best > last
        if images is not None:
            enters |= (best == last) & (images.numpy()[:, None] < self.units.images.numpy()[lines, -1])
        entering = np.flatnonzero(enters)
        if len(entering) > _CROWD * best.shape[1]:
            # While the lists fill up, most candidates of a batch push each other out.
            together = np.concatenate([kept, best.T], axis=1)
            enters &= best >= np.partition(together, -self.k, axis=1)[:, -self.k]
            entering = np.flatnonzero(enters)
        return torch.from_numpy(entering)

    def update(self, lines: Tensor, candidates: Units, *, fresh: bool = False) -> None:
        """Merge candidates into the lists of some feature maps.

        Args:
            lines: `(A,)` int64, which feature maps, each once.
            candidates: `(A, M)`, some of these places may be empty.
            fresh: Whether the candidates of a line are in the order of their images, those of one image best first and
                at most `per_image`, and all these images have higher indices than any so far: then it takes less work.
        """
        with torch.inference_mode(False), torch.no_grad():
            pairs = zip(self.units, candidates, strict=True)
            together = Units(*(torch.cat([kept[lines], new.to(kept.dtype)], 1) for kept, new in pairs))
            for kept, best in zip(self.units, self._best(together, fresh=fresh), strict=True):
                kept[lines] = best

    def merge(self) -> None:
        """Merge the lists of all ranks; every rank calls this."""
        of_ranks = zip(*map(gathered, self.units), strict=True)
        self.units = self.best_of([Units(*units) for units in of_ranks])

    def best_of(self, parts: Sequence[Units]) -> Units:
        """Return the best `(F, k)` of several lists of all feature maps."""
        return self._best(Units(*(torch.cat(part, 1) for part in zip(*parts, strict=True))))

    def _best(self, units: Units, *, fresh: bool = False) -> Units:
        """The k best of each line, under the tie rule and the limit of units an image."""
        # -0.0 ties with 0.0.
        units = units._replace(scores=units.scores + 0.0, activations=units.activations + 0.0)
        if fresh:
            scores, order = units.scores.sort(dim=1, descending=True, stable=True)
        else:
            order = _order(units)
            scores = units.scores.gather(1, order)
            spare = self._spare(units.images.gather(1, order), units.positions.gather(1, order))
            spare &= scores > -torch.inf
            if bool(spare.any()):
                scores, again = scores.masked_fill(spare, -torch.inf).sort(dim=1, descending=True, stable=True)
                order = order.gather(1, again)
        return units.ordered(order[:, : self.k])._replace(scores=scores[:, : self.k].contiguous()).cleared()

    def _spare(self, images: Tensor, positions: Tensor) -> Tensor:
        """Which units come after enough others of their image, or are listed twice; lines are sorted."""
        same_image = images[:, :, None] == images[:, None, :]
        earlier = torch.ones(images.shape[1], images.shape[1], dtype=torch.bool).tril(-1)
        same_image &= earlier
        if self.per_image == 1:
            return same_image.any(2)
        twice = (same_image & (positions[:, :, None] == positions[:, None, :])).any(2)
        return twice | ((same_image & ~twice[:, None, :]).sum(2) >= self.per_image)


def _order(units: Units) -> Tensor:
    """Sort each line by score, image, activation, position: stable sorts, the least important key first."""
    order = units.positions.sort(dim=1, stable=True).indices
    for part, descending in ((units.activations, True), (units.images, False), (units.scores, True)):
        order = order.gather(1, part.gather(1, order).sort(dim=1, descending=descending, stable=True).indices)
    return order
