"""One pass over a set of images, for all who look at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.callbacks._base.cost import Costs
from lightning_cnnviz.callbacks._base.subscriber import RunningComputation, Subscriber, agree, for_all
from lightning_cnnviz.callbacks._base.trainer import mixed_precision
from lightning_cnnviz.core.data.batches import BatchFn, IndexReader, read_batch
from lightning_cnnviz.core.data.distributed import summed
from lightning_cnnviz.core.network.calling import GivenBatch, give
from lightning_cnnviz.core.network.hooks import hooks_within
from lightning_cnnviz.core.network.layers import image_axes

__all__ = ["Look"]


class _Run:
    """One running computation, and the subscribers that it computes for."""

    def __init__(self, computation: RunningComputation, owner: Subscriber, costs: Costs) -> None:
        self.computation, self.owners, self._costs = computation, [owner], costs
        self._batch: ExitStack | None = None

    def absorbs(self, other: RunningComputation) -> bool:
        absorb = getattr(self.computation, "absorb", None)
        return absorb is not None and absorb(other)

    def charged(self) -> AbstractContextManager[None]:
        """Charge what is done inside to the owners."""
        return self._costs.charge([owner.payer for owner in self.owners])

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None, batch: GivenBatch) -> None:
        with self.charged(), hooks_within(self.charged), ExitStack() as stack:
            stack.enter_context(self.computation.batch(images, indices, self.owners[0].labels_of(labels, batch)))
            self._batch = stack.pop_all()

    def end_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            with self.charged():
                batch.close()

    def drop_batch(self) -> None:
        """Take the hooks away from a pass that did not come to its end."""
        batch, self._batch = self._batch, None
        if batch is not None:
            stop = GeneratorExit("the pass did not end")
            with suppress(GeneratorExit, Exception):
                batch.__exit__(type(stop), stop, None)


class Look:
    """One pass over a set of images, from its start to its end.

    Args:
        trainer: The trainer.
        network: The network, by subscriber.
        loader: What gives the images.
        ranks: This rank and the number of ranks among which the loader's images are distributed.
        tried: The subscribers that have tried an image in this run.
        costs: To whom its parts are charged.

    Attributes:
        loader: As given.
        images: How many images were looked at, on all ranks once it is finished.
    """

    def __init__(
        self,
        trainer: Any,
        networks: dict[Subscriber, nn.Module],
        loader: Any,
        ranks: tuple[int, int],
        tried: set[Subscriber],
        costs: Costs,
    ) -> None:
        self.trainer, self.loader = trainer, loader
        self._networks, self._tried, self._costs = networks, tried, costs
        self._reader = IndexReader(loader, *ranks)
        self._runs: list[_Run] = []
        self.images = 0

    @property
    def subscribers(self) -> list[Subscriber]:
        """Those for whom it is taken, also where they have failed since."""
        return list(self._networks)

    @property
    def network(self) -> nn.Module:
        """The network; of the first subscriber, where they look at several."""
        return next(iter(self._networks.values()))

    @property
    def goes_on(self) -> bool:
        """Whether anyone still looks."""
        return any(not subscriber.failed for subscriber in self.subscribers)

    @property
    def axes(self) -> set[int]:
        """How many axes of space images may have: 2, and as many as the networks take, which refuse the others."""
        return {2, *(image_axes(network) for network in self._networks.values())}

    @property
    def dataset(self) -> Any:
        """The data set that the images are from, where there is one."""
        return getattr(self.loader, "dataset", None)

    @property
    def indices_known(self) -> bool:
        """Whether images are numbered as in the data set; else as they arrived."""
        return self._reader.indices_known

    def start(self, *, raises: bool) -> None:
        """Make the running computations. Ranks agree who looks, also before computations are put together."""
        agree(self.subscribers)
        made: dict[Subscriber, RunningComputation] = {}
        for subscriber, network in self._networks.items():
            if not subscriber.failed:
                with self._costs.charge([subscriber.payer]):
                    begin = partial(subscriber.running, network, self)
                    computation = for_all([subscriber], begin, raises=raises, meeting="the start of a look")
                if computation is not None:
                    made[subscriber] = computation
        for_all(list(made), partial(self._put_together, made), raises=raises, meeting="putting looks together")

    def _put_together(self, made: dict[Subscriber, RunningComputation]) -> None:
        """One run for each computation that no other takes over."""
        for subscriber, computation in made.items():
            run = next((run for run in self._runs if run.absorbs(computation)), None)
            if run is None:
                self._runs.append(_Run(computation, subscriber, self._costs))
            else:
                run.owners.append(subscriber)

    def start_batch(self, batch: Any, batch_fn: BatchFn | None, *, raises: bool) -> None:
        """Get ready for the network's pass over a batch of the loader."""

        def start() -> None:
            images, labels = read_batch(batch, batch_fn, axes=self.axes)
            if len(images):
                for network in self._networks.values():
                    give(network, batch, images)
                given = GivenBatch(batch=batch, path=(), count=len(images))
                self.start_pass(images, self._reader.take(len(images)), labels, given, raises=raises)

        for_all(self.subscribers, start, raises=raises)

    def start_pass(
        self, images: Tensor, indices: Tensor, labels: Tensor | None, batch: GivenBatch, *, raises: bool
    ) -> None:
        """Get ready for the network's pass over images, which are all those of a batch."""
        self.images += len(images)
        for subscriber, network in self._networks.items():
            if not subscriber.failed and subscriber not in self._tried:
                with subscriber.guard(raises=raises):
                    subscriber.try_image(network, images[:1])
                self._tried.add(subscriber)
        for run in self._still_running():
            for_all(run.owners, partial(run.start_batch, images, indices, labels, batch), raises=raises)

    def end_pass(self, *, raises: bool) -> None:
        """Take what the pass has shown."""

        def end() -> None:
            for run in self._still_running():
                for_all(run.owners, run.end_batch, raises=raises)

        for_all(self.subscribers, end, raises=raises)

    def note_order(self, *, known: bool) -> None:
        """Note whether indices that did not come from the reader are those of the data set."""
        self._reader.indices_known = known

    def abandon(self) -> None:
        """Leave no hook behind."""
        self._drop_batches()
        self._give_nothing()

    def finish(self) -> None:
        """Merge the ranks, and let each subscriber show its result; every rank must come here.

        From here on a subscriber fails on all ranks or on none.
        """
        self._drop_batches()
        agree(self.subscribers)
        self.images = self._all_images()
        for run in self._runs:
            owners = [owner for owner in run.owners if not owner.failed]
            if owners:
                for_all(owners, partial(self._merge, run), raises=False, meeting="merging ranks")
        for run in self._runs:
            for owner in run.owners:
                if not owner.failed:
                    show = partial(owner.finish, self, run.computation)
                    for_all([owner], show, raises=False, meeting="the end of a look")
        self._give_nothing()

    def _drop_batches(self) -> None:
        for run in self._runs:
            run.drop_batch()

    def _give_nothing(self) -> None:
        """Hold no batch any longer."""
        for network in self._networks.values():
            give(network, None)

    def _merge(self, run: _Run) -> None:
        with run.charged(), mixed_precision(self.trainer):
            run.computation.merge()

    def _all_images(self) -> int:
        """How many images all ranks have had; those that a sampler repeats, so that ranks have as many, count once."""
        seen = int(summed(torch.tensor([self.images])))
        try:
            return min(seen, len(self.dataset)) if self.indices_known else seen
        except TypeError:
            return seen

    def _still_running(self) -> Iterator[_Run]:
        for run in self._runs:
            if all(owner.failed for owner in run.owners):
                run.drop_batch()
            else:
                yield run
