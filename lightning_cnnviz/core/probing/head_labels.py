"""Labels of several heads: under which names a loader's batches have what a network's heads are to say."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, indexed_batches, read_batch
from lightning_cnnviz.core.network.calling import GivenBatch, give, rows_of
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import image_axes
from lightning_cnnviz.core.network.task import named_scores
from lightning_cnnviz.core.probing.targets import probe_targets

__all__ = ["labels_by_head"]


def labels_by_head(
    network: nn.Module, loader: Iterable[Any], batch_fn: BatchFn | None = None
) -> list[tuple[str, BatchFn | None]]:
    """Return the heads of a network that have labels of their own, each with what reads images and these.

    One without a name, that reads a batch's labels as `read_batch` does, where the network's output is no mapping of
    several scores, or a batch has nothing under their names.

    Args:
        network: The network; it is left as it was.
        loader: Its first batch is looked at.
        batch_fn: See `read_batch`.

    Example:
        >>> import torch
        >>> class Two(nn.Module):
        ...     def forward(self, images):
        ...         return {"species": images.mean((2, 3)), "sex": images.amax((2, 3))}
        >>> batch = {"image": torch.rand(2, 3, 4, 4), "species": torch.tensor([0, 2]), "sex": torch.tensor([1, 0])}
        >>> [name for name, _ in labels_by_head(Two(), [batch])]
        ['species', 'sex']
    """
    parameter, axes = next(network.parameters(), None), {2, image_axes(network)}
    with analysis_mode(network):
        # Not of the loader itself: its workers may be kept, with the order that training is to have.
        with closing(indexed_batches(loader)) as batches:
            batch, _ = next(batches, (None, None))
        if batch is None:
            return [("", batch_fn)]
        images, _ = read_batch(batch, batch_fn, axes=axes)
        if not len(images):
            return [("", batch_fn)]
        give(network, batch, images)
        image = images[:1] if parameter is None else images[:1].to(parameter.device)
        if parameter is not None and image.is_floating_point():
            image = image.to(parameter.dtype)
        with rows_of(network, 0):
            names = named_scores(network(image.clone()))
    named = [name for name in names if _labels_under(name, batch, images) is not None]
    if len(names) < 2 or not named:
        return [("", batch_fn)]
    return [(name, partial(_read_under, name, batch_fn, axes)) for name in named]


def _read_under(name: str, batch_fn: BatchFn | None, axes: set[int], batch: Any) -> tuple[Tensor, Tensor | None]:
    images, _ = read_batch(batch, batch_fn, axes=axes)
    return images, _labels_under(name, batch, images)


def _labels_under(name: str, batch: Any, images: Tensor) -> Tensor | None:
    labels = GivenBatch(batch=batch, path=(), count=len(images)).labels_of(name)
    return None if probe_targets(labels) is None else labels
