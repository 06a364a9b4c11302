"""`cnnviz sync`: sends to a W&B run what a record has and the run has not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.sinks.outlet import look_facts
from lightning_cnnviz.sinks.wandb import WandbSink, opened_run

__all__ = ["sync_main", "sync_record"]


def sync_main(arguments: Sequence[str] | None = None) -> int:
    """Send what has not been sent; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="cnnviz sync",
        description="Send the looks of a record to a W&B run: those that could not be sent while the run was made, "
        "since the service was slow, or gone. What is noted in the record as sent is not sent again.",
    )
    parser.add_argument("record", type=Path, metavar="RECORD", help="its folder, or that of the page or run it is of")
    parser.add_argument("--to-wandb", required=True, metavar="RUN", help="entity/project/id, or project/id")
    parser.add_argument("--run", metavar="RUN", help="of the record; default: the newest")
    options = parser.parse_args(arguments)
    try:
        sent, known = sync_record(Record.within(options.record), options.to_wandb, run=options.run)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f"cnnviz sync: not all is sent: {error}. Called again, it sends the rest\n")
    print(f"{sent} looks sent to {options.to_wandb}; {known} were there already")
    return 0


def sync_record(record: Record, to: str, *, run: str | None = None) -> tuple[int, int]:
    """Send the looks of a record's run to a W&B run: as the run would have sent them, and the newest ones stand last.

    Args:
        record: The record; what is sent is noted there.
        to: The W&B run: `entity/project/id`, or `project/id`.
        run: The record's run; by default the newest.

    Returns:
        How many looks were sent, and how many were noted as sent before.

    Raises:
        OSError: W&B does not answer any more; what it has taken is noted.
        ValueError: The record has no looks of such a run, or `to` names no run.
    """
    looks = record.looks()
    runs = [look.identity.run for look in looks]
    if not looks or (run is not None and run not in runs):
        raise ValueError(f"{record.folder} has no look of run {run or '(any)'}; its runs are {sorted(set(runs))}")
    wanted = [look for look in looks if look.identity.run == (run or runs[-1])]
    with opened_run(to) as logger:
        sink = WandbSink(record="never")
        sink.open([logger], record.folder)
        sink.keep_account(record.folder)
        sink.be_patient()
        _describe(sink, wanted)
        sent = _send(sink, wanted)
        sink.close()
    return sent, len(wanted) - sent


def _send(sink: WandbSink, looks: Sequence[RecordedLook]) -> int:
    """Send what is missing, moment by moment; return how many looks that were."""
    newest = {look.identity.series: look for look in looks}
    sent = 0
    is_behind = False  # whether the run had something later than what was sent
    for step, moment in groupby(looks, key=lambda look: look.step):
        found = [_encoded(sink, look, newest) for look in moment]
        missing = [[content for content in contents if not sink.has_sent(content, step)] for contents in found]
        is_behind |= sent > 0 and missing != found
        if any(missing):
            sink.write_look([content for contents in missing for content in contents], step)
        sent += sum(map(bool, missing))
    if is_behind:  # W&B takes what was logged last for a run's newest: numbers, tables and charts
        for step, moment in groupby(sorted(newest.values(), key=lambda look: look.id), key=lambda look: look.step):
            sink.write_look([content for look in moment for content in _encoded(sink, look, newest)], step)
    return sent


def _encoded(sink: WandbSink, look: RecordedLook, newest: Mapping[Any, RecordedLook]) -> list[Any]:
    """What a run logs of a look; of the newest of its series also what is shown at the end."""
    reports = [look.report(), look.last_report() if newest[look.identity.series] is look else None]
    return [sink.encode(report, look.step) for report in reports if report is not None]


def _describe(sink: WandbSink, looks: Sequence[RecordedLook]) -> None:
    """Say what each monitor was made with, as its first look has it."""
    for name, look in {look.identity.described_as: look for look in reversed(looks)}.items():
        if name and look.has_result:
            sink.describe(name, look_facts(look.identity, look.seen()))
