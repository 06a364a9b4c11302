"""Run by test_injected_failures.py in two processes: `python injection_run.py RANK RANKS FOLDER PART PARTS [CASES]`.

Each process fits a small network again and again. Each time one function of ours, the first time that it is called once
training has begun, fails on one of the ranks. Which functions there are is found by looking which ones a fit calls.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import lightning_cnnviz
import lightning_cnnviz.core.network.hooks as hooks_module
from lightning_cnnviz import MemorySink, Monitor
from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor

PACKAGE = str(Path(lightning_cnnviz.__file__).parent)
TIMEOUT = 300  # seconds until a rank that waits for the other gives up; the other may be slow

# What makes a look cheap, by monitor.
CHEAP: dict[str, dict[str, Any]] = {
    "InvarianceMonitor": {"transforms": ["rotation"], "images": 2},
    "LayerProbeMonitor": {"images": 12, "heads": ["softmax"], "layers": ["features.0"]},
    "MaximizationMonitor": {"steps": 1, "starts": 1, "features": 1, "classes": 1, "images": 2, "invariance": 0},
    "OcclusionMonitor": {"size": 7, "stride": 7, "images": 2},
    "ActivationMapMonitor": {"images": 2},
    "AttributionMonitor": {"images": 2},
    "DeconvnetMonitor": {"k": 1, "features": 1},
}
ONCE = {"LayerTableMonitor"}  # look before training alone

# The meetings themselves, and what turns a failure into a report: what fails there is not caught by itself.
SPARED = ("core/data/distributed.py", "callbacks/_base/schedule.py")
SPARED_NAMES = ("guard", "fail", "failed", "failure", "for_all", "agree", "is_due", "well_everywhere", "_with_all")
SPARED_NAMES += ("due", "due_after", "due_at_end", "_leads", "setup", "teardown", "state_key", "_affords")
SPARED_NAMES += ("tell", "in_step", "_is_first", "abandon")


class Stage(NamedTuple):
    """A function of ours, by its file and name."""

    file: str
    name: str


class Case(NamedTuple):
    """A monitor, and how it looks."""

    title: str
    make: Callable[[], Monitor]


def cases() -> Iterator[Case]:
    """Every monitor that is exported; those of passes also in passes of their own, and by steps."""
    for name in lightning_cnnviz.__all__:
        kind = getattr(lightning_cnnviz, name)
        if not (isinstance(kind, type) and issubclass(kind, Monitor)) or kind is Monitor or name in ONCE:
            continue
        options = {**CHEAP.get(name, {}), "sinks": [MemorySink()]}
        ways: dict[str, dict[str, Any]] = {"": {"every_n_epochs": 1}, " by steps": {"every_n_steps": 2}}
        if issubclass(kind, FeedMonitor):
            ways[" on data"] = {"every_n_epochs": 1, "data": loader(6)}
        for way, more in ways.items():
            yield Case(name + way, lambda kind=kind, options={**options, **more}: kind(**options))


def loader(count: int) -> DataLoader[Any]:
    """Images of two classes in turn."""
    return DataLoader(TensorDataset(dataset(count, seed=1).tensors[0], torch.arange(count) % 2), batch_size=2)


class Tracing(pl.Callback):
    """Calls a function whenever one of ours is called, once training has begun."""

    def __init__(self, on_call: Callable[[Stage], None]) -> None:
        self.on_call = on_call

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, argument: Any) -> None:
        stage = stage_of(frame.f_code)
        if stage is not None:
            self.on_call(stage)


def stage_of(code: CodeType) -> Stage | None:
    """The stage that some code is; None for what is not ours, or is spared."""
    if not code.co_filename.startswith(PACKAGE):
        return None
    stage = Stage(code.co_filename[len(PACKAGE) + 1 :], getattr(code, "co_qualname", code.co_name))
    name = stage.name.split(".")[-1]
    spared = stage.file in SPARED or name.startswith("<") or name in SPARED_NAMES or name.startswith("on_")
    return None if spared else stage


def fitted(case: Case | None, on_call: Callable[[Stage], None] | None) -> torch.Tensor:
    """All that a look could disturb, after a fit: weights, optimizer, modes, hooks, chance, and the process."""
    pl.seed_everything(3, verbose=False)
    model = LittleNet()
    callbacks: list[Any] = [] if on_call is None else [Tracing(on_call)]
    if case is not None:
        callbacks.append(case.make())
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), process_group_backend="gloo")
    trainer = quiet_trainer(
        callbacks=callbacks,
        strategy=strategy,
        devices=int(os.environ["WORLD_SIZE"]),
        max_epochs=2,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(model, loader(8), loader(6))
    finally:
        sys.settrace(None)
    momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
    modes = [float(module.training) for module in model.modules()]
    modes += [float(parameter.requires_grad) for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    chance = [torch.rand(3), torch.from_numpy(np.random.rand(3)), torch.tensor([random.random()])]
    process = [hooks_module._ANALYSIS.get() is None, torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()]
    plain = [torch.tensor(each) for each in (modes, hooks, process)]
    state = [*model.state_dict().values(), *momenta, *chance, *plain]
    return torch.cat([value.detach().flatten().double() for value in state])


def walked(case: Case) -> list[Stage]:
    """The stages that a fit with a monitor goes through on this rank."""
    stages: dict[Stage, None] = {}
    fitted(case, stages.setdefault)  # type: ignore[arg-type]
    return list(stages)


def failing(stage: Stage) -> Callable[[Stage], None]:
    """Fail once, when a stage begins."""
    left = [True]

    def on_call(called: Stage) -> None:
        if left and called == stage:
            left.clear()
            raise RuntimeError(f"{stage.name} was made to fail")

    return on_call


@contextmanager
def group(rank: int, ranks: int, folder: Path) -> Iterator[None]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=TIMEOUT)
    )
    yield
    torch.distributed.destroy_process_group()


def everyones(own: Any) -> list[Any]:
    whole: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(whole, own)
    return whole


def main(rank: int, ranks: int, folder: Path, part: int, parts: int, only: str = "") -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    out = (folder / f"{rank}.jsonl").open("w", buffering=1)
    with group(rank, ranks, folder):
        plain = fitted(None, None)
        number, names = 0, set[str]()
        seen: set[tuple[int, Stage]] = set()
        for case in cases():
            if not re.search(only, case.title):
                continue
            stages = everyones(walked(case))
            names.update(stage.name for own in stages for stage in own)
            for fails, own in enumerate(stages):
                for stage in own:
                    if (fails, stage) in seen and not stage.file.startswith("callbacks"):
                        continue  # what monitors share fails once
                    seen.add((fails, stage))
                    number += 1
                    if number % parts != part:
                        continue
                    (folder / f"{rank}.now").write_text(f"{case.title}, rank {fails}: {stage}")  # if it never ends
                    weights = fitted(case, failing(stage) if rank == fails else None)
                    same = all(torch.equal(weights, other) for other in [plain, *everyones(weights)])
                    told = {"case": case.title, "rank": fails, "stage": stage.name, "same": same}
                    print(json.dumps(told), file=out)
        (folder / "stages.txt").write_text("\n".join(sorted(names)))
