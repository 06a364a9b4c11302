"""One training of a study: what it is, by plain types, and how it is done."""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.core.probing.probe import random_twin
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.finetune.sources import find_images
from lightning_cnnviz.studies.jobs import Job
from lightning_cnnviz.studies.surgery import Ablated, ablate

__all__ = [
    "Runs",
    "StudyError",
    "Training",
    "built",
    "check_budget",
    "check_seeds",
    "data_identity",
    "fit",
    "identity",
    "planning",
    "sort_options",
    "training_job",
]

# How the data is had, not which it is.
_MEANS = frozenset({"root", "download", "num_workers", "check"})
_OURS_OF_DATA = frozenset({"data", "per_class", "seed", "predict"})
_OURS_OF_TUNER = frozenset({"backbone", "num_classes", "weights", "mode", "class_names", "image_size", "sinks"})


class StudyError(ValueError):
    """A study cannot be made as it was asked for; raised before the first training."""


@dataclass(frozen=True)
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


@dataclass(frozen=True, eq=False)
class Training:
    """One training: a network, its data and its budget.

    Attributes:
        label: What it is called in messages.
        data: A folder, or a data set's name.
        data_identity: Which images these are, wherever they lie.
        backbone: A torchvision or timm name, or a network.
        weights: As FineTuner takes them; of a network, None stands for those that it has.
        scratch: Whether the network is initialized anew instead.
        mode: `"full"` or `"head"`.
        seed: Of the images that are drawn, the new weights and the order.
        epochs: The budget, unless steps are given.
        steps: Number of optimizer steps, however many epochs these are.
        data_options: Further options of the data module.
        options: Further options of FineTuner.
        remove: Layers that are left out.
        resize: Layers of other widths.
        accelerator: As Lightning's Trainer takes it.
        runs: Where it is logged, if anywhere.
    """

    label: str
    data: str
    data_identity: Mapping[str, Any]
    backbone: str | nn.Module
    weights: str | None
    scratch: bool
    mode: str
    seed: int
    epochs: int
    steps: int | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    resize: Mapping[str, int] = field(default_factory=dict)
    accelerator: str = "auto"
    runs: Runs | None = None

    def description(self) -> dict[str, Any]:
        """Return what the result depends on, in plain types."""
        weights = "anew" if self.scratch else _weights_identity(self.weights)
        data_options = {name: value for name, value in self.data_options.items() if name not in _MEANS}
        return {
            "data": dict(self.data_identity),
            "data_options": identity(data_options, "the data's options"),
            "backbone": identity(self.backbone, "backbone"),
            "weights": weights,
            "mode": self.mode,
            "options": identity(dict(self.options), "options"),
            "budget": {"epochs": self.epochs} if self.steps is None else {"steps": self.steps},
            "seed": self.seed,
            "remove": sorted(self.remove),
            "resize": dict(self.resize),
        }


def training_job(training: Training) -> Job:
    """Return the job that makes a training."""
    return Job(training.label, train, training.description(), training)


def train(description: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """Train and test; return the test's accuracies, 0 to 1."""
    return fit(training)[1]


def fit(training: Training) -> tuple[FineTuner, dict[str, Any]]:
    """Train and test; return the trained FineTuner, and what was measured."""
    with _quiet():
        # Not Lightning's seed_everything, which leaves environment variables behind.
        random.seed(training.seed)
        np.random.seed(training.seed)
        torch.manual_seed(training.seed)
        data, tuner, _ = built(training)
        logger = None if training.runs is None else training.runs.logger(training.label)
        if logger is not None:
            logger.log_hyperparams(training.description())
        try:
            trainer = pl.Trainer(
                max_epochs=_epochs(training, data),
                max_steps=-1 if training.steps is None else training.steps,
                accelerator=training.accelerator,
                devices=1,
                logger=logger or False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                log_every_n_steps=10,
            )
            trainer.fit(tuner, datamodule=data)
            steps = trainer.global_step  # testing sets out anew
            (tested,) = trainer.test(tuner, datamodule=data, verbose=False)
        finally:
            if logger is not None:
                logger.experiment.finish()
    assert data.test_set is not None
    return tuner, {
        "top1": float(tested["test/accuracy"]),
        "class_mean": float(tested["test/mean_class_accuracy"]),
        "loss": float(tested["test/loss"]),
        "classes": data.num_classes,
        "train_images": len(data.train_set),
        "test_images": len(data.test_set),
        "steps": int(steps),
        "parameters": sum(parameter.numel() for parameter in tuner.network.parameters()),
    }


def built(training: Training) -> tuple[ImageFolderDataModule, FineTuner, Ablated | None]:
    """Make a training's data and network, as random state is; nothing is trained."""
    data = ImageFolderDataModule(training.data, seed=training.seed, **training.data_options)
    if data.test_set is None:
        raise StudyError(
            f"{training.data} has no test images; give test=0.2 to hold a fifth of its training images out"
        )
    backbone: str | nn.Module = training.backbone
    if isinstance(backbone, nn.Module):
        backbone = random_twin(backbone, training.seed) if training.scratch else copy.deepcopy(backbone)
    weights = None if training.scratch else training.weights

    def tuner(network: str | nn.Module, weights: str | None) -> FineTuner:
        return FineTuner(
            network,
            data.num_classes,
            weights=weights,
            mode=training.mode,  # type: ignore[arg-type]
            class_names=data.class_names,
            image_size=data.image_shape,
            sinks=[],
            **training.options,
        )

    found = tuner(backbone, weights)
    if not training.remove and not training.resize:
        return data, found, None
    # With the head that it has now, whose width is the number of classes.
    ablated = ablate(
        found.network,
        torch.zeros(1, *data.image_shape),
        remove=training.remove,
        resize=training.resize,
        seed=training.seed,
    )
    return data, tuner(ablated.model, None), ablated


def _epochs(training: Training, data: ImageFolderDataModule) -> int:
    """How many epochs there are, if the last one is cut off where the steps are taken."""
    if training.steps is None:
        return training.epochs
    return math.ceil(training.steps / len(data.train_dataloader()))


# Before any training.


@contextmanager
def planning() -> Iterator[None]:
    """Turn what is wrong with arguments, data, weights and shapes into one kind of error; no random state is drawn."""
    try:
        with keep_random_state(), _quiet():
            yield
    except StudyError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise StudyError(str(error)) from error


def sort_options(options: Mapping[str, Any], study: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into those of the data module and those of FineTuner.

    Raises:
        TypeError: Neither has one of them.
    """
    of_data = _names(ImageFolderDataModule) - _OURS_OF_DATA
    of_tuner = _names(FineTuner) - _OURS_OF_TUNER
    for name in options:
        if name not in of_data | of_tuner:
            known = sorted(of_data | of_tuner | (_names(study) - {"options"}))
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = " Did you mean " + " or ".join(f"'{word}'" for word in close) + "?" if close else ""
            raise TypeError(
                f"{study.__name__} has no option '{name}', nor have ImageFolderDataModule and FineTuner, except what "
                f"the study sets itself.{hint}"
            )
    return (
        {"val": 0} | {name: value for name, value in options.items() if name in of_data},
        {name: value for name, value in options.items() if name in of_tuner},
    )


def check_budget(epochs: int, steps: int | None) -> None:
    """Refuse a budget of nothing.

    Raises:
        ValueError: It is below 1.
    """
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{name}={number!r}: give a whole number of at least 1")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are none, or that would count one training twice.

    Raises:
        ValueError: There is none, one is negative, or one comes twice.
    """
    if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"seeds={list(seeds)}: give one or more whole numbers from 0, each once")


def data_identity(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Say which images a data set has, by their names and sizes: the same ones in another place are the same data.

    Raises:
        FileNotFoundError: There is no such folder or data set.
        ValueError: The folder is not made as it should be.
    """
    found = find_images(data, root=options.get("root", "data"), download=options.get("download", False))
    digest = hashlib.sha256()
    for part, pool in sorted(found.pools.items()):
        files = pool.files
        if files is None:
            digest.update(f"{part} {len(pool.labels)}\n".encode())
            continue
        base = os.path.commonpath(files)
        lines = (f"{part} {os.path.relpath(file, base)} {os.path.getsize(file)}\n" for file in files)
        digest.update("".join(sorted(lines)).encode())
    is_folder = Path(data).expanduser().is_dir() and data != "digits"
    return {"name": None if is_folder else data.lower(), "files": digest.hexdigest()[:16]}


def identity(value: Any, what: str) -> Any:
    """Return what stands for a value in a description: itself if it is plain.

    Raises:
        TypeError: It is of a kind that cannot be told from others of its kind.
    """
    if isinstance(value, nn.Module):
        return {"network": type(value).__qualname__, "weights": _fingerprint(value)}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): identity(part, f"{what}[{name!r}]") for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(part, f"{what}[{place}]") for place, part in enumerate(value)]
    if callable(value):
        name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '<')}"
        if "<" in name:
            raise TypeError(
                f"{what} is {value!r}: a study tells results apart by what made them, so give a function or a class of "
                "a module, or its name"
            )
        return name
    return value


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _weights_identity(weights: str | None) -> Any:
    """A file is known by its content, wherever it lies."""
    file = None if weights is None else Path(weights).expanduser()
    if file is None or not file.is_file():
        return weights
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return {"file": digest.hexdigest()[:16]}


def _names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from saying of each of many trainings what it says of one."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*tensorboard.*",
                "The number of training batches.*",
                ".*defined a `validation_step`.*",
                ".*litmodels.*",
                "GPU available but not used.*",
            ):
                warnings.filterwarnings("ignore", message=message)
            for category in (DeprecationWarning, FutureWarning):  # of what Lightning calls, not of ours
                warnings.filterwarnings("ignore", category=category, module="lightning\\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
