"""What all studies do alike: refuse before training, make the trainings as jobs, keep the result and show it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.report import Report, Step, Table
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import show_once
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink, upload_files
from lightning_cnnviz.studies.jobs import Job, run_jobs, write_json
from lightning_cnnviz.studies.options import StudyError, StudyOptions
from lightning_cnnviz.studies.results import StudyResult
from lightning_cnnviz.studies.training import quiet_lightning

__all__ = ["common_fields", "finish_study", "run_trainings", "study_errors"]

log = logging.getLogger(__name__)


@contextmanager
def study_errors() -> Iterator[None]:
    """Turn what is wrong with arguments, data, weights and shapes into a `StudyError`; random state is put back."""
    try:
        with keep_random_state(), quiet_lightning():
            yield
    except StudyError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise StudyError(str(error)) from error


def run_trainings(jobs: Sequence[Job], study: StudyOptions, *shape: int) -> dict[str, Tensor]:
    """Make the trainings that are missing; return what was measured, by name, each `shape` float64.

    Args:
        jobs: From `training_job`, in the order of the shape's places.
        study: Says where and how they run.
        shape: Numbers of whatever differs between trainings, for example of variants and of seeds.

    Raises:
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    results = run_jobs(jobs, study.folder, title="trainings", **study.of_jobs)
    return {
        name: torch.tensor([result[name] for result in results], dtype=torch.float64).view(shape) for name in results[0]
    }


def common_fields(
    data: str | Path, backbone: str | nn.Module, study: StudyOptions, measured: dict[str, Tensor]
) -> dict[str, Any]:
    """Return the fields of `StudyResult`."""
    return {
        "data": Path(data).name if Path(data).is_dir() else str(data),
        "backbone": backbone if isinstance(backbone, str) else type(backbone).__name__,
        "seeds": tuple(study.seeds),
        "classes": int(measured["classes"].flatten()[0]),
        "test_images": int(measured["test_images"].flatten()[0]),
        "budget": study.budget,
        "notes": tuple(study.notes),
    }


def finish_study(result: StudyResult, report: Report, study: StudyOptions, jobs: Sequence[Job] = ()) -> None:
    """Write a study's result, page and record into its folder, and its summary run where runs are logged.

    The result is written twice: as that of the newest study in the folder, and under a name of its own, told by what
    all its jobs have in common but for seeds and numbers of images, so that no other study overwrites it.
    """
    folder, runs, told = Path(study.folder), study.runs, result.to_json()
    write_json(folder / result.file, told)
    write_json(folder / f"{Path(result.file).stem}-{_study_key(result, jobs)}.json", told)
    loggers = [] if runs is None else [runs.logger(f"{runs.group} summary", "summary")]
    sinks: list[Sink] = [PageSink(folder), *(WandbSink() for _ in loggers)]
    # The same result once more, as of a study that was complete, is the same look.
    run = hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()
    step = Step(epoch=0, global_step=0, stage="test", run=run)
    try:
        show_once("study", report, step, sinks, loggers=loggers, folder=folder)
    except ValueError as error:  # the trainings are done, and their result is written: it is not lost with its page
        log.error("study: %s. The result itself is in %s", error, folder / result.file)
    for logger in loggers:
        name = f"cnnviz-study-{Path(study.folder).absolute().name}"
        tables = [item for item in report.items if isinstance(item, Table)]
        upload_files(logger, name, kind="cnnviz-study", files={result.file: folder / result.file}, tables=tables)
        logger.experiment.finish()


def _study_key(result: StudyResult, jobs: Sequence[Job]) -> str:
    parts = [_without_amounts(job.description) for job in jobs] or [{}]
    common = {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}
    told = json.dumps([result.data, result.backbone, result.budget, common], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=4).hexdigest()


def _without_amounts(description: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in description.get("data_options", {}).items() if name != "per_class"}
    return {**{name: value for name, value in description.items() if name != "seed"}, "data_options": data}
