"""What all monitors cost a training, against none, and where the time goes.

    python tests/benchmarks/overhead.py

A small convnet on images of digits' size, and ResNet-18 on images of 64 pixels; the images are noise with a mean of
their class, from a fixed seed. Each is trained on the CPU (or `--accelerator gpu`), with as many threads as
OMP_NUM_THREADS says, by three contenders in turn, `--repeats` times: without monitors; with every monitor of
`monitors()`, after each epoch; and with `monitors(budget=...)` itself. Pages go to a temporary folder.

- wall: the whole of `fit`, and its ratio to that without monitors; the medians of the repeats, and their range.
- before: from the call of `fit` to the first step: set-up, and what is tried before training.
- computing, showing: as the summary at the end of fit has them; showing is drawing and handing over, as far as training
  waits for it.
- ending: from the end of the last look to the return of `fit`: what is still drawn, and the pages' last writes.
- the step after a look: from the end of an epoch's last step to the end of the next epoch's first one, which has the
  validation in it. What it took more than without monitors is compared with the looks' own computing in it: the rest,
  in percent of that, is what training waited for besides.
- losses: of the last validation, which must be the same for all.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightning_cnnviz import monitors

CLASSES = 10


def small() -> nn.Module:
    """Three convolutions, for images (1, 32, 32)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, CLASSES))


# Network, shape of an image, images to learn from and to validate on, and epochs.
PROBLEMS: dict[str, tuple[Any, tuple[int, int, int], int, int, int]] = {
    "small": (small, (1, 32, 32), 4000, 500, 4),
    "resnet18": (lambda: resnet18(num_classes=CLASSES), (3, 64, 64), 1000, 200, 3),
}


class Module(pl.LightningModule):
    """Trains a network by cross-entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def loader(shape: tuple[int, int, int], count: int, seed: int, *, shuffle: bool) -> DataLoader[Any]:
    """Noise, with a mean of its class."""
    means = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = 0.5 * means[labels] + torch.randn(count, *shape, generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=50, shuffle=shuffle)


@dataclass
class Times:
    """Seconds of one fit."""

    wall: float = 0.0
    before: float = 0.0
    computing: float = 0.0
    showing: float = 0.0
    ending: float = 0.0
    loss: float = 0.0
    looks: int = 0
    gaps: list[float] = field(default_factory=list)
    computing_in_gaps: list[float] = field(default_factory=list)


class Clock(pl.Callback):
    """Notes when things happen; the last of the callbacks."""

    def __init__(self, watched: list[Any]) -> None:
        self.watched, self.times, self.costs = watched, Times(), None
        self._last = (0.0, 0.0)
        self._first_of_epoch = False

    def computing(self) -> float:
        """What the looks have computed so far."""
        return 0.0 if self.costs is None else sum(self.costs.seconds_of(each, "computing") for each in self.watched)

    def on_train_start(self, *_: Any) -> None:
        self.first = time.perf_counter()
        self.costs = self.watched[0]._feed.costs if self.watched else None

    def on_train_epoch_start(self, *_: Any) -> None:
        self._first_of_epoch = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter(), self.computing()
        if self._first_of_epoch and trainer.current_epoch > 0:
            self.times.gaps.append(now[0] - self._last[0])
            self.times.computing_in_gaps.append(now[1] - self._last[1])
        self._first_of_epoch = False
        self._last = now

    def on_train_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()
        if self.costs is not None:
            self.times.looks = sum(len(self.costs.looks_of(each)) for each in self.watched)
            self.times.computing = self.computing()
            self.times.showing = sum(self.costs.seconds_of(each, "showing") for each in self.watched)


def every_epoch() -> list[Any]:
    """Each monitor of the set, without its budget, after each epoch."""
    table, *others = (type(each) for each in monitors())
    return [table(), *(kind(every_n_epochs=1) for kind in others)]


def fit(problem: str, watched: list[Any], options: argparse.Namespace) -> Times:
    """Train once."""
    make, shape, learn, validate, epochs = PROBLEMS[problem]
    pl.seed_everything(0, verbose=False)
    module = Module(make())
    train = loader(shape, learn, 1, shuffle=True)
    val = loader(shape, validate, 2, shuffle=False)
    clock = Clock(watched)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=options.accelerator,
            devices=1,
            max_epochs=options.epochs or epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            callbacks=[*watched, clock],
        )
        begun = time.perf_counter()
        trainer.fit(module, train, val)
        now = time.perf_counter()
    times = clock.times
    times.wall, times.before, times.ending = now - begun, clock.first - begun, now - clock.ended
    times.loss = float(trainer.callback_metrics["loss"])
    return times


def median(values: list[float]) -> float:
    """The median, 0 of none."""
    return statistics.median(values) if values else 0.0


def say(problem: str, runs: dict[str, list[Times]]) -> None:
    """Print what was measured."""
    plain = median([run.wall for run in runs["none"]])
    gap = median([each for run in runs["none"] for each in run.gaps])
    parts = ("before", "computing", "showing", "ending")
    print(f"\n{problem}: step after an epoch without monitors {gap:.3f} s")
    print(
        f"{'':14}{'wall':>8}{'range':>16}{'ratio':>8}{'looks':>7}"
        + "".join(f"{part:>11}" for part in parts)
        + "   loss"
    )
    for name, each in runs.items():
        walls = sorted(run.wall for run in each)
        cells = "".join(f"{median([getattr(run, part) for run in each]):10.2f}s" for part in parts)
        spread = f"{walls[0]:.1f}-{walls[-1]:.1f}"
        print(
            f"{name:14}{median(walls):7.1f}s{spread:>16}{median(walls) / plain:8.2f}{each[0].looks:7d}{cells}"
            f"   {each[0].loss:.6f}"
        )
    for name, each in runs.items():
        computed = median([own for run in each for own in run.computing_in_gaps])
        if name == "none" or computed < 1e-3:
            continue
        more = median([after for run in each for after in run.gaps]) - gap
        print(
            f"{name}: the step after a look takes {more:.3f} s more, of which the looks compute {computed:.3f} s; "
            f"the rest is {100 * (more - computed) / computed:.1f} % of that"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of each problem's own")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    print(f"torch {torch.__version__}, Lightning {pl.__version__}, Python {platform.python_version()}, seed 0")
    print(f"{torch.get_num_threads()} threads, {options.accelerator}, {options.repeats} repeats")
    contenders: dict[str, Any] = {
        "none": list,
        "every epoch": every_epoch,
        f"budget {options.budget:g}": lambda: monitors(options.budget),
    }
    for problem in options.problems:
        fit(problem, every_epoch(), argparse.Namespace(**{**vars(options), "epochs": 1}))  # warm-up: libraries, fonts
        runs: dict[str, list[Times]] = {name: [] for name in contenders}
        for _ in range(options.repeats):
            for name, make in contenders.items():
                runs[name].append(fit(problem, make(), options))
        say(problem, runs)


if __name__ == "__main__":
    main()
