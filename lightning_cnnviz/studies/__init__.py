"""Studies: many trainings, one table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cnnviz.studies.ablation import AblationStudy, ablation_study
    from lightning_cnnviz.studies.digits import digits_transfer
    from lightning_cnnviz.studies.jobs import Job, JobsFailedError, run_jobs
    from lightning_cnnviz.studies.sample_efficiency import SampleEfficiency, sample_efficiency

__all__ = [
    "AblationStudy",
    "Job",
    "JobsFailedError",
    "SampleEfficiency",
    "ablation_study",
    "digits_transfer",
    "run_jobs",
    "sample_efficiency",
]

_HOMES = {
    "AblationStudy": "ablation",
    "Job": "jobs",
    "JobsFailedError": "jobs",
    "SampleEfficiency": "sample_efficiency",
    "ablation_study": "ablation",
    "digits_transfer": "digits",
    "run_jobs": "jobs",
    "sample_efficiency": "sample_efficiency",
}


def __getattr__(name: str) -> Any:
    # Late, so that a worker process loads what its jobs need and no more.
    if name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
