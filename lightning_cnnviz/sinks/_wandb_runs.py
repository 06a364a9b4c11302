"""Runs of W&B: what they are called, who takes what is logged to them, and going on with one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["how_to_send_later", "name_of", "opened_run", "service_of", "wait_for"]


def name_of(run: Any) -> str:
    """Return what a run is called in its project; "" for Lightning's stand-in."""
    return str(getattr(run, "id", ""))


def service_of(run: Any) -> str:
    """Return who takes what is logged, for people: of an offline run, nobody but a process on this machine."""
    return "wandb's process that writes the offline run" if getattr(run, "offline", False) else "W&B"


def how_to_send_later(runs: Iterable[Any], record: Path) -> str:
    """Return the commands that send from a record what runs have not got, as a sentence; "" where there is no run."""
    told = []
    for run in runs:
        if not name_of(run):
            continue
        first = f"wandb sync {_folder(run)}, then " if getattr(run, "offline", False) else ""
        told.append(f"{first}cnnviz sync {record} --to-wandb {_path(run)}")
    return f"To send them later: {'; '.join(told)}" if told else ""


def wait_for(run: Any) -> None:
    """Wait until the service has taken what was logged: logging returns before that, also where nobody listens.

    Raises:
        TimeoutError: It does not answer.
    """
    keys = getattr(getattr(run, "summary", None), "keys", None)
    # The service works off what it gets in order; wandb waits a minute for its answer, and then has an empty one.
    if keys is not None and not getattr(run, "disabled", False) and not keys():
        raise TimeoutError(f"{service_of(run)} does not answer")


@contextmanager
def opened_run(name: str) -> Iterator[Any]:
    """Go on with a W&B run, and finish it afterwards; gives what `WandbSink.open` takes for a logger.

    Args:
        name: `entity/project/id`, or `project/id`.

    Raises:
        ValueError: It is not of this form.
    """
    parts = [part.strip() for part in name.split("/")]
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"{name!r} names no W&B run: give entity/project/id, or project/id")
    import wandb

    run = wandb.init(entity=parts[0] if len(parts) == 3 else None, project=parts[-2], id=parts[-1], resume="allow")
    try:
        yield _Opened(experiment=run)
    finally:
        run.finish()


class _Opened(SimpleNamespace):
    """Stands for the WandbLogger of a run that no trainer has."""


# By this name loggers are known, those of `lightning` and of `pytorch_lightning`.
_Opened.__name__ = "WandbLogger"


def _path(run: Any) -> str:
    """Entity, where it is known, project and id."""
    entity, project = (str(getattr(run, each, "") or "") for each in ("entity", "project"))
    return "/".join([*filter(None, [entity]), project or "PROJECT", name_of(run)])


def _folder(run: Any) -> Path:
    """Where the files of an offline run are."""
    return Path(str(getattr(run, "dir", "wandb/latest-run/files"))).parent
