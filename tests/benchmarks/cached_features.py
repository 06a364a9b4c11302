"""What an epoch of head-only training costs with `cache_features=True`, against the same without.

    python tests/benchmarks/cached_features.py --models squeezenet1_0 resnet18

Both runs train a new head on noise images from a fixed seed, in the same order, with random weights in the backbone.
An epoch's time is from its first batch to its end, without validation; the first epoch's features are computed before
it begins, which is shown apart. The median over the epochs counts, and the fastest and slowest stand behind it. At the
end the largest difference between the two runs' weights is shown.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.finetune import FineTuner


class Clock(pl.Callback):
    """Takes the time of the start of training and of each epoch."""

    def __init__(self) -> None:
        self.began = 0.0
        self.epoch = 0.0
        self.before_first: float | None = None
        self.epochs: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epoch = time.perf_counter()
        if self.before_first is None:
            self.before_first = self.epoch - self.began

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.epochs.append(time.perf_counter() - self.epoch)


def run(name: str, options: argparse.Namespace, *, cached: bool) -> tuple[Clock, dict[str, Tensor]]:
    """Train; return the times and the head's weights."""
    torch.manual_seed(options.seed)
    module = FineTuner(name, options.classes, mode="head", cache_features=cached, sinks=[], warmup_epochs=0)
    images = torch.rand(options.images, 3, 224, 224)
    loader = DataLoader(
        TensorDataset(images, torch.arange(options.images) % options.classes), batch_size=32, shuffle=True
    )
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator=options.device,
        devices=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    return clock, {key: value.detach().cpu() for key, value in module.network.state_dict().items()}


def measure(name: str, options: argparse.Namespace) -> float:
    """Print both runs' times; return the ratio of their epochs."""
    (plain, weights), (kept, others) = (run(name, options, cached=cached) for cached in (False, True))
    found = [statistics.median(clock.epochs) for clock in (plain, kept)]
    for what, clock, median in zip(("plain", "cached"), (plain, kept), found, strict=True):
        spread = f"{min(clock.epochs):.3f} to {max(clock.epochs):.3f}"
        print(f"{name}: {what} {median:.3f} s an epoch ({spread}), {clock.before_first or 0.0:.2f} s before the first")
    apart = max(float((value.double() - others[key].double()).abs().max()) for key, value in weights.items())
    print(f"{name}: {found[0] / found[1]:.1f} times less an epoch; weights differ by at most {apart:.1e}")
    return found[0] / found[1]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18"], metavar="NAME")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, {options.device}, seed {options.seed}")
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
