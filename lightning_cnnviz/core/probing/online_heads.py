"""Online probes of each of a network's heads: one set for each that has labels of its own in the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import GivenBatch, rows_of
from lightning_cnnviz.core.network.classification import run_network
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.task import named_scores
from lightning_cnnviz.core.probing.dataset import NO_LABELS
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores
from lightning_cnnviz.core.probing.online_passes import OnlineLearner, OnlineTest
from lightning_cnnviz.core.probing.targets import probe_targets

__all__ = ["HeadTests", "OnlineHeads", "Targets"]

Targets = Mapping[str, "Tensor | None"]
"""What `probe_targets` made of the labels of each head; under an empty name those of a network of one head."""


class OnlineHeads:
    """Lets online probes learn for each head that has labels under its name; for one head where there are not several.

        heads.find_names(network, image)
        targets = heads.targets(labels, batch)
        with heads.batch(images, targets):
            network(images)

    Which heads have labels is settled by the first batch.

    Args:
        make_reader: Makes what reads features; one for each head.
        learned: Probes to go on with, by head.
    """

    def __init__(self, make_reader: Callable[[], MapReader], learned: Mapping[str, OnlineProbes] | None = None) -> None:
        self._make_reader = make_reader
        self._names: list[str] | None = None
        self._readers: dict[str, MapReader] = {}
        self._learners: dict[str, OnlineLearner] = {}
        self.learned = learned or {}

    @property
    def learned(self) -> dict[str, OnlineProbes]:
        """The probes that have learned something, by head."""
        return {name: learner.probes for name, learner in self._learners.items() if learner.probes is not None}

    @learned.setter
    def learned(self, learned: Mapping[str, OnlineProbes]) -> None:
        self._learners = {name: self._learner(name, probes) for name, probes in learned.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything there is to go on from, on the CPU."""
        return {name: probes.state_dict() for name, probes in self.learned.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the probes whose `state_dict` this is; earlier versions had that of one head."""
        states = {"": state} if "dimensions" in state else state
        self.learned = {name: OnlineProbes.from_state_dict(each) for name, each in states.items()}

    def find_names(self, network: nn.Module, image: Tensor) -> None:
        """Find the names of a network's heads, once; it is left as it was.

        Args:
            network: The network.
            image: `(1, C, H, W)`, on its device.
        """
        if self._names is None:
            with analysis_mode(network), rows_of(network, 0):
                self._names = named_scores(run_network(network, image))

    def targets(self, labels: Tensor | None, batch: GivenBatch) -> Targets:
        """Return what there is to learn from a batch.

        Args:
            labels: As `read_batch` finds them, for a network of one head.
            batch: The batch.
        """
        if self._learners:
            return {name: probe_targets(batch.labels_of(name) if name else labels) for name in self._learners}
        names = self._names or []
        named = {name: probe_targets(batch.labels_of(name)) for name in names if len(names) > 1}
        there = {name: found for name, found in named.items() if found is not None}
        return there or {"": probe_targets(labels)}

    def first_targets(self, network: nn.Module, images: Tensor, labels: Tensor | None, batch: Any) -> Targets | None:
        """Return what there is to learn from a batch of training, finding the heads first; None where nothing is.

        Args:
            network: The network.
            images: `(N, C, H, W)`, on its device.
            labels: See `targets`.
            batch: The batch, as the loader gives it.
        """
        if len(images):
            self.find_names(network, images[:1])
        targets = self.targets(labels, GivenBatch(batch=batch, path=(), count=len(images)))
        return None if "" in targets and targets[""] is None else targets

    @contextmanager
    def batch(self, images: Tensor, targets: Targets) -> Iterator[None]:
        """Learn from the forward pass that is made inside; see `OnlineLearner.batch`.

        Raises:
            ValueError: A head has no labels; or see `OnlineLearner.batch`.
        """
        with ExitStack() as stack:
            for name, found in targets.items():
                learner = self._learners.setdefault(name, self._learner(name, None))
                stack.enter_context(learner.batch(images, _there(name, found)))
            yield

    def average(self) -> None:
        """Make the probes of all ranks their mean; every rank must call it."""
        for _, probes in sorted(self.learned.items()):
            probes.average()

    def test(self) -> HeadTests:
        """Begin to test the probes with no image."""
        return HeadTests({name: self._test(name, probes) for name, probes in self.learned.items()}, self._test)

    def _learner(self, name: str, probes: OnlineProbes | None) -> OnlineLearner:
        return OnlineLearner(self._reader(name), probes)

    def _test(self, name: str, probes: OnlineProbes | None = None) -> OnlineTest:
        return OnlineTest(self._reader(name), probes)

    def _reader(self, name: str) -> MapReader:
        if name not in self._readers:
            self._readers[name] = self._make_reader()
        return self._readers[name]


class HeadTests:
    """Tests the probes of each head, batch by batch, in passes that somebody else makes; see `OnlineTest`.

    Args:
        tests: By head; those of heads that have learned nothing yet are made as they come.
        make: Makes one, of a head's name.
    """

    def __init__(self, tests: dict[str, OnlineTest], make: Callable[[str], OnlineTest]) -> None:
        self._tests, self._make = tests, make

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Any) -> Iterator[None]:
        """Test the probes on the forward pass that is made inside.

        Args:
            images: `(N, C, H, W)` on the network's device.
            indices: `(N,)` int64.
            labels: Of each head, see `Targets`.

        Raises:
            ValueError: See `OnlineTest.batch`.
        """
        with ExitStack() as stack:
            for name, found in labels.items():
                if name not in self._tests:
                    self._tests[name] = self._make(name)
                stack.enter_context(self._tests[name].batch(images, indices, _there(name, found)))
            yield

    def merge(self) -> None:
        """Bring the ranks together, each of which calls this."""
        for _, test in sorted(self._tests.items()):
            test.merge()

    def compute(self) -> OnlineScores | ByHead:
        """Return the measure over all images, of each head where there are several; see `OnlineTest.compute`."""
        if list(self._tests) in ([""], []):
            return (self._tests.get("") or self._make("")).compute()
        results = tuple(test.compute() for test in self._tests.values())
        return ByHead(names=tuple(self._tests), results=results)


def _there(name: str, found: Tensor | None) -> Tensor:
    if found is None:
        raise ValueError(f"{NO_LABELS}; there are none of the head '{name}' in this batch" if name else NO_LABELS)
    return found
