"""The probes of a network's heads: a plan for each that has labels of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.layers import SelectedLayer
from lightning_cnnviz.core.probing.features import Features
from lightning_cnnviz.core.probing.head_labels import labels_by_head
from lightning_cnnviz.core.probing.plan import FeatureSets, ProbePlan
from lightning_cnnviz.core.probing.probe import LayerProbe
from lightning_cnnviz.core.probing.protocols import Protocol

__all__ = ["HeadPlans"]


class HeadPlans:
    """Says which images are read for which head, and fits its probes; see `ProbePlan` and `labels_by_head`.

    Args:
        network: See `ProbePlan`, as for all others.
        layers: From `select_layers`.
        protocol: How probes are fitted and tested.
        loaders: One to learn from, and one to test on or None.
        batch_fn: See `read_batch`.
        options: `pool`, `limit` and `seed` of each plan.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[SelectedLayer],
        protocol: Protocol,
        loaders: Sequence[Any],
        *,
        batch_fn: BatchFn | None = None,
        **options: Any,
    ) -> None:
        self._seed = options.get("seed", 0)
        self._plans = {
            head: ProbePlan(network, layers, protocol, *loaders, batch_fn=read, **options)
            for head, read in labels_by_head(network, loaders[0], batch_fn)
        }
        self._controls: dict[str, LayerProbe] = {}

    @property
    def alone(self) -> ProbePlan | None:
        """The plan of a network of one head."""
        return self._plans.get("")

    def split_manifests(self) -> dict[str, dict[str, Any] | None]:
        """Return for each head which images its splits have; see `ProbePlan`."""
        return {head: plan.split_manifest() for head, plan in self._plans.items()}

    def read(
        self,
        network: nn.Module,
        *,
        given: tuple[Any, Features] | None = None,
        control: bool = False,
        part: tuple[int, int] = (0, 1),
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> list[list[FeatureSets]]:
        """Return the features for each head: the network's and, where asked for, those of its random control.

        Args:
            network: The network, or one that is built the same.
            given: See `ProbePlan.read`.
            control: Whether to read a copy with random weights, too.
            part: `(rank, ranks)`.
            progress: Wraps the iterable of batches to show progress.
        """
        heads = []
        for plan in self._plans.values():
            sets = [plan.read(network, given=given, part=part, progress=progress)]
            if control:
                sets.append(plan.read_control(network, sets[0], seed=self._seed, part=part, progress=progress))
            heads.append(sets)
        return heads

    def fit(self, parts: Sequence[list[list[FeatureSets]]]) -> LayerProbe | ByHead:
        """Fit probes on what the ranks have read; a control that was once read stays."""
        results = []
        for (head, plan), *sets in zip(self._plans.items(), *parts, strict=True):
            probes = [plan.fit(each) for each in zip(*sets, strict=True)]
            if len(probes) > 1:
                self._controls[head] = probes[1]
            control = self._controls.get(head)
            results.append(replace(probes[0], control=None if control is None else control.scores))
        return results[0] if self.alone is not None else ByHead(names=tuple(self._plans), results=tuple(results))
