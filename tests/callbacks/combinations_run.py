"""Run by test_combinations.py, also in several processes: fits in many ways of training, with all monitors or none."""

from __future__ import annotations

import os
import random
import warnings
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from callbacks.injection_run import CHEAP, group, loader
from callbacks.littlenet import LittleNet, quiet_trainer
from callbacks.test_contract import MONITORS, takes
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_cnnviz import MemorySink, Monitor
from lightning_cnnviz.core.data.distributed import rank


class Way(NamedTuple):
    """A way to train."""

    precision: Any = "32-true"
    accumulate: int = 1
    optimizer: str = "SGD"
    dropout: float = 0.3
    ranks: int = 1
    more: str = ""


# What else a trainer or a module may be told.
MORE: dict[str, dict[str, Any]] = {
    "": {},
    "clipped": {"gradient_clip_val": 0.1},
    "seldom": {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
    "often": {"val_check_interval": 2},
    "frozen": {},
    "no inference mode": {"inference_mode": False},
    "deterministic": {"deterministic": True},
}
WAYS = [Way(*each) for each in product(["32-true", "bf16-mixed"], [1, 3], ["SGD", "AdamW"], [0.0, 0.3], [1, 2])]
WAYS += [Way(optimizer="LBFGS"), Way("64-true", optimizer="RMSprop"), Way("bf16-true"), Way("64-true", 3, ranks=2)]
WAYS += [Way(optimizer="AdamW", accumulate=2, more=more) for more in MORE if more]
QUICK = [
    Way("bf16-mixed", 3, "AdamW"),
    Way("32-true", 1, "SGD", 0.3, 2),
    Way("64-true", optimizer="RMSprop"),
    Way(optimizer="AdamW", accumulate=2, more="frozen"),
]


class Trained(LittleNet):
    """Trains in one of the ways."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.features[6].p = way.dropout  # type: ignore[assignment]
        if way.more == "frozen":
            self.features[0].requires_grad_(False)

    def configure_optimizers(self) -> Any:
        kind, rate = getattr(torch.optim, self.way.optimizer), 1e-2
        options = {"momentum": 0.9} if self.way.optimizer == "SGD" else {}
        optimizer = kind([each for each in self.parameters() if each.requires_grad], lr=rate, **options)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


class Spy(pl.Callback):
    """Keeps, at each batch and at the end, all that a look could disturb."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        modules, parameters = [*pl_module.modules()], [*pl_module.parameters()]
        hooks = [
            [
                len(value)
                for name, value in vars(module).items()
                if name.endswith("_hooks") and hasattr(value, "__len__")
            ]
            for module in modules
        ]
        self.seen.append(
            {
                "modes": [module.training for module in modules],
                "hooks": hooks,
                "hooks of parameters": [len(each._backward_hooks or ()) for each in parameters],
                "requires_grad": [each.requires_grad for each in parameters],
                "grad": [None if each.grad is None else each.grad.clone() for each in parameters],
                "torch": torch.get_rng_state(),
                "numpy": np.random.get_state()[1:3],  # type: ignore[index]
                "python": random.getstate(),
                "default": (str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
            }
        )

    on_train_end = on_train_batch_start


def watching() -> list[Monitor]:
    """Every monitor there is, as cheap as it goes."""
    options = {"sinks": [MemorySink()], "on_error": "raise"}
    every = {"every_n_epochs": 1}
    return [
        kind(**CHEAP.get(kind.__name__, {}), **options, **(every if takes(kind, "epochs") else {})) for kind in MONITORS
    ]


def left_by(way: Way, monitors: list[Monitor]) -> dict[str, Any]:
    """Train, and return all that training has left behind, and what it went through."""
    pl.seed_everything(3, verbose=False)
    model, spy = Trained(way), Spy()
    options = {"precision": way.precision, "accumulate_grad_batches": way.accumulate, **MORE[way.more]}
    if way.ranks > 1:
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), process_group_backend="gloo")
        options |= {"strategy": strategy, "devices": way.ranks}
    trainer = quiet_trainer(callbacks=[*monitors, spy], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about such small data
        trainer.fit(model, loader(14), loader(6))
    if way.more == "deterministic":
        torch.use_deterministic_algorithms(False)
    return {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "steps": trainer.global_step,
        "on the way": spy.seen,
    }


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two such states are not the same, to the bit."""
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__}, {type(other).__name__}"]
    if isinstance(one, (Tensor, np.ndarray)):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        same = one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        return [] if same else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {set(one) ^ set(other)}"]
        return [text for key in one for text in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)}, {len(other)}"]
        return [
            text for i, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{where}[{i}]")
        ]
    return [] if one == other else [f"{where}: {one}, {other}"]


def compared(way: Way, *, draws: bool = False) -> list[str]:
    """What differs with all monitors, and which of them has failed or seen nothing; pictures take most of the time."""
    seen: list[Monitor] = []

    def keep(monitor: Monitor, result: Any, drawn: Any) -> None:
        seen.append(monitor)
        if draws:
            show(monitor, result, drawn)

    show, monitors = Monitor._show, watching()
    Monitor._show = keep  # type: ignore[method-assign]
    try:
        plain, watched = left_by(way, []), left_by(way, monitors)
    finally:
        Monitor._show = show  # type: ignore[method-assign]
    idle = [type(each).__name__ for each in monitors if each.failed or (each not in seen and rank() == 0)]
    return differences(plain, watched) + [f"{name} has seen nothing" for name in idle]


def main(own: int, ranks: int, folder: Path, numbers: list[int]) -> None:
    """Compare in some of the ways, on one of several ranks."""
    torch.set_num_threads(1)
    os.environ["CNNVIZ_DRAWING"] = "inline"
    with group(own, ranks, folder):
        for number in numbers:
            way = WAYS[number]
            found = compared(way)
            assert found == [], (way, own, found[:20])
