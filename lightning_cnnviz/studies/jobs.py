"""Independent pieces of work, each with a result file of its own: here, in several processes, or on a cluster."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import joblib
from tqdm.auto import tqdm

from lightning_cnnviz.files import sweep, write_file

__all__ = ["Backend", "Job", "JobsFailedError", "check_backend", "read_result", "run_jobs", "write_json"]

log = logging.getLogger("lightning_cnnviz")

Backend = Literal["processes", "dask", "ray"]
"""Where jobs run: in processes on this machine, or on a cluster."""

_FORMAT = 1  # a result file of another format is another job's
_PACKAGES = {"dask": "distributed", "ray": "ray"}
# Jobs seed the process's random state, so a worker with several threads does one job at a time.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work, by its description.

    Attributes:
        label: What it is called in messages.
        task: A function of a module, called with `description` and `context`; returns the result, of plain types.
        description: What is to be done, of plain types: what JSON can hold. Two jobs of one task with equal
            descriptions are one job.
        context: Whatever else the task needs; it is no part of the job's identity, so nothing that changes results.
        numbers: Names of what is a finite number in every result; one without is damaged.
    """

    label: str
    task: Callable[[Mapping[str, Any], Any], dict[str, Any]]
    description: Mapping[str, Any]
    context: Any = None
    numbers: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """A hash of the task and its description: the name of the result file.

        Raises:
            TypeError: The description holds more than plain types.
        """
        return hashlib.sha256(_canonical(self._identity).encode()).hexdigest()[:20]

    @property
    def file(self) -> str:
        """Name of the result file."""
        return f"{self.key}.json"

    @cached_property
    def _identity(self) -> dict[str, Any]:
        name = f"{self.task.__module__}:{self.task.__qualname__}"
        return {"format": _FORMAT, "task": name, "description": _plain(self.description, "description")}


class JobsFailedError(RuntimeError):
    """Some jobs have failed; the results of all others are kept.

    Attributes:
        failures: Tracebacks by the jobs' labels.
    """

    def __init__(self, message: str, failures: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


class _Outcome(NamedTuple):
    key: str
    status: Literal["done", "busy", "failed"]
    record: dict[str, Any]


def run_jobs(
    work: Sequence[Job],
    folder: str | Path,
    *,
    jobs: int = 1,
    backend: Backend = "processes",
    scheduler: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    title: str = "jobs",
) -> list[dict[str, Any]]:
    """Do the jobs whose results are not in the folder yet, and return the results of all of them, in their order.

    Each result is a file `<hash>.json`, written under another name and then moved into place: a run that is interrupted
    leaves whole files or none, and the next run goes on from there. Several runs may share a folder at the same
    time; each begins with the jobs that no other run is working on. A job that fails does not stop the others.

    A job that draws at random seeds torch's, numpy's or Python's random state itself; the caller's stays as it is.
    (Python's is the whole process's: on a cluster, the worker's own threads may draw from it in between.)

    Args:
        work: The jobs.
        folder: Where the results are; made if need be. On a cluster, results also come back with the jobs, so that
            workers need not see it.
        jobs: Number of processes; with 1, jobs run in this very process. A cluster has as many as it has.
        backend: `"processes"`, or joblib's backend for a `"dask"` or a `"ray"` cluster.
        scheduler: The cluster's address; for dask by default the client that is open, for ray a cluster on this
            machine.
        threads: Of torch, in each process; by default the cores are divided among the processes, and a cluster's
            workers are left as they are. Sums are rounded differently with another number of threads: give 1, and
            results are the same bits with any number of jobs.
        progress: Whether to show a bar.
        title: Stands before the bar.

    Raises:
        JobsFailedError: Jobs have failed, or their processes died again and again. Names them; their tracebacks are
            logged.
        ValueError: An argument is wrong.
        ImportError: The backend's package is not installed.
        TypeError: A description holds more than plain types.
    """
    check_backend(jobs, backend, scheduler, threads)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    unique = {job.key: job for job in work}
    results = {key: result for key, job in unique.items() if (result := read_result(folder, job)) is not None}
    failures: dict[str, str] = {}
    with (
        tqdm(total=len(unique), initial=len(results), desc=title, disable=not progress) as bar,
        ExitStack() as stack,
    ):
        _say_what_differs(folder, [job for key, job in unique.items() if key not in results])
        run = _Workers(folder, jobs, backend, threads, stack, scheduler) if len(results) < len(unique) else None
        skip_claimed = True  # at first, jobs that another run has begun are left to it
        while run is not None and (
            missing := [job for key, job in unique.items() if key not in {**results, **failures}]
        ):
            # A job that was running when a process died comes last: it may be what killed the process.
            missing.sort(key=lambda job: not skip_claimed and _claim(folder, job).exists())
            finished = len(results) + len(failures)
            died: Exception | None = None
            try:
                for outcome in run.outcomes(missing, skip_claimed):
                    if outcome.status == "busy":
                        continue
                    if outcome.status == "failed":
                        failures[outcome.key] = outcome.record["traceback"]
                    else:
                        results[outcome.key] = outcome.record["result"]
                        if not (folder / unique[outcome.key].file).exists():
                            write_json(folder / unique[outcome.key].file, outcome.record)
                    bar.update()
            except _died(backend) as error:
                died = error
                # Some were done, though their workers died before they could report it.
                for job in missing:
                    if job.key not in results and (result := read_result(folder, job)) is not None:
                        results[job.key] = result
                        bar.update()
            if died is not None and finished == len(results) + len(failures):
                waiting = [job for job in missing if job.key not in results]
                reason = f"its process died, or one beside it: {str(died).partition(chr(10))[0]}"
                failures |= dict.fromkeys((job.key for job in waiting), reason)
            skip_claimed = False
    for key in results:
        _claim(folder, unique[key]).unlink(missing_ok=True)
    if failures:
        _raise({unique[key].label: reason for key, reason in failures.items()}, len(unique), folder)
    return [results[job.key] for job in work]


def check_backend(jobs: int, backend: str, scheduler: str | None = None, threads: int | None = None) -> None:
    """Refuse what `run_jobs` could not do.

    Raises:
        ValueError: An argument is out of range, or does not go with another one.
        ImportError: A package is missing; says how to install it.
    """
    for name, number in (("jobs", jobs), ("threads", threads)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{name}={number!r}: give a whole number of at least 1")
    if backend not in ("processes", *_PACKAGES):
        raise ValueError(f'backend={backend!r}: give "processes", "dask" or "ray"')
    if backend == "processes":
        if scheduler is not None:
            raise ValueError(f'scheduler={scheduler!r} is the address of a cluster: give backend="dask" or "ray", too')
        return
    package = _PACKAGES[backend]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f'backend="{backend}" needs {package}, which is not installed: pip install "lightning_cnnviz[{backend}]"'
        )


def read_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """Return a job's result, or None where there is none; a file that is damaged is set aside."""
    try:
        record = json.loads((folder / job.file).read_text(encoding="utf-8"))
        identity, result = record["job"], record["result"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _set_aside(folder / job.file, f"is damaged ({error})")
        return None
    # Through JSON, as the stored one has been: tuples are lists there.
    if identity != json.loads(_canonical(job._identity)) or not isinstance(result, dict):
        _set_aside(folder / job.file, "does not hold what it should")
        return None
    wrong = [name for name in job.numbers if not _is_number(result.get(name))]
    if wrong:
        _set_aside(folder / job.file, f"has {str(result.get(wrong[0]))[:40]!r} for {wrong[0]!r}, a number")
        return None
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _set_aside(file: Path, why: str) -> None:
    aside = file.with_suffix(".damaged")
    with suppress(OSError):  # another run has done it
        file.replace(aside)
    log.warning("%s %s; it is kept as %s, and its job is done again", file, why, aside.name)


def _say_what_differs(folder: Path, missing: Sequence[Job]) -> None:
    """Name what tells the jobs that are to be done from those of the same label whose results are there."""
    by_label = {job.label: job for job in missing}
    differs: dict[str, int] = {}
    for file in folder.glob("*.json"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            job, made = by_label.get(record["label"]), record["job"]["description"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if job is not None:
            for path in _differences(made, json.loads(_canonical(job._identity))["description"]):
                differs[path] = differs.get(path, 0) + 1
    if differs:
        listed = ", ".join(f"{path} ({count})" for path, count in sorted(differs.items()))
        log.warning("%s has results of the same name that are not used, since these differ: %s", folder, listed)


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [
            found
            for name in names
            for found in _differences(one.get(name), other.get(name), f"{path}.{name}" if path else name)
        ]
    return [] if one == other else [path]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    write_file(path, json.dumps(content, indent=1).encode())


# Who works.


class _Workers:
    """The processes or the cluster that jobs run on."""

    def __init__(
        self, folder: Path, jobs: int, backend: Backend, threads: int | None, stack: ExitStack, scheduler: str | None
    ) -> None:
        self.folder, self.jobs, self.backend = folder, jobs, backend
        self.threads = threads
        if threads is None and backend == "processes":
            self.threads = max(1, joblib.cpu_count() // jobs)
        self._options: dict[str, Any] = {"backend": "loky", "n_jobs": jobs}
        if backend == "dask":
            self._options = {"backend": "dask", "n_jobs": -1, "client": _dask_client(scheduler, stack)}
        elif backend == "ray":
            if scheduler is not None:
                importlib.import_module("ray").init(address=scheduler, ignore_reinit_error=True)
            importlib.import_module("ray.util.joblib").register_ray()
            self._options = {"backend": "ray", "n_jobs": -1}

    def outcomes(self, work: Sequence[Job], skip_claimed: bool) -> Iterator[_Outcome]:
        """Do jobs; yield the outcome of each when it is done."""
        tasks = ((job, str(self.folder.absolute()), self.threads, skip_claimed) for job in work)
        if self.backend == "processes" and self.jobs == 1:
            yield from (_perform(*task) for task in tasks)
            return
        with joblib.parallel_config(**self._options):
            # From ray, joblib cannot take results one by one.
            kind = "list" if self.backend == "ray" else "generator_unordered"
            parallel = joblib.Parallel(return_as=kind, batch_size=1)
            done: Iterable[_Outcome] = parallel(joblib.delayed(_perform)(*task) for task in tasks)
            yield from done


def _dask_client(scheduler: str | None, stack: ExitStack) -> Any:
    distributed = importlib.import_module("distributed")
    if scheduler is not None:
        return stack.enter_context(distributed.Client(scheduler, set_as_default=False))
    try:
        return distributed.get_client()
    except ValueError as error:
        raise ValueError('backend="dask" needs scheduler="<address>:8786", or an open dask Client') from error


def _died(backend: Backend) -> tuple[type[Exception], ...]:
    """What is raised when workers die."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    kinds: dict[str, Callable[[], type[Exception]]] = {
        "processes": lambda: BrokenProcessPool,  # loky's TerminatedWorkerError is one
        "dask": lambda: importlib.import_module("distributed").KilledWorker,
        "ray": lambda: importlib.import_module("ray.exceptions").RayActorError,
    }
    return (kinds[backend](),)


def _perform(job: Job, folder: str, threads: int | None, skip_claimed: bool) -> _Outcome:
    """Do one job; called in the worker."""
    home = Path(folder)
    shared = home.is_dir()  # not on a machine that does not see it
    if shared:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            record: dict[str, Any] = json.loads((home / job.file).read_text(encoding="utf-8"))
            if read_result(home, job) is not None:
                return _Outcome(job.key, "done", record)
        # A claim only saves work where several runs meet; it may be left over from a run that died.
        if not _try_claim(_claim(home, job)) and skip_claimed:
            return _Outcome(job.key, "busy", {})
    try:
        with _ONE_AT_A_TIME, _undisturbed(threads):
            begun = time.perf_counter()
            result = job.task(job.description, job.context)
            seconds = round(time.perf_counter() - begun, 3)
        record = {"job": job._identity, "label": job.label, "result": result, "made": _made(seconds)}
        _plain(result, "result")
        if shared:
            write_json(home / job.file, record)
        return _Outcome(job.key, "done", record)
    except Exception:
        return _Outcome(job.key, "failed", {"traceback": traceback.format_exc()})
    finally:
        if shared:
            _claim(home, job).unlink(missing_ok=True)


def _claim(folder: Path, job: Job) -> Path:
    return folder / f".{job.key}.claim"


def _try_claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def _undisturbed(threads: int | None) -> Iterator[None]:
    """Set torch's threads; put them and all random state back."""
    import torch

    from lightning_cnnviz.core.network.hooks import keep_random_state

    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with keep_random_state():
            yield
    finally:
        torch.set_num_threads(before)


def _made(seconds: float) -> dict[str, Any]:
    import torch

    return {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "machine": platform.node(),
        "process": os.getpid(),
    }


# Descriptions.


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def _plain(value: Any, where: str) -> Any:
    """Return a value of plain types as JSON holds it, with lists for tuples.

    Raises:
        TypeError: It is, or holds, something else.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{place}]") for place, part in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; the keys of a job's description or result are text")
        return {name: _plain(part, f"{where}[{name!r}]") for name, part in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__}; a job's description and result are of plain types: None, text, numbers, "
        "lists and dicts"
    )


def _raise(failures: Mapping[str, str], count: int, folder: Path) -> None:
    """Log each traceback once, and raise an error that names the jobs."""
    by_reason: dict[str, list[str]] = {}
    for label, reason in failures.items():
        by_reason.setdefault(reason, []).append(label)
    for reason, labels in by_reason.items():
        log.error("failed: %s\n%s", ", ".join(f"'{label}'" for label in labels), reason.rstrip())
    listed = "; ".join(
        f"{', '.join(repr(label) for label in labels)}: {reason.strip().splitlines()[-1]}"
        for reason, labels in by_reason.items()
    )
    raise JobsFailedError(
        f"{len(failures)} of {count} jobs failed ({listed}). The results of the others are in {folder}: run it again, "
        "and these alone are done",
        failures,
    )
