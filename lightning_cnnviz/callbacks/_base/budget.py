"""A share of the training time that the looks of several monitors may take."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

from lightning_cnnviz.callbacks._base.cost import Costs
from lightning_cnnviz.core.data.distributed import gathered_objects, rank
from lightning_cnnviz.sinks.outlet import printed_log

__all__ = ["Budget"]


class _Pledge(NamedTuple):
    """A look that was allowed after a step, when so many had been taken; what it will cost, where that is known."""

    step: int
    looks: int
    cost: float | None


class Budget:
    """Puts off looks that would take more than a share of the training time so far.

    What a look will cost is what the dearer of this monitor's newest two has cost: its very first may have loaded
    libraries. Nothing is known of a first look: it is taken while there is anything left, one of them at a time, and
    later looks wait until training has made up for it. Those that have waited longest come first, so that cheap looks
    do not use up what a dear one waits for.

    Args:
        share: Of the training time without looks, above 0 and up to 1.

    Attributes:
        monitors: Those whose looks count.

    Raises:
        ValueError: It is no such share.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"budget={share}: give a share of the training time above 0 and up to 1, as 0.05 for 5 %")
        self.share = share
        self.monitors: list[Any] = []
        self._pledged: dict[Any, _Pledge] = {}
        # Those that were put off, the one that has waited longest first, and the step when they were last.
        self._waiting: dict[Any, int] = {}
        self._told = False

    def start(self) -> None:
        """Begin with a new run."""
        self._pledged.clear()
        self._waiting.clear()
        self._told = False

    def allows(self, monitor: Any, costs: Costs, step: int) -> bool:
        """Say whether a look may be taken now; every rank asks, the first one decides."""
        # One that has failed on one rank is asked about on all: they meet here.
        allowed = bool(gathered_objects(monitor.failed or self._affords(monitor, costs, step))[0])
        if allowed:
            self._waiting.pop(monitor, None)
            looks = len(costs.looks_of(monitor))
            self._pledged[monitor] = _Pledge(step, looks, _expected(monitor, costs))
        elif self._waiting.get(monitor) != step:  # else it was asked again about the same look
            costs.put_off[monitor] += 1
            self._waiting[monitor] = step  # one that waits already keeps its place
            self._say_once(monitor, costs)
        return allowed

    def _affords(self, monitor: Any, costs: Costs, step: int) -> bool:
        pledged = self._pledged.pop(monitor, None)
        if pledged is not None and pledged.step == step:
            return True  # asked again for the same look
        pledges = [
            pledge.cost
            for each, pledge in self._pledged.items()
            if pledge.looks == len(costs.looks_of(each)) and not each.failed
        ]
        left = self.share * costs.training_seconds - sum(map(costs.seconds_of, self.monitors))
        first = takewhile(lambda each: each is not monitor, self._waiting)
        promised = [*pledges, *(_expected(each, costs) for each in first if not each.failed)]
        left -= sum(cost for cost in promised if cost is not None)
        expected = _expected(monitor, costs)
        return left > 0 and None not in pledges if expected is None else expected <= left

    def _say_once(self, monitor: Any, costs: Costs) -> None:
        if self._told or rank():
            return
        self._told = True
        printed_log.info(
            "%s puts a look off, and so will others: looks are to stay under %g %% of the training time (%.1f s of "
            "%.1f s so far), and what a first one costs shows when it is taken. The last look is always taken",
            monitor.title,
            100 * self.share,
            sum(map(costs.seconds_of, self.monitors)),
            costs.training_seconds,
        )


def _expected(monitor: Any, costs: Costs) -> float | None:
    """What the monitor's next look will cost; None where that is not known."""
    return max(costs.looks_of(monitor)[-2:], default=None)
