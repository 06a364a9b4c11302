"""What digits 0 to 4 teach about digits 5 to 9: the sample-efficiency study that runs anywhere, in a minute."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.studies.jobs import Backend, Job, check_backend, run_jobs
from lightning_cnnviz.studies.sample_efficiency import VARIANTS, SampleEfficiency, sample_efficiency
from lightning_cnnviz.studies.training import Training, data_identity, fit, identity, planning

__all__ = ["DigitsNet", "digits_transfer"]

_HEAD = "head."
_LEARNED, _NEW = tuple("01234"), tuple("56789")


class DigitsNet(nn.Module):
    """Three convolutions with BatchNorm for digits `(N, 1, 32, 32)`, a relative of the demo's network.

    The linear layer sees 4 x 4 places: averaged over all of them, features of five digits tell little of five others.
    """

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, num_classes)`."""
        maps = F.relu(self.norm1(self.conv1(images)))
        maps = F.max_pool2d(F.relu(self.norm2(self.conv2(maps))), 2)
        maps = F.avg_pool2d(F.relu(self.norm3(self.conv3(maps))), 2)
        logits: Tensor = self.head(maps.flatten(1))
        return logits


def digits_transfer(
    folder: str | Path = "cnnviz_digits",
    *,
    per_class: Sequence[int] = (1, 3, 10, 30),
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    steps: int = 15,
    pretraining_steps: int = 100,
    jobs: int = 1,
    backend: Backend = "processes",
    scheduler: str | None = None,
    threads: int | None = 1,
    progress: bool = True,
    **options: Any,
) -> SampleEfficiency:
    """Train a small convnet on the digits 0 to 4, then on a few images of each of 5 to 9; against from scratch.

    The digits are scikit-learn's, which come with the package. See `sample_efficiency`, whose options are taken, too.

    Args:
        folder: Where the results, the pretrained weights and the page go.
        per_class: Numbers of training images a class.
        variants: Of `"pretrained-head"`, `"pretrained-full"` and `"scratch"`.
        seeds: Of the trainings on 5 to 9; all begin with the same pretrained weights.
        steps: Number of optimizer steps of each of them.
        pretraining_steps: Of the training on 0 to 4.
        jobs: Number of processes.
        backend: See `run_jobs`; the pretraining is made on this machine.
        scheduler: Likewise.
        threads: Likewise; more than one does not pay for so small a network.
        progress: Whether to show a bar.
        options: Further options of `sample_efficiency`.

    Raises:
        StudyError: An argument is wrong; before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    folder = Path(folder)
    with planning():
        check_backend(jobs, backend, scheduler, threads)
        training = _pretraining(pretraining_steps)
        job = Job("digits 0 to 4", pretrain, training.description())
        file = folder / f"{job.key}.pt"
        job = Job(job.label, pretrain, training.description(), (training, str(file.absolute())))
    if not file.is_file():
        (folder / job.file).unlink(missing_ok=True)  # a result whose weights are gone is none
    (made,) = run_jobs([job], folder, threads=threads, progress=progress, title="pretraining")
    network = _network()
    network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    return sample_efficiency(
        "digits",
        network,
        None,
        per_class=per_class,
        variants=variants,
        seeds=seeds,
        steps=steps,
        folder=folder,
        jobs=jobs,
        backend=backend,
        scheduler=scheduler,
        threads=threads,
        progress=progress,
        notes=(
            f"Pretrained on digits 0 to 4 ({made['train_images']:,} images, {made['steps']} steps; {made['top1']:.1%} "
            "of their test images are recognized), then trained and tested on 5 to 9.",
        ),
        **{"classes": list(_NEW), "augment": "none", "lr": 0.003, "accelerator": "cpu", **options},
    )


def pretrain(description: Mapping[str, Any], context: tuple[Training, str]) -> dict[str, Any]:
    """Train on the first digits; keep the weights of all but the head."""
    training, file = context
    tuner, measured = fit(training)
    weights = {name: value for name, value in tuner.network.state_dict().items() if not name.startswith(_HEAD)}
    draft = Path(f"{file}.{uuid.uuid4().hex}.tmp")
    torch.save(weights, draft)
    os.replace(draft, file)
    return measured


def _pretraining(steps: int) -> Training:
    options: dict[str, Any] = {"classes": list(_LEARNED), "val": 0, "augment": "none"}
    return Training(
        label="digits 0 to 4",
        data="digits",
        data_identity=data_identity("digits", options),
        backbone=_network(),
        weights=None,
        scratch=True,
        mode="full",
        seed=0,
        epochs=1,
        steps=steps,
        data_options=options,
        options=identity({"lr": 0.003}, "options"),
        accelerator="cpu",
    )


def _network() -> DigitsNet:
    """The same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return DigitsNet(len(_LEARNED))
