"""Features from the forward passes that validation makes anyway, so that none need be made for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, IndexReader, read_batch
from lightning_cnnviz.core.network.layers import SelectedLayer
from lightning_cnnviz.core.network.weights import weights_fingerprint
from lightning_cnnviz.core.probing.dataset import drawn_images
from lightning_cnnviz.core.probing.features import Features
from lightning_cnnviz.core.probing.tap import FeatureTap

__all__ = ["ValidationTap"]

log = logging.getLogger(__name__)


class ValidationTap:
    """Reads features of some images of a data set while a validation runs; never disturbs it.

    Where the passes do not serve (a loader that does not tell its order, a network that is called otherwise, a
    validation that ends early, or one in the middle of an epoch or with averaged weights), there are no features, and
    the caller reads them in a pass of its own.

    Args:
        network: The network.
        layers: Its chosen layers.
        loader: The validation's.
        pool: See `core.probing.tap.tap_features`.
        limit: Likewise.
        indices: Likewise.
        seed: Likewise.
        batch_fn: Likewise.
        share: This rank, and the number of ranks.

    Attributes:
        loader: As given.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[SelectedLayer],
        loader: Any,
        *,
        pool: int | None,
        limit: int | None,
        indices: Tensor | None,
        seed: int,
        batch_fn: BatchFn | None,
        share: tuple[int, int],
    ) -> None:
        self.loader = loader
        self._network, self._mark = network, torch.empty(0)
        self._batch_fn = batch_fn
        self._reader = IndexReader(loader, *share)
        self._serves = self._reader.known and hasattr(loader, "dataset")
        self._seen = self._expected = 0
        self._hooks = ExitStack()
        wanted = None
        if self._serves:
            wanted = drawn_images(len(loader.dataset), limit, seed) if indices is None else indices
            self._expected = len(loader)
        self._tap = FeatureTap(network, layers, wanted=wanted, pool=pool)

    def start_batch(self, batch: Any) -> None:
        """Get ready for the pass over a batch, which is on the network's device."""

        def start() -> None:
            images, labels = read_batch(batch, self._batch_fn)
            indices = self._reader.take(len(images))
            if not self._reader.known or labels is None:
                raise ValueError("images without known indices and labels")
            self._hooks.enter_context(self._tap.batch(images, indices, labels))

        self._try(start)

    def end_batch(self) -> None:
        """Take what the pass has shown."""
        self._try(self._end_batch)

    def close(self) -> None:
        """Remove the hooks."""
        given_up = RuntimeError("the batch is given up")
        self._hooks.__exit__(RuntimeError, given_up, None)  # so that nothing is taken of a pass that was not made

    def features(self) -> Features | None:
        """Return this rank's features; None where the passes did not serve, or were of other weights than now."""
        self.close()
        if not self._serves or self._seen != self._expected:
            return None
        if not torch.equal(self._mark, weights_fingerprint(self._network)):
            return None
        return self._tap.compute()

    def _end_batch(self) -> None:
        self._hooks.close()
        self._seen += 1
        if self._seen == self._expected:
            self._mark = weights_fingerprint(self._network)

    def _try(self, work: Callable[[], None]) -> None:
        if not self._serves:
            return
        try:
            work()
        except Exception:
            log.debug("validation's passes do not serve for features: there will be one more", exc_info=True)
            self._serves = False
            self.close()
