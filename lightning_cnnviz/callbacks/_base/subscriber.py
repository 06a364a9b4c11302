"""What a monitor that looks at forward passes says to the feed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from lightning_cnnviz.core.data.batches import BatchFn, class_labels
from lightning_cnnviz.core.data.distributed import agreed, gathered_objects, together
from lightning_cnnviz.core.network.calling import GivenBatch

if TYPE_CHECKING:
    from lightning_cnnviz.callbacks._base.look import Look

__all__ = ["RunningComputation", "Subscriber", "agree", "for_all", "is_due"]


class RunningComputation(Protocol):
    """What is computed from the forward passes of one look; made anew for each, so that nothing of the last is left.

    One that has a method `absorb(other) -> bool` may take over what another would compute: True where it has.
    """

    def batch(self, images: Tensor, indices: Tensor, labels: Any) -> AbstractContextManager[None]:
        """Watch one forward pass over `images (N, C, H, W)`; `indices (N,)` are those of the data set, on the CPU.

        Labels are what `Subscriber.labels_of` returns.
        """

    def merge(self) -> None:
        """Bring the ranks together; every rank calls it."""

    def compute(self) -> Any:
        """Return the result."""


class Subscriber(ABC):
    """What the feed needs to know of a monitor that looks at forward passes.

    Attributes:
        data: A loader to look at in passes of our own; None for the passes that validation and test make.
        dataloader_idx: Which of several validation (or test) loaders is looked at.
        batch_fn: See `read_batch`.
        only_along: Whether it does without passes that cannot be read, instead of having them made for it.
    """

    only_along: bool = False
    data: Any = None
    dataloader_idx: int = 0
    batch_fn: BatchFn | None = None

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether it looks no more."""

    @property
    def failure(self) -> str | None:
        """Why it looks no more; None where that is not known."""
        return None

    @abstractmethod
    def fail(self, reason: str) -> None:
        """Make it look no more."""

    @property
    def payer(self) -> Any:
        """The monitor that is charged with what it costs."""
        return self

    @abstractmethod
    def due(self, trainer: Any) -> bool:
        """Whether a look is due in the epoch that the trainer is in."""

    def due_after(self, trainer: Any) -> bool:
        """Whether a look is due after the optimizer steps since it was last asked; asked after every batch."""
        return False

    def due_at_end(self, trainer: Any) -> bool:
        """Whether the network that training has ended with is still to be looked at."""
        return False

    @abstractmethod
    def guard(self, *, raises: bool = False) -> AbstractContextManager[None]:
        """Turn an exception into a report that it has failed; with `raises`, let it pass as well."""

    @abstractmethod
    def network_of(self, pl_module: Any) -> nn.Module:
        """Return the network that is looked at."""

    @abstractmethod
    def running(self, network: nn.Module, look: Look) -> RunningComputation:
        """Return a new running computation, for one look."""

    @abstractmethod
    def finish(self, look: Look, running: RunningComputation) -> None:
        """Show what a whole look has found; called on every rank, with what has been merged."""

    def try_image(self, network: nn.Module, image: Tensor) -> None:  # noqa: B027 - most have nothing to try
        """Refuse a network that could not be looked at; called once a run, with its first image `(1, C, H, W)`."""

    def labels_of(self, labels: Tensor | None, batch: GivenBatch) -> Any:
        """Return what is handed on of a batch's labels `(N, ...)`: by default classes, see `class_labels`.

        Args:
            labels: As `read_batch` finds them.
            batch: The batch, in which labels of several heads stand under their names.
        """
        return class_labels(labels)

    def progress(self, work: Iterable[Any]) -> Iterable[Any]:
        """Show progress while pieces of work are done."""
        return work


def agree(subscribers: Sequence[Any]) -> None:
    """Let those fail that have failed on another rank; every rank comes here, with the same ones in the same order.

    A rank that has noticed a failure must still go where the others go, until they have agreed.
    """
    well = agreed([not each.failed for each in subscribers])
    if all(well):
        return
    of_ranks = gathered_objects([each.failure for each in subscribers])
    for subscriber, *reasons in zip(subscribers, *of_ranks, strict=True):
        if subscriber.failed or well[subscribers.index(subscriber)]:
            continue
        where = next((f"on rank {rank}: {why}" for rank, why in enumerate(reasons) if why), "on another rank")
        subscriber.fail(f"it failed {where}")


def for_all(owners: Sequence[Any], work: Callable[[], Any], *, raises: bool, meeting: str | None = None) -> Any:
    """Do what several need, and return what it gives; its failure is the failure of each, and gives None.

    Args:
        owners: Who needs it.
        work: Does it.
        raises: See `Subscriber.guard`.
        meeting: What is done, where every rank comes here: then a failure on one rank is one on all, see `together`.
    """
    try:
        with together(meeting) if meeting else nullcontext():
            return work()
    except Exception as error:
        if meeting and not hasattr(error, "_doing"):
            error._doing = meeting  # type: ignore[attr-defined]
        for owner in owners:
            if not owner.failed:
                with owner.guard(raises=raises):
                    raise error
    return None


def is_due(subscriber: Any, asked: Callable[[Any], bool], trainer: Any) -> bool:
    """Ask one of a subscriber's methods whether a look is due; schedules give every rank the same answer."""
    with subscriber.guard():
        return asked(trainer)
    return False
