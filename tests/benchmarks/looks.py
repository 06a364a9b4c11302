"""What a look of each monitor costs with its defaults, in seconds and in times of a validation pass.

    python tests/benchmarks/looks.py
    python tests/benchmarks/looks.py --problems tiny --views OcclusionMonitor

Three trainings: `tiny`, two convolutions on five images of 24 x 24 pixels; `small`, three convolutions on 500 images to
validate on; and ResNet-18 on 200 images of 64 x 64 pixels. Each monitor is trained with alone, and looks after each
epoch. A look is what the process of training computes for it, without drawing and handing over; its median over the
epochs after the first, whose look also learns the network. A validation pass is the network over the validation images
in eval mode, without gradients; the fastest of some. Times are the processor's, on one thread, so that other programs
disturb them less.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from overhead import PROBLEMS, Module, loader
from torch import nn

from lightning_cnnviz import MemorySink, monitors
from lightning_cnnviz.callbacks._base import cost


def tiny() -> nn.Module:
    """Some six hundred parameters."""
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 5, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10))


ALL: dict[str, Any] = {"tiny": (tiny, (3, 24, 24), 60, 5, 3), **PROBLEMS}


def validation_pass(model: nn.Module, images: Any) -> float:
    """Seconds of the fastest of some passes."""
    times = []
    model.eval()
    with torch.no_grad():
        for _ in range(5):
            begun = time.process_time()
            for batch in images:
                model(batch[0])
            times.append(time.process_time() - begun)
    return min(times)


def looks(problem: str, kind: Any) -> tuple[float, float]:
    """Seconds of a look and of a validation pass."""
    make, shape, learn, validate, _ = ALL[problem]
    pl.seed_everything(0, verbose=False)
    module, monitor = Module(make()), kind(every_n_epochs=1, sinks=[MemorySink()])
    train, val = loader(shape, min(learn, 200), 1, shuffle=True), loader(shape, validate, 2, shuffle=False)
    spent: list[float] = []

    class After(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            spent.append(monitor._feed.costs.seconds_of(monitor, "computing"))

        def on_train_end(self, *_: Any) -> None:
            spent.append(monitor._feed.costs.seconds_of(monitor, "computing"))

    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[monitor, After()], **quiet).fit(module, train, val)
    each = [after - before for before, after in itertools.pairwise(spent[1:])]
    return statistics.median(each), validation_pass(module, val)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=[*ALL], default=[*ALL])
    parser.add_argument("--views", nargs="+", help="names of monitors; by default all of monitors() but the table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cost.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    kinds = [type(each) for each in monitors()][1:]
    print(f"torch {torch.__version__}, 1 thread, CPU, float32, seed 0")
    for problem in options.problems:
        print(f"\n{problem:32}{'a look':>10}{'validation passes':>20}")
        for kind in kinds:
            if not options.views or kind.__name__ in options.views:
                look, plain = looks(problem, kind)
                print(f"{kind.__name__:32}{look:8.3f} s{look / plain:20.1f}", flush=True)


if __name__ == "__main__":
    main()
