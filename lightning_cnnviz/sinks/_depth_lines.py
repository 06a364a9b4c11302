"""What looks have shown by depth, a line a look: kept beside the record, so that a run that goes on has them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks._dashboard import ByDepth, Lines, with_looks

__all__ = ["DepthLines"]

_FILE = "drawn-by-depth.jsonl"
_Moment: TypeAlias = "tuple[int, int]"  # as the record orders looks: optimizer steps, then epochs


class DepthLines:
    """Joins each number by depth with those of the looks before it, of the same run, also from before this process."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._runs: dict[str, dict[str, dict[_Moment, ByDepth]]] = {}

    def keep_in(self, folder: Path) -> None:
        """Go on with what is noted in a record's folder, and note there what is drawn."""
        if self._file == folder / _FILE:
            return
        self._file = folder / _FILE
        with suppress(OSError):
            for line in self._file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # half a line of a process that was killed
                    self._take(json.loads(line))

    def add(self, drawn: Mapping[str, ByDepth], step: Step) -> dict[str, Lines]:
        """Note what one moment shows, by key; return the lines of all looks up to it."""
        if not drawn:
            return {}
        moment = (step.global_step, step.epoch)
        entry = {
            "run": step.run,
            "moment": moment,
            "position": step.position,
            "drawn": {key: look.values for key, look in drawn.items()},
        }
        known = self._runs.setdefault(step.run, {})
        for key, look in drawn.items():
            known.setdefault(key, {})[moment] = look
        if self._file is not None:
            with suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(entry)}\n")
        # Those of later moments are of a training that has gone back to a checkpoint, or was sent before.
        return {key: with_looks([known[key][when] for when in sorted(known[key]) if when <= moment]) for key in drawn}

    def _take(self, entry: dict[str, Any]) -> None:
        step, epoch = entry["moment"]
        known = self._runs.setdefault(entry["run"], {})
        for key, values in entry["drawn"].items():
            look = ByDepth(title="", position=entry["position"], global_step=step, values=tuple(map(float, values)))
            known.setdefault(key, {})[step, epoch] = look
