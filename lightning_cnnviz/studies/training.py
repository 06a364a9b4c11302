"""One training of a study: what it is, and how it is done."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from lightning_cnnviz.core.network.twins import copy_network, random_twin
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.studies.fingerprints import (
    data_fingerprint,
    network_fingerprint,
    plain_description,
    weights_description,
)
from lightning_cnnviz.studies.jobs import Job
from lightning_cnnviz.studies.options import StudyError, StudyOptions
from lightning_cnnviz.studies.surgery import AblatedNetwork, ablate

__all__ = ["Training", "build", "fit", "quiet_lightning", "training_job", "with_fingerprints"]

# They say from where and how the images are read; the result does not depend on them.
_MEASURED = ("top1", "class_mean", "classes", "train_images", "test_images", "steps", "parameters")
_HOW_DATA_IS_READ = frozenset({"root", "download", "num_workers", "check"})


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """One training: a network, its data and its budget.

    Attributes:
        label: What it is called in messages.
        study: The study's options: the budget, the accelerator, and where runs are logged.
        data: A folder, or a data set's name.
        backbone: A torchvision or timm name, or a network.
        weights: As FineTuner takes them; of a network, None stands for those that it has.
        scratch: Whether the network is initialized anew instead.
        mode: `"full"` or `"head"`.
        seed: Of the images that are drawn, the new weights and the order.
        data_options: Further options of the data module.
        tuner_options: Further options of FineTuner.
        remove: Layers that are left out.
        resize: Layers of other widths.
        data_fingerprint: Which images these are, wherever they lie; see `with_fingerprints`.
        network_fingerprint: Likewise, what the network is made of, and by which versions.
    """

    label: str
    study: StudyOptions
    data: str
    backbone: str | nn.Module
    weights: str | None = None
    scratch: bool = False
    mode: str = "full"
    seed: int = 0
    data_options: Mapping[str, Any] = field(default_factory=dict)
    tuner_options: Mapping[str, Any] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    resize: Mapping[str, int] = field(default_factory=dict)
    data_fingerprint: Mapping[str, Any] = field(default_factory=dict)
    network_fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """Return what the result depends on, in plain types."""
        data_options = {name: value for name, value in self.data_options.items() if name not in _HOW_DATA_IS_READ}
        study = self.study
        return {
            "data": dict(self.data_fingerprint),
            "data_options": plain_description(data_options, "the data's options"),
            "backbone": plain_description(self.backbone, "backbone"),
            "made of": dict(self.network_fingerprint),
            "weights": "anew" if self.scratch else weights_description(self.weights),
            "mode": self.mode,
            "options": plain_description(dict(self.tuner_options), "options"),
            "budget": {"epochs": study.epochs} if study.steps is None else {"steps": study.steps},
            "seed": self.seed,
            "remove": sorted(self.remove),
            "resize": dict(self.resize),
        }


def with_fingerprints(trainings: Sequence[Training]) -> list[Training]:
    """Return trainings of one network on the same data with fingerprints, which take time: made once for all."""
    first = trainings[0]
    data = data_fingerprint(first.data, first.data_options, Path(first.study.folder) / "images.json")
    network = network_fingerprint(first.backbone)
    return [replace(training, data_fingerprint=data, network_fingerprint=network) for training in trainings]


def training_job(training: Training) -> Job:
    """Return the job that makes a training."""
    return Job(training.label, train, training.description(), training, numbers=_MEASURED)


def train(description: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """Train and test; return the test's accuracies, 0 to 1."""
    return fit(training)[1]


def fit(training: Training) -> tuple[FineTuner, dict[str, Any]]:
    """Train and test; return the trained FineTuner, and what was measured."""
    steps_asked, runs = training.study.steps, training.study.runs
    with quiet_lightning():
        # Not Lightning's seed_everything, which leaves environment variables behind.
        random.seed(training.seed)
        np.random.seed(training.seed)
        torch.manual_seed(training.seed)
        data, tuner, _ = build(training)
        logger = None if runs is None else runs.logger(training.label)
        if logger is not None:
            logger.log_hyperparams(training.description())
        try:
            trainer = pl.Trainer(
                max_epochs=_epochs(training, data),
                max_steps=-1 if steps_asked is None else steps_asked,
                accelerator=training.study.accelerator,
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
            steps = trainer.global_step  # testing starts the count anew
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


def build(training: Training) -> tuple[ImageFolderDataModule, FineTuner, AblatedNetwork | None]:
    """Make a training's data and network from the random state as it is, and train nothing.

    Raises:
        StudyError: The data has no test images.
    """
    data = ImageFolderDataModule(training.data, seed=training.seed, **training.data_options)
    if data.test_set is None:
        raise StudyError(
            f"{training.data} has no test images; give test=0.2 to hold a fifth of its training images out"
        )
    backbone: str | nn.Module = training.backbone
    if isinstance(backbone, nn.Module):
        backbone = random_twin(backbone, training.seed) if training.scratch else copy_network(backbone)

    def tuner(network: str | nn.Module, weights: str | None) -> FineTuner:
        return FineTuner(
            network,
            data.num_classes,
            weights=weights,
            mode=training.mode,  # type: ignore[arg-type]
            class_names=data.class_names,
            image_size=data.image_shape,
            sinks=[],
            **training.tuner_options,
        )

    whole = tuner(backbone, None if training.scratch else training.weights)
    if not training.remove and not training.resize:
        return data, whole, None
    # With the new head, whose width is the number of classes.
    ablated = ablate(
        whole.network,
        torch.zeros(1, *data.image_shape),
        remove=training.remove,
        resize=training.resize,
        seed=training.seed,
    )
    return data, tuner(ablated.model, None), ablated


def _epochs(training: Training, data: ImageFolderDataModule) -> int:
    """The number of epochs, the last of which may be cut short by the number of steps."""
    if training.study.steps is None:
        return training.study.epochs
    return math.ceil(training.study.steps / len(data.train_dataloader()))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning from repeating for each of many trainings what it says about one."""
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
