"""What digits 0 to 4 teach about digits 5 to 9: the sample-efficiency study that runs anywhere, in a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.files import whole_file
from lightning_cnnviz.studies.jobs import Job, run_jobs
from lightning_cnnviz.studies.options import StudyOptions, sort_options
from lightning_cnnviz.studies.results import VARIANTS, SampleEfficiency
from lightning_cnnviz.studies.sample_efficiency import plan_sample_efficiency, sample_efficiency
from lightning_cnnviz.studies.study import study_errors
from lightning_cnnviz.studies.training import Training, fit, with_fingerprints

__all__ = ["DigitsNet", "digits_transfer"]

_HEAD = "head."
_LEARNED, _NEW = tuple("01234"), tuple("56789")
_DEFAULTS: dict[str, Any] = {
    "seeds": (0, 1, 2, 3, 4),
    "steps": 15,
    "threads": 1,  # more than one does not pay for so small a network
    "classes": list(_NEW),
    "augment": "none",
    "lr": 0.003,
    "accelerator": "cpu",
}


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
    variants: Sequence[str] = VARIANTS,
    variant_options: Mapping[str, Mapping[str, Any]] | None = None,
    pretraining_steps: int = 100,
    **options: Any,
) -> SampleEfficiency:
    """Train a small convnet on the digits 0 to 4, then on a few images of each of 5 to 9; against from scratch.

    The digits are scikit-learn's, which come with the package. It is a `sample_efficiency` study on the digits 5 to 9,
    with five seeds, 15 steps, one thread a process, on the CPU, unless its options say otherwise.

    Args:
        folder: Where the results, the pretrained weights and the page go.
        per_class: Numbers of training images a class.
        variants: Of `"pretrained-head"`, `"pretrained-full"` and `"scratch"`.
        variant_options: Options of one variant alone.
        pretraining_steps: Number of steps of the training on 0 to 4, which is made on this machine.
        options: Those of `StudyOptions`, and further ones, as `sample_efficiency` takes them.

    Raises:
        StudyError: An argument is wrong; before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    options = {**_DEFAULTS, **options}
    own: dict[str, Any] = {"per_class": per_class, "variants": variants, "variant_options": variant_options or {}}
    network = _network()
    with study_errors():
        study, rest = sort_options({"folder": folder, **options}, digits_transfer)
        plan_sample_efficiency(study, "digits", network, None, **own, options=rest)
        short = replace(study, steps=pretraining_steps, accelerator="cpu", wandb=None)
        training = _pretraining(short)
        file = Path(folder) / f"{Job(training.label, pretrain, training.description()).key}.pt"
        job = Job(training.label, pretrain, training.description(), (training, str(file.absolute())))
    if not file.is_file():
        (Path(folder) / job.file).unlink(missing_ok=True)  # a result whose weights are gone is none
    (made,) = run_jobs([job], folder, threads=study.threads, progress=study.progress, title="pretraining")
    network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    about = (
        f"Pretrained on digits 0 to 4 ({made['train_images']:,} images, {made['steps']} steps; {made['top1']:.1%} "
        "of their test images are recognized), then trained and tested on 5 to 9."
    )
    options["notes"] = (about, *study.notes)
    return sample_efficiency("digits", network, None, folder=folder, **own, **options)


def pretrain(description: Mapping[str, Any], context: tuple[Training, str]) -> dict[str, Any]:
    """Train on the first digits; keep the weights of all but the head."""
    training, file = context
    tuner, measured = fit(training)
    weights = {name: value for name, value in tuner.network.state_dict().items() if not name.startswith(_HEAD)}
    with whole_file(Path(file)) as opened:
        torch.save(weights, opened)
    return measured


def _pretraining(study: StudyOptions) -> Training:
    training = Training(
        label="digits 0 to 4",
        study=study,
        data="digits",
        backbone=_network(),
        scratch=True,
        data_options={"classes": list(_LEARNED), "val": 0, "augment": "none"},
        tuner_options={"lr": 0.003},
    )
    return with_fingerprints([training])[0]


def _network() -> DigitsNet:
    """The same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return DigitsNet(len(_LEARNED))
