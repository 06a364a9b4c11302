"""`cnnviz sync`: sends to a W&B run what a record has and the run has not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from lightning_cnnviz.record.store import Record
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
    print(f"{sent} looks sent to {options.to_wandb}; {known} were there already")
    return 0


def sync_record(record: Record, to: str, *, run: str | None = None) -> tuple[int, int]:
    """Send the looks of a record's run to a W&B run.

    Args:
        record: The record; what is sent is noted there.
        to: The W&B run: `entity/project/id`, or `project/id`.
        run: The record's run; by default the newest.

    Returns:
        How many looks were sent, and how many were noted as sent before.

    Raises:
        ValueError: The record has no looks of such a run, or `to` names no run.
    """
    looks = record.looks()
    runs = [look.identity.run for look in looks]
    if not looks or (run is not None and run not in runs):
        raise ValueError(f"{record.folder} has no look of run {run or '(any)'}; its runs are {sorted(set(runs))}")
    wanted = [look for look in looks if look.identity.run == (run or runs[-1])]
    sent = known = 0
    with opened_run(to) as logger:
        sink = WandbSink(record="never")
        sink.open([logger], record.folder)
        sink.keep_account(record.folder)
        for step, moment in groupby(wanted, key=lambda look: look.step):
            contents = [sink.encode(look.report(), step) for look in moment]
            missing = [content for content in contents if not sink.has_sent(content, step)]
            if missing:
                sink.write_look(missing, step)
            sent, known = sent + len(missing), known + len(contents) - len(missing)
        sink.close()
    return sent, known
