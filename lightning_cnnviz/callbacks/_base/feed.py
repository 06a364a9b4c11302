"""One feed a trainer: it reads the passes over validation's, test's or a given loader's images for all subscribers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from lightning_cnnviz.callbacks._base.cost import Costs, wait_for_device
from lightning_cnnviz.callbacks._base.following import FollowedStep, parts_of_step
from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.subscriber import Subscriber, agree, for_all, is_due
from lightning_cnnviz.callbacks._base.trainer import (
    batch_limit,
    chosen_loader,
    data_loaders,
    defines_forward,
    find_network,
    is_compiled,
    validated_weights,
)
from lightning_cnnviz.core.data.batches import BatchFn, indexed_batches, read_batch
from lightning_cnnviz.core.network.calling import CalledNetwork, ForwardFn, GivenBatch, called, give, rows_of
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.record.identity import NetworkIdentity

__all__ = ["Feed"]


class Feed:
    """Reads for all subscribers of one trainer.

    Args:
        lead: The monitor that passes the trainer's calls on, for all of them.

    Attributes:
        rear: The last of the trainer's monitors: when it is called, all others have been.
        first_step: The trainer's global step when this fit began.
        costs: What each of the trainer's monitors costs.
        network_seen: When the network was last identified, and as what.
    """

    def __init__(self, lead: Any) -> None:
        self.lead = self.rear = lead
        self.first_step = 0
        self.costs = Costs()
        self.subscribers: list[Subscriber] = []
        self.network_seen: tuple[Any, NetworkIdentity] | None = None
        self._tried: set[Subscriber] = set()
        self._called: dict[tuple[int, ForwardFn | None], CalledNetwork] = {}
        self._looks: list[tuple[int, BatchFn | None, Look]] = []

    def network_of(self, who: str, pl_module: Any, model: str | None, forward_fn: ForwardFn | None) -> nn.Module:
        """Return the network that is looked at, as it is used: one and the same for all who look at it in one way.

        Raises:
            ValueError: See `find_network`.
        """
        parts = parts_of_step(pl_module) if model is None and not defines_forward(pl_module) else []
        # Several children that a step puts together are all of the network.
        network = pl_module if parts else find_network(who, pl_module, model)
        if forward_fn is None and not parts:
            return network
        key = (id(network), forward_fn)
        if key not in self._called:
            self._called[key] = called(network, forward_fn or FollowedStep(parts))
        return self._called[key]

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a look, where one is due, at the passes that validation (or test) is about to make."""
        self.abandon()
        members = [member for member in self.subscribers if not _needs_passes(trainer, member)]
        wanted = [member for member in members if is_due(member, member.due, trainer)]
        raises = _may_raise(trainer)
        begun: list[tuple[int, BatchFn | None, Look]] = []
        for key in dict.fromkeys((member.dataloader_idx, member.batch_fn) for member in wanted):
            members = [member for member in wanted if (member.dataloader_idx, member.batch_fn) == key]
            begin = partial(self._begun, trainer, pl_module, members, key[0], raises)
            look = for_all(members, begin, raises=raises, meeting="the start of a look")
            if look is not None:
                begun.append((*key, look))
        self._looks = begun  # all of them at once: every rank has the same ones

    def _begun(
        self, trainer: Any, pl_module: Any, members: Sequence[Subscriber], dataloader_idx: int, raises: bool
    ) -> Look:
        loader = chosen_loader(data_loaders(trainer), dataloader_idx)
        networks = {member: member.network_of(pl_module) for member in members}
        ranks = (trainer.global_rank, trainer.world_size)
        look = Look(trainer, networks, loader, ranks, self._tried, self.costs)
        look.start(raises=raises)
        return look

    def start_batch(self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Announce a batch."""
        for index, batch_fn, look in self._looks:
            if index == dataloader_idx and look.goes_on:
                look.start_batch(batch, batch_fn, raises=batch_idx == 0 and _may_raise(trainer))

    def end_batch(self, trainer: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Take what the batch's pass has shown."""
        for index, _, look in self._looks:
            if index == dataloader_idx:
                look.end_pass(raises=batch_idx == 0 and _may_raise(trainer))

    def end(self, trainer: Any) -> None:
        """Finish the looks that are open; what was seen in a sanity check is forgotten."""
        looks, self._looks = self._looks, []
        for _, _, look in looks:
            if trainer.sanity_checking:
                look.abandon()
            else:
                wait_for_device(trainer)
                with validated_weights(trainer):
                    for_all(look.subscribers, look.finish, raises=False, meeting="the end of a look")

    def abandon(self) -> None:
        """Forget the looks that are open, and leave no hook behind."""
        looks, self._looks = self._looks, []
        for _, _, look in looks:
            look.abandon()

    def try_data(self, trainer: Any, pl_module: Any) -> None:
        """Read the first batch of the subscribers' own loaders."""
        self.read(trainer, pl_module, self._with_passes_of_their_own(trainer), dry_run=True)

    def read_data(self, trainer: Any, pl_module: Any) -> None:
        """Look at the subscribers' own loaders, where a look is due."""
        members = self._with_passes_of_their_own(trainer)
        self.read(trainer, pl_module, [each for each in members if is_due(each, each.due, trainer)])

    def _with_passes_of_their_own(self, trainer: Any) -> list[Subscriber]:
        return [each for each in self.subscribers if _needs_passes(trainer, each)]

    def read_last(self, trainer: Any, pl_module: Any) -> None:
        """Look at the trained network, for those whose newest look is not at that."""
        self.read(trainer, pl_module, [each for each in self.subscribers if is_due(each, each.due_at_end, trainer)])

    def read(self, trainer: Any, pl_module: Any, members: Sequence[Subscriber], *, dry_run: bool = False) -> None:
        """Make passes of our own: over the subscribers' own loaders, or those of validation; equal ones once.

        Of validation's loaders, as many batches are read as validation itself reads.

        Args:
            trainer: The trainer.
            pl_module: Its LightningModule.
            members: Who looks.
            dry_run: Only over the first batch, to see whether it could be done.
        """
        if not members:
            return
        raises = dry_run or trainer.state.fn != "fit"
        for_all(members, partial(agree, members), raises=raises, meeting="passes of our own")
        passes: dict[tuple[int, int, BatchFn | None, int | None], tuple[Any, dict[Subscriber, nn.Module]]] = {}
        for member in members:
            if not member.failed:
                find = partial(_own_passes, trainer, pl_module, member)
                found = for_all([member], find, raises=raises, meeting="finding the data")
                if found is not None:
                    loader, network, limit = found
                    key = (id(loader), id(network), member.batch_fn, limit)
                    passes.setdefault(key, (loader, {}))[1][member] = network
        for (_, _, batch_fn, limit), (loader, networks) in passes.items():
            make = partial(self._make_passes, trainer, loader, networks, batch_fn, limit, raises, dry_run)
            with validated_weights(trainer):
                for_all(list(networks), make, raises=raises, meeting="passes of our own")

    def _make_passes(
        self,
        trainer: Any,
        loader: Any,
        networks: dict[Subscriber, nn.Module],
        batch_fn: BatchFn | None,
        limit: int | None,
        raises: bool,
        dry_run: bool,
    ) -> None:
        # Ranks share each batch, unless the loader gives each of them images of its own.
        distributed = isinstance(getattr(loader, "sampler", None), torch.utils.data.DistributedSampler)
        ranks = (0, 1) if distributed else (trainer.global_rank, trainer.world_size)
        look = Look(trainer, networks, loader, ranks, self._tried, self.costs)
        wait_for_device(trainer)
        try:
            look.start(raises=raises)
            with self.costs.charge([each.payer for each in look.subscribers if not each.failed]):
                read = partial(_read, look, batch_fn, ranks, limit, raises, dry_run)
                for_all(look.subscribers, read, raises=raises)
        finally:
            look.abandon()
        if not dry_run:
            look.finish()


def _needs_passes(trainer: Any, member: Subscriber) -> bool:
    """Whether passes are made for a subscriber: over a loader of its own, or since validation's run compiled code."""
    if member.data is not None:
        return True
    with member.guard():
        return not (member.failed or member.only_along) and is_compiled(
            trainer, member.network_of(trainer.lightning_module)
        )
    return False


def _may_raise(trainer: Any) -> bool:
    """Whether a failure may stop the run: training has not begun, or there is none."""
    return bool(trainer.sanity_checking or trainer.state.fn != "fit")


def _own_passes(trainer: Any, pl_module: Any, member: Subscriber) -> tuple[Any, nn.Module, int | None]:
    """The loader that a subscriber looks at in passes of our own, its network, and how many batches are read."""
    network = member.network_of(pl_module)
    if member.data is not None:
        return member.data, network, None
    loader = chosen_loader(data_loaders(trainer), member.dataloader_idx)
    return loader, network, batch_limit(trainer, member.dataloader_idx)


def _read(
    look: Look, batch_fn: BatchFn | None, ranks: tuple[int, int], limit: int | None, raises: bool, dry_run: bool
) -> None:
    """Run the network over a loader's images, on each rank over a part of every batch."""
    trainer, network, (rank, world_size) = look.trainer, look.network, ranks
    progress = look.subscribers[0].progress
    arrived = 0
    with analysis_mode(network), closing(indexed_batches(look.loader)) as batches:
        for batch, indices in progress(islice(batches, limit)) if look.goes_on else ():
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            images, labels = read_batch(batch, batch_fn, axes=look.axes)
            look.note_order(known=indices is not None or isinstance(look.loader, (list, tuple)))
            if indices is None:
                indices = torch.arange(arrived, arrived + len(images))
            before, arrived = arrived, arrived + len(images)
            if len(images) == 0:
                continue
            # By index, since ranks may shuffle differently. A rank without images repeats one, which then counts once.
            own = (indices % world_size == rank).nonzero().flatten()
            own = own if len(own) else torch.zeros(1, dtype=torch.int64)
            give(network, batch, images)
            images, labels = images[own], None if labels is None else labels[own]
            with rows_of(network, own):
                given = GivenBatch(batch=batch, path=(), count=arrived - before).part(own)
                look.start_pass(images, indices[own], labels, given, raises=raises)
                with trainer.precision_plugin.forward_context():
                    network(images)
            look.end_pass(raises=raises)
            if dry_run or not look.goes_on:
                break
    if arrived == 0 and look.goes_on:
        raise ValueError(f"data={type(look.loader).__name__} is empty: it gave no image")
