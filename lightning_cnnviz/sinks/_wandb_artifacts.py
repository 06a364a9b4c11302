"""What W&B keeps as artifacts: records, splits, and the results of studies."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_cnnviz.report import Step, Table, Tile
from lightning_cnnviz.sinks.series import key_part

__all__ = ["LONGEST_NAME", "upload_files", "upload_record", "upload_split"]

log = logging.getLogger("lightning_cnnviz")

LONGEST_NAME = 128
"""Letters of an artifact's name."""


def upload_files(logger: Any, name: str, *, kind: str, files: Mapping[str, Path], tables: Sequence[Table] = ()) -> None:
    """Upload files and tables as an artifact of a WandbLogger's run.

    Args:
        logger: The logger; in runs without artifacts, as those that are disabled, nothing is done.
        name: The artifact's; letters that none may have become `_`.
        kind: Its type.
        files: By their names in it.
        tables: Which stand in it as tables of W&B's.
    """
    run = logger.experiment
    if not hasattr(run, "log_artifact"):
        return
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^a-zA-Z0-9_.-]", "_", name)[:LONGEST_NAME], type=kind)
    for inside, file in files.items():
        artifact.add_file(str(file), name=inside)
    for table in tables:
        rows = [[cell.caption if isinstance(cell, Tile) else cell for cell in row] for row in table.rows]
        artifact.add(wandb.Table(columns=list(table.columns), data=rows), table.name)
    run.log_artifact(artifact)


def upload_split(run: Any, name: str, split: Mapping[str, Any]) -> None:
    """Upload which images do what as an artifact: runs with the same split have the same version of it."""
    if not hasattr(run, "log_artifact"):
        return
    import wandb

    try:
        artifact = wandb.Artifact(f"cnnviz-split-{key_part(name)}"[:LONGEST_NAME], type="cnnviz-split")
        # Not `new_file`, whose folder stays until a warning of Python's takes it away.
        with TemporaryDirectory() as folder:
            file = Path(folder) / "split.json"
            file.write_text(json.dumps(split, default=str), encoding="utf-8")
            artifact.add_file(str(file))
        run.log_artifact(artifact)
    except Exception as error:
        log.error("WandbSink: the split of %s is not uploaded: %s", name, error)


def upload_record(run: Any, folder: Path, step: Step) -> None:
    """Upload the record's looks as a new version of the run's artifact."""
    if not hasattr(run, "log_artifact"):  # Lightning's stand-in on other ranks, and in `fast_dev_run`
        return
    import wandb

    artifact = wandb.Artifact(f"cnnviz-record-{run.id}", type="cnnviz-record")
    try:
        # What the record has written does not change: no copy of it is made.
        artifact.add_dir(str(folder), skip_cache=True, policy="immutable")
        run.log_artifact(artifact, aliases=["latest", f"epoch-{step.epoch}"])
    except Exception as error:
        log.error("WandbSink: the record is not uploaded, it lies in %s: %s", folder, error)
