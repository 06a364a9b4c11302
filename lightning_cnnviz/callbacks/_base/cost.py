"""What monitors cost the training process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

__all__ = ["Costs", "Part", "wait_for_device"]

Part = Literal["computing", "showing"]


class Costs:
    """What looks cost the training process, by monitor: one for a trainer, on each of its ranks.

    Seconds are those of `time.perf_counter` between the start and the end of what a monitor does: its computing, and
    drawing and handing over as far as training waits for it. Passes that are made for several monitors are shared among
    them. Of the passes that validation makes anyway, the hooks and what surrounds each pass count, the pass itself does
    not. On a GPU, a look's clock starts when the device has done what training had asked for: the look would wait for
    that in any case. What hooks make the device do in validation's own passes is counted where a look waits for it.

    Attributes:
        put_off: How many looks of each monitor were put off.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Sequence[Any], Part]] = []
        self.start()

    def start(self) -> None:
        """Begin to count, with the first step: what was only tried before training is forgotten."""
        self._seconds: dict[tuple[Any, Part], float] = defaultdict(float)
        self._looks: dict[Any, list[float]] = defaultdict(list)
        self.put_off: dict[Any, int] = defaultdict(int)
        self._started = self._settled = time.perf_counter()
        self._training: float | None = None

    def stop(self) -> None:
        """Note that training has ended; looks may follow."""
        self._training = self.training_seconds

    @contextmanager
    def charge(self, owners: Sequence[Any], part: Part = "computing") -> Iterator[None]:
        """Charge what is done inside to some monitors, in equal parts; not what is charged to others meanwhile."""
        self._settle()
        self._open.append((owners, part))
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    @contextmanager
    def look(self, owner: Any) -> Iterator[None]:
        """Charge what ends a look of a monitor."""
        with self.charge([owner]):
            yield
        self._looks[owner].append(self.seconds_of(owner) - sum(self._looks[owner]))

    def seconds_of(self, owner: Any, part: Part | None = None) -> float:
        """Return what a monitor has cost so far."""
        parts: tuple[Part, ...] = ("computing", "showing") if part is None else (part,)
        return sum(self._seconds[owner, each] for each in parts)

    def looks_of(self, owner: Any) -> list[float]:
        """Return what each look of a monitor has cost."""
        return self._looks[owner]

    @property
    def training_seconds(self) -> float:
        """How long training has taken so far, without what monitors have cost."""
        if self._training is not None:
            return self._training
        self._settle()
        return self._settled - self._started - sum(self._seconds.values())

    def summary(self, monitors: Sequence[Any]) -> str:
        """Return a table of the monitors that have looked while training went on, as text; "" where none has."""
        seen = {monitor: monitor.title for monitor in monitors if self._looks[monitor]}
        if not seen:
            return ""
        training, width = self.training_seconds, max(len("all looks"), *map(len, seen.values()))
        put_off = any(self.put_off[monitor] for monitor in seen)
        heads = ["looks", "computing", "showing", "of training", *(["put off"] if put_off else [])]
        lines = ["  ".join([" " * width, *heads])]
        total = (sum(len(self._looks[monitor]) for monitor in seen), sum(self.put_off[monitor] for monitor in seen))
        rows = [(seen[one], len(self._looks[one]), self.put_off[one], [one]) for one in seen]
        for name, looks, off, owners in (*rows, ("all looks", *total, list(seen))):
            computing, showing = (
                sum(self.seconds_of(each, part) for each in owners) for part in ("computing", "showing")
            )
            share = f"{(computing + showing) / max(training, 1e-9):.1%}".replace("%", " %")
            cells = [str(looks), f"{computing:.2f} s", f"{showing:.2f} s", share, *([str(off)] if put_off else [])]
            numbers = [cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)]
            lines.append("  ".join([name.ljust(width), *numbers]))
        return f"What looks cost beside {training:.1f} s of training:\n" + "\n".join(lines)

    def _settle(self) -> None:
        """Charge the time since this was last called to whoever it belongs to."""
        now = time.perf_counter()
        if self._open:
            owners, part = self._open[-1]
            for owner in owners:
                self._seconds[owner, part] += (now - self._settled) / len(owners)
        self._settled = now


def wait_for_device(trainer: Any) -> None:
    """Let the device do what training has asked for, where a look is about to wait for it anyway."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
