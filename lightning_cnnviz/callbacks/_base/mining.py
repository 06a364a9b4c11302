"""What monitors that mine top-k patches have in common: one mining for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.passes import PassMonitor, PassOptions
from lightning_cnnviz.core.network.layers import FeatureSpec, SelectedLayer
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import TopPatches

__all__ = ["MiningMonitor"]


class MiningMonitor(PassMonitor):
    """Mines top-k patches from forward passes; several on one trainer, looking at the same times, mine once.

    Args:
        k: Number of units of each feature map.
        features: Feature maps that are shown.
        per_image: Number of units of one feature map that may come from one image; None for any number.
        options: See `PassMonitor`.
    """

    needs_whole_images = False

    def __init__(self, k: int, features: FeatureSpec, per_image: int | None, **options: Unpack[PassOptions]) -> None:
        super().__init__(**options)
        self.k, self.features, self.per_image = k, features, per_image
        self._network: nn.Module | None = None
        self._chosen: list[SelectedLayer] = []
        self._mining: SharedMining | None = None
        self._others: Sequence[Any] = ()

    def mine(self, network: nn.Module, layers: list[SelectedLayer]) -> None:
        """Say at set-up which layers are mined.

        Raises:
            ValueError: k, per_image or features are out of range.
        """
        self._network, self._chosen, self._mining = network, layers, None
        SharedMining([self])  # refuses wrong numbers before anything runs

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """As every monitor, and see who else is there."""
        super().setup(trainer, pl_module, stage)
        self._others = trainer.callbacks

    def start_look(self) -> None:
        """Start with empty lists."""
        if self._mining is None:
            group = self._together()
            shared = SharedMining(group)
            for member in group:
                member._mining = shared
        self.mining.begin(self)

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """Let the hooks know what comes."""
        self.mining.start_batch(images, indices, labels)

    def end_batch(self) -> None:
        """Rank what the hooks have seen."""
        self.mining.end_batch()

    def stop_look(self) -> None:
        """Remove the hooks, unless others still look."""
        if self._mining is not None:
            self._mining.stop(self)

    def finish_look(self, indices_known: bool) -> Any:
        """Merge the ranks."""
        return self.found(indices_known)

    def found(self, indices_known: bool) -> TopPatches:
        """Return the own part of what was mined."""
        names = [layer.name for layer in self._chosen]
        return self.mining.compute(indices_known).narrowed(names, self.k, self.features)

    @property
    def mining(self) -> SharedMining:
        """The mining that this monitor takes part in, once it looks."""
        assert self._mining is not None, "no look has begun"
        return self._mining

    def _together(self) -> list[MiningMonitor]:
        """This monitor and those that can share its mining."""
        group = [self]
        for other in self._others:
            if isinstance(other, MiningMonitor) and other not in group and other._mining is None:
                literal = {layer.name: layer.literal for member in group for layer in member._chosen}
                alike = all(literal.get(layer.name, layer.literal) == layer.literal for layer in other._chosen)
                if alike and _terms(other) is not None and _terms(other) == _terms(self):
                    group.append(other)
        return group


def _terms(monitor: MiningMonitor) -> tuple[Any, ...] | None:
    """What must be equal for two monitors to mine together; None where one makes passes of its own."""
    if monitor.data is not None or monitor.epochs == "last" or monitor._network is None:
        return None
    chosen = monitor.features
    kind = None if chosen is None or isinstance(chosen, int) else repr(chosen)
    when = (monitor.every_n_epochs, monitor.epochs, monitor.dataloader_idx)
    return (*when, monitor._network, monitor.batch_fn, monitor.per_image, kind)


class SharedMining:
    """One mining for several monitors; each says what it does, and the first to say so does it for all.

    Args:
        members: The monitors, of which `_terms` are equal.
    """

    def __init__(self, members: Sequence[MiningMonitor]) -> None:
        self._members = members
        self._looking: set[int] = set()
        self._forget()

    def _forget(self) -> None:
        self._miner = _miner(self._members[0])
        for member in self._members[1:]:
            self._miner.absorb(_miner(member))
        self._batch: ExitStack | None = None
        self._failure: Exception | None = None
        self._result: TopPatches | None = None

    @property
    def images(self) -> Mapping[int, Tensor]:
        """See `PatchMiner.images`."""
        return self._miner.images

    def begin(self, member: MiningMonitor) -> None:
        """A member begins a look."""
        if not self._looking:
            self._drop_batch()
            self._forget()
        self._looking.add(id(member))

    def stop(self, member: MiningMonitor) -> None:
        """A member needs nothing more of this look."""
        self._looking.discard(id(member))
        if not self._looking:
            self._drop_batch()
            self._forget()

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """Enter `PatchMiner.batch`."""
        if self._batch is None:
            batch = self._batch = ExitStack()
            self._once(lambda: batch.enter_context(self._miner.batch(images, indices, labels)))

    def end_batch(self) -> None:
        """Leave it."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self._once(batch.close)
        elif self._failure is not None:
            raise self._failure

    def compute(self, indices_known: bool) -> TopPatches:
        """See `PatchMiner.compute`."""
        if self._result is None:
            self._miner.indices_known = indices_known
            self._miner.merge()
            self._result = self._miner.compute()
        return self._result

    def _drop_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            stop = GeneratorExit()
            with suppress(GeneratorExit):
                batch.__exit__(type(stop), stop, None)

    def _once(self, step: Callable[[], Any]) -> None:
        """A failure is every member's."""
        if self._failure is not None:
            raise self._failure
        try:
            step()
        except Exception as error:
            self._failure = error
            raise


def _miner(member: MiningMonitor) -> PatchMiner:
    assert member._network is not None
    return PatchMiner(
        member._network,
        member._chosen,
        k=member.k,
        features=member.features,
        per_image=member.per_image,
        whole_images=member.needs_whole_images,
    )
