"""What all studies take by keyword, and how it is told apart from what the data module and FineTuner take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.studies.jobs import Backend, check_backend

__all__ = ["Runs", "StudyError", "StudyOptions", "sort_options", "sort_training_options"]

# What a study sets itself.
_SET_OF_DATA = frozenset({"data", "per_class", "seed", "predict"})
_SET_OF_TUNER = frozenset({"backbone", "num_classes", "task", "weights", "mode", "class_names", "image_size", "sinks"})


class StudyError(ValueError):
    """A study cannot be made as it was asked for; raised before the first training."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where trainings are logged on Weights & Biases.

    Attributes:
        project: The project.
        group: The study: its runs stand together under this name.
        folder: Where runs are kept on disk.
        offline: Whether they stay there.
    """

    project: str
    group: str
    folder: str
    offline: bool = False

    def logger(self, name: str, job_type: str = "training") -> WandbLogger:
        """Begin a run of the group."""
        return WandbLogger(
            project=self.project,
            group=self.group,
            name=name,
            job_type=job_type,
            save_dir=self.folder,
            offline=self.offline,
            settings={"silent": True, "console": "off"},
        )


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What every study takes by keyword, beside its own arguments.

    Attributes:
        folder: Where the results and the page go.
        seeds: One training each, with new weights and another order of the images; also with other training images,
            where only some of each class are taken, and other test images, where the data is not divided.
        epochs: Passes over the training images.
        steps: Number of optimizer steps in place of epochs: trainings on few and on many images are equally long.
        jobs: Number of processes.
        backend: `"processes"`, `"dask"` or `"ray"`. A cluster's workers must see the data under the same path.
        scheduler: The cluster's address.
        threads: Of torch, in each process; see `run_jobs`.
        accelerator: As Lightning's Trainer takes it.
        wandb: Name of a W&B project to log to: each training is a run, all in one group with a summary run.
        offline: Whether these runs stay on disk.
        progress: Whether to show a progress bar.
        notes: Sentences for the report.

    Raises:
        ValueError: A number is below 1; there are no seeds, or one of them is negative or given twice.
        ImportError: The backend's package is not installed.

    Example:
        >>> StudyOptions(folder="out", steps=1500).budget
        '1,500 optimizer steps'
    """

    folder: str | Path
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int = 20
    steps: int | None = None
    jobs: int = 1
    backend: Backend = "processes"
    scheduler: str | None = None
    threads: int | None = None
    accelerator: str = "auto"
    wandb: str | None = None
    offline: bool = False
    progress: bool = True
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_backend(self.jobs, self.backend, self.scheduler, self.threads)
        for name, number in (("epochs", self.epochs), ("steps", self.steps)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}={number!r}: give a whole number of at least 1")
        whole = all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: give one or more whole numbers from 0, each once")

    @property
    def budget(self) -> str:
        """How long each training is, in words."""
        return f"{self.epochs} epochs" if self.steps is None else f"{self.steps:,} optimizer steps"

    @property
    def runs(self) -> Runs | None:
        """Where trainings are logged, if anywhere."""
        if self.wandb is None:
            return None
        folder = Path(self.folder)
        return Runs(project=self.wandb, group=folder.absolute().name, folder=str(folder), offline=self.offline)

    @property
    def of_jobs(self) -> dict[str, Any]:
        """The options of `run_jobs`."""
        return {name: getattr(self, name) for name in ("jobs", "backend", "scheduler", "threads", "progress")}


def sort_options(options: Mapping[str, Any], study: Callable[..., Any]) -> tuple[StudyOptions, dict[str, Any]]:
    """Divide keyword arguments into those of `StudyOptions` and those of each training, all of which have such names.

    Raises:
        TypeError: An option has no such name; names the closest.
        ValueError: A value of `StudyOptions` is wrong.
    """
    common = _parameters(StudyOptions)
    rest = {name: value for name, value in options.items() if name not in common}
    sort_training_options(rest, study)
    return StudyOptions(**{name: value for name, value in options.items() if name in common}), rest


def sort_training_options(
    options: Mapping[str, Any], study: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the options of a training into those of the data module and those of FineTuner.

    No images are held out for validation unless `val` says so.

    Raises:
        TypeError: Neither has one of them; names the closest.
    """
    of_data = _parameters(ImageFolderDataModule) - _SET_OF_DATA
    of_tuner = _parameters(FineTuner) - _SET_OF_TUNER
    for name in options:
        if name not in of_data | of_tuner:
            valid = sorted(of_data | of_tuner | _parameters(StudyOptions) | (_parameters(study) - {"options"}))
            raise TypeError(
                f"{study.__name__} has no option '{name}', nor have ImageFolderDataModule and FineTuner, except what "
                f"the study sets itself.{suggestion(name, valid, ' ')}"
            )
    return (
        {"val": 0} | {name: value for name, value in options.items() if name in of_data},
        {name: value for name, value in options.items() if name in of_tuner},
    )


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}
