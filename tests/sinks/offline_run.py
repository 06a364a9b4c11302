"""Offline runs of wandb for tests: kept inside a folder, and read back from their log."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 - finds its cache of fonts before HOME is moved; making one takes seconds
import pytest

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7


def keep_wandb_inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let wandb write nowhere but into a folder: pictures in tables go to the home directory otherwise."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")


def read_offline_run(folder: Path) -> list[dict[str, Any]]:
    """Wait for the finished run whose files lie under a folder, and return the rows of its history."""
    return [_row(record) for kind, record in _records(folder) if kind == "history"]


def read_offline_artifacts(folder: Path) -> list[dict[str, Path]]:
    """Likewise, the artifacts of the run: name -> file. Each logged table is one, with the pictures of its cells."""
    artifacts = (record.artifact for kind, record in _records(folder) if kind == "artifact")
    return [{entry.path: Path(entry.local_path) for entry in artifact.manifest.contents} for artifact in artifacts]


def read_offline_aliases(folder: Path) -> dict[str, set[str]]:
    """Likewise, the aliases of each artifact, by its name."""
    artifacts = (record.artifact for kind, record in _records(folder) if kind == "artifact")
    return {artifact.name: set(artifact.aliases) for artifact in artifacts}


def read_offline_axes(folder: Path) -> dict[str, tuple[str, set[str]]]:
    """Likewise, what was defined of each key: its axis, and which of its values stand for the run."""
    metrics = [record.metric for kind, record in _records(folder) if kind == "metric"]
    found = {}
    for metric in metrics:
        summaries = {kind for kind in ("min", "max", "last") if getattr(metric.summary, kind)}
        found[metric.name] = (metric.step_metric, summaries)
    return found


def read_offline_config(folder: Path) -> dict[str, Any]:
    """Likewise, the run's config."""
    config: dict[str, Any] = {}
    for kind, record in _records(folder):
        updates = {"config": [record.config], "run": [record.run.config]}.get(kind, [])
        for item in (item for update in updates for item in update.update):
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return config


def _row(record: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in record.history.item:
        *parents, last = item.nested_key or [item.key]
        inner = row
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = json.loads(item.value_json)
    return row


def _records(folder: Path) -> list[tuple[str, Any]]:
    """Every record of the run's log with its kind."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # `finish()` may return before everything is on disk
    (log,) = folder.rglob("run-*.wandb")
    record_class: Any = vars(wandb_internal_pb2)["Record"]  # made while importing: type checkers cannot see it
    records = [record_class.FromString(content) for content in _unframe(log.read_bytes())]
    kinds = [record.WhichOneof("record_type") for record in records]
    assert "exit" in kinds, f"{log.name} was read before it was complete; it holds {kinds}"
    return list(zip(kinds, records, strict=True))


def _unframe(log: bytes) -> Iterator[bytes]:
    """Undo LevelDB's framing: records cut into chunks of at most a block, each behind checksum, length and type."""
    position, record = _FILE_HEADER, b""
    while position + _RECORD_HEADER <= len(log):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, position)
        position += _RECORD_HEADER
        record += log[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last chunk
            yield record
            record = b""
