"""Features that are read in the passes which validation makes anyway, so that none need be made for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.subscriber import Subscriber
from lightning_cnnviz.core.data.distributed import agreed
from lightning_cnnviz.core.network.calling import GivenBatch
from lightning_cnnviz.core.network.weights import weights_fingerprint
from lightning_cnnviz.core.probing.features import Features
from lightning_cnnviz.core.probing.tap import FeatureTap
from lightning_cnnviz.core.probing.targets import probe_targets

if TYPE_CHECKING:
    from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor

__all__ = ["FeaturesAlong"]

log = logging.getLogger(__name__)


class FeaturesAlong(Subscriber):
    """Reads along for one monitor, and never disturbs it or the run.

    Where the passes do not serve (a loader that does not tell its order, a network that is called otherwise, a
    validation that ends early, or one in the middle of an epoch or with averaged weights), there are no features, and
    the monitor reads them in a pass of its own.

    Args:
        monitor: Looks at the end of the epoch.
    """

    only_along = True

    def __init__(self, monitor: LayerProbeMonitor) -> None:
        self._monitor = monitor
        self.dataloader_idx, self.batch_fn = monitor.dataloader_idx, monitor.batch_fn
        self._serves = True
        self._gathered: tuple[Any, Features, Tensor] | None = None

    def features_of(self, network: nn.Module) -> tuple[Any, Features] | None:
        """Return the loader and this rank's features, where the last passes were made with the weights of now."""
        gathered, self._gathered = self._gathered, None
        if gathered is None or not torch.equal(gathered[2], weights_fingerprint(network)):
            return None
        return gathered[0], gathered[1]

    @property
    def failed(self) -> bool:
        """Whether the passes under way do not serve, or the monitor looks no more."""
        return not self._serves or self._monitor.failed

    def fail(self, reason: str) -> None:
        """Do without these passes."""
        self._serves = False

    @property
    def payer(self) -> Any:
        """The monitor."""
        return self._monitor

    def due(self, trainer: Any) -> bool:
        """Whether the monitor looks after these passes."""
        self._serves, self._gathered = True, None
        return self._monitor.data is None and not trainer.sanity_checking and self._monitor.due(trainer)

    @contextmanager
    def guard(self, *, raises: bool = False) -> Iterator[None]:
        """Do without these passes where anything goes wrong: the monitor's own pass will show what it is."""
        try:
            yield
        except Exception:
            log.debug("validation's passes do not serve for features: there will be one more", exc_info=True)
            self._serves = False

    def network_of(self, pl_module: Any) -> nn.Module:
        """As the monitor."""
        return self._monitor.network_of(pl_module)

    def labels_of(self, labels: Tensor | None, batch: GivenBatch) -> Tensor | None:
        """As probes learn them."""
        return probe_targets(labels)

    def running(self, network: nn.Module, look: Look) -> _Reading:
        """Read along from the first batch on."""
        self._monitor.dry_run(network, look.trainer)
        plan = None if self._monitor.plans is None else self._monitor.plans.alone
        # Labels of several heads are read in passes of the monitor's own.
        tap = None if plan is None else plan.tap(network, look.loader)
        if tap is None:
            raise ValueError("passes over this loader cannot be read")
        return _Reading(tap, network, len(look.loader))

    def finish(self, look: Look, running: Any) -> None:
        """Keep the features for the monitor's look, on every rank or on none."""
        if agreed([running.fingerprint is not None and look.indices_known])[0]:
            self._gathered = look.loader, running.compute(), running.fingerprint


class _Reading:
    """Features, with what tells of the weights that the last batch was run with."""

    def __init__(self, tap: FeatureTap, network: nn.Module, batches: int) -> None:
        self._tap, self._network, self._missing = tap, network, batches
        self.fingerprint: Tensor | None = None

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> Iterator[None]:
        with self._tap.batch(images, indices, labels):
            yield
        self._missing -= 1
        if self._missing == 0:
            self.fingerprint = weights_fingerprint(self._network)

    def merge(self) -> None:
        """Each rank's features go to rank zero with its part of the look."""

    def compute(self) -> Features:
        return self._tap.compute()
