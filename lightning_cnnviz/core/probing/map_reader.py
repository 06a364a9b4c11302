"""Reading features of chosen layers from one forward pass, whoever makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import Site, hooked
from lightning_cnnviz.core.network.layers import SelectedLayer
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = ["MapReader"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# By how many axes of space maps have.
_POOLS: dict[int, Callable[[Tensor, Any], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_PlaceHooks = Callable[[Mapping[str, Site], Callable[[str, Any], None]], AbstractContextManager[None]]


class MapReader:
    """Reads features of chosen layers from one pass at a time: rectified, pooled, and no part of any graph.

        with reader.reading(images):
            network(images)
        reader.values

    A layer's first value for as many images as there are in the batch counts: a network may be called once more for
    something else, and gradient checkpointing runs it twice.

    Args:
        model: The network.
        layers: From `select_layers`.
        pool: See `tap_features`.
        rectify: See `tap_features`.

    Attributes:
        maps: What the chosen layers give, in the order in which they run; empty before the first pass.
        grids: Of each layer its feature maps' shape and the grid that they are pooled to.
        values: Of each layer that has run `(N, D)`, in the network's precision.

    Raises:
        ValueError: `pool` is below 1.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[SelectedLayer], *, pool: int | None, rectify: bool = True
    ) -> None:
        if pool is not None and pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer, or None for whole maps")
        self._model, self._chosen, self._pool = model, layers, pool
        self._rectified = {
            layer.name: rectify and isinstance(layer.module, _CONVOLUTIONS) and not layer.literal for layer in layers
        }
        self.maps: list[FeatureMaps] = []
        self.grids: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.values: dict[str, Tensor] = {}
        self._images, self._axes = 0, 2
        self._places: Tensor | None = None

    @contextmanager
    def reading(
        self, images: Tensor, place_hooks: _PlaceHooks = hooked, *, places: Tensor | None = None
    ) -> Iterator[None]:
        """Read the one forward pass that is made inside; afterwards `values` has what it gave.

        Args:
            images: `(N, C, H, W)`, signals `(N, C, L)` or volumes `(N, C, D, H, W)`, those that the network is about to
                be given; the first ones are traced.
            place_hooks: `hooked`, or `watched` during a training step.
            places: `(N, P, 2)`, row and column as fractions of height and width: then values are `(N * P, C)`, those
                of the maps' cells in which these places lie, and nothing is pooled.

        Raises:
            LayerNotFoundError: See `trace_feature_maps`.
            ValueError: A layer has not run, or never over so many images; maps that are not pooled have another size
                than before.
        """
        if not self.maps:
            image, parameter = images[:1], next(self._model.parameters(), None)
            if parameter is not None and image.is_floating_point():
                image = image.to(parameter.device, parameter.dtype)
            self.maps = trace_feature_maps(self._model, image, self._chosen)
        self.values, self._images, self._places, self._axes = {}, len(images), places, images.ndim - 2
        errors: list[Exception] = []

        def take(layer: str, value: Any) -> None:
            # A failure must not pass through the forward pass, which may be the user's.
            try:
                self._take(layer, value)
            except Exception as error:
                errors.append(error)

        with place_hooks({maps.layer: maps.site for maps in self.maps}, take):
            yield
        if errors:
            raise errors[0]
        missing = [maps.layer for maps in self.maps if maps.layer not in self.values]
        if missing:
            raise ValueError(
                f"a pass over {self._images} images was expected, but layers {missing} gave no features of so many; is "
                "the network called with the images of the batch, and is it not compiled?"
            )

    def _take(self, layer: str, value: Any) -> None:
        """Read what a layer has given."""
        if layer in self.values or not isinstance(value, Tensor) or len(value) != self._images:
            return
        maps = value.detach()
        if self._rectified[layer]:
            maps = maps.relu()
        if maps.ndim == 2:  # one position, of as many axes as images have
            maps = maps.view(*maps.shape, *[1] * self._axes)
        shape = tuple(maps.shape[1:])
        if self._places is not None:
            self.grids.setdefault(layer, (shape, (1,) * self._axes))
            self.values[layer] = _cells(maps, self._places)
            return
        first_shape, grid = self.grids.setdefault(layer, (shape, _grid(shape, self._pool)))
        if first_shape != shape and self._pool is None:
            raise ValueError(
                f"feature maps of layer '{layer}' have different sizes ({first_shape}, then {shape}): give images of "
                "one size, or pool=<number of features>"
            )
        # Means of many numbers in half precision are none.
        exact = maps if maps.dtype == torch.float64 else maps.float()
        pooled = maps if grid == shape[1:] else _POOLS[len(grid)](exact, grid)
        rows = pooled.flatten(1)
        # A copy: an in-place operation that follows would overwrite the layer's own.
        self.values[layer] = rows.clone() if rows.data_ptr() == value.data_ptr() else rows


def _cells(maps: Tensor, places: Tensor) -> Tensor:
    """The values `(N * P, C)` of the cells of maps `(N, C, H, W)`, or `(N, C, L)`, in which places lie."""
    sides = maps.shape[2:]
    if len(sides) > places.shape[-1]:
        raise ValueError(
            f"labels are maps of rows and columns, and feature maps {tuple(maps.shape)} have {len(sides)} axes: "
            "labels of each voxel, or of a clip's pixels, are not probed"
        )
    places = places[..., -len(sides) :]  # along a signal, whose labels are maps of one row
    size = torch.tensor(sides, dtype=places.dtype, device=places.device)
    cells = (places * size).long().minimum(size.long() - 1).to(maps.device)
    images = torch.arange(len(maps), device=maps.device)[:, None]
    index: tuple[Any, ...] = (images, slice(None), *cells.unbind(-1))
    return maps[index].flatten(0, 1)


def _grid(shape: tuple[int, ...], pool: int | None) -> tuple[int, ...]:
    """The finest grid of cells with nearly equal sides with at most `pool` features, or that of the maps."""
    channels, *sides = shape
    if pool is None or math.prod(shape) <= pool:
        return tuple(sides)
    cells, grid = max(pool // channels, 1), []
    for axis, side in enumerate(sides):
        left = len(sides) - axis
        ideal = (cells * side**left / math.prod(sides[axis:])) ** (1 / left)
        grid.append(min(side, cells, max(1, math.floor(ideal + 1e-9))))
        cells = max(1, cells // grid[-1])
    return tuple(grid)
