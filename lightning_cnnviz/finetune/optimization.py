"""Optimizers and schedulers by name, and the parameter groups of a network whose stages learn at their own rates."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lightning_cnnviz.core.network.suggestions import closest_names, did_you_mean, suggestion
from lightning_cnnviz.finetune.freezing import Stages, is_norm
from lightning_cnnviz.finetune.run_length import RunLength

__all__ = [
    "check_monitor",
    "check_scheduler",
    "find_class",
    "make_optimizer",
    "make_scheduler",
    "parameter_groups",
    "warmup_cosine",
]

_COSINE = "cosine"
_OF_LIGHTNING = ("interval", "frequency", "monitor")  # options that say when it steps, and on what


def find_class(name: str, home: Any, kind: type, argument: str) -> Callable[..., Any]:
    """Return the class that a name means: one of `home`, or a class path.

    Raises:
        ValueError: There is none, or it is of another kind.
    """
    chosen: Any = getattr(home, name, None)
    if chosen is None and "." in name:
        path, _, last = name.rpartition(".")
        try:
            chosen = getattr(importlib.import_module(path), last, None)
        except ImportError as error:
            raise ValueError(f"{argument}='{name}': cannot import '{path}' ({error})") from error
    if not (isinstance(chosen, type) and issubclass(chosen, kind)):
        names = [each for each, value in vars(home).items() if isinstance(value, type) and issubclass(value, kind)]
        same_letters = [each for each in names if each.lower() == name.lower()]
        hint = f" {did_you_mean(same_letters or closest_names(name, names))}".rstrip()
        raise ValueError(
            f"{argument}='{name}': {home.__name__} has no such {kind.__name__}.{hint} "
            "A class path, such as package.module.Name, is taken as well"
        )
    return chosen


def parameter_groups(
    model: nn.Module, stages: Stages, layer_decay: float, never: Collection[str], *, decays: bool
) -> list[dict[str, Any]]:
    """Return every parameter that is ever trained, in groups by stage; biases and norms apart, without weight decay.

    Each group says in `lr_scale` by how much its learning rate differs from the head's.
    """
    parameters = dict(model.named_parameters())
    plain = {id(value) for module in model.modules() if is_norm(module) for value in module.parameters(recurse=False)}
    groups = []
    for number, names in enumerate(stages.parameters):
        parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name in names:
            value = parameters[name]
            if name not in never:
                parts[value.ndim > 1 and id(value) not in plain].append(value)
        for decayed, values in parts.items():
            if values:
                more: dict[str, Any] = {} if decayed or not decays else {"weight_decay": 0.0}
                groups.append({"params": values, "lr_scale": layer_decay ** (stages.top - number)} | more)
    return groups


def make_optimizer(
    optimizer: str | Callable[..., Any],
    groups: Callable[[bool], list[dict[str, Any]]],
    lr: float,
    options: dict[str, Any],
) -> Optimizer:
    """Make an optimizer of parameter groups, given whether it knows weight decay; scale the groups' learning rates.

    Raises:
        TypeError: It does not take these options.
        ValueError: A callable is given together with options.
    """
    if isinstance(optimizer, str):
        kind = find_class(optimizer, torch.optim, Optimizer, "optimizer")
        takes = inspect.signature(kind).parameters
        check_options(kind, {"params": None, "lr": lr, **options}, f"optimizer_options of {optimizer}")
        made = kind(groups("weight_decay" in takes), lr=lr, **options)
    else:
        made = optimizer(groups(True))
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer={optimizer!r} returns {type(made).__name__}, which is no torch.optim.Optimizer")
    for group in made.param_groups:
        group["lr"] = group["lr"] * group.pop("lr_scale", 1.0)
    return made


def check_options(kind: Callable[..., Any], options: Mapping[str, Any], what: str) -> None:
    """Refuse options that a class does not take.

    Raises:
        ValueError: One is unknown.
    """
    takes = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return
    for name in options:
        if name not in takes:
            raise ValueError(f"{what}: there is no option '{name}'. {suggestion(name, takes)}".rstrip())


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return by what a step's learning rate is multiplied: rising linearly, then falling to zero along a cosine.

    Example:
        >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_scheduler(
    scheduler: str, optimizer: Optimizer, options: Mapping[str, Any], length: RunLength, warmup_epochs: float
) -> dict[str, Any]:
    """Make a scheduler, with when Lightning is to step it.

    Args:
        scheduler: `"cosine"`, a name in torch.optim.lr_scheduler, or a class path.
        optimizer: What it schedules.
        options: Its own; `interval` (`"epoch"` or `"step"`), `frequency` and `monitor` are Lightning's.
        length: Of the run; asked only where the scheduler needs it.
        warmup_epochs: Length of the cosine's warm-up.

    Raises:
        ValueError: There is no such scheduler or option.
    """
    own = {name: value for name, value in options.items() if name not in _OF_LIGHTNING}
    settings: dict[str, Any] = {name: value for name, value in options.items() if name in _OF_LIGHTNING}
    if scheduler == _COSINE:
        rising, whole = length.warmup_steps(warmup_epochs), length.steps
        return {"scheduler": LambdaLR(optimizer, lambda step: warmup_cosine(step, rising, whole)), "interval": "step"}
    kind = find_scheduler(scheduler)
    if kind is torch.optim.lr_scheduler.OneCycleLR:
        settings.setdefault("interval", "step")
        own.setdefault("max_lr", [group["lr"] for group in optimizer.param_groups])
        if "epochs" not in own:
            own.setdefault("total_steps", length.steps)
    if "T_max" in inspect.signature(kind).parameters and "T_max" not in own:
        own["T_max"] = length.steps if settings.get("interval") == "step" else length.epochs
    if kind is torch.optim.lr_scheduler.ReduceLROnPlateau:
        settings.setdefault("monitor", "val/loss")
    return {"scheduler": kind(optimizer, **own), "interval": "epoch", **settings}


def find_scheduler(name: str) -> Callable[..., Any]:
    """Return a scheduler's class.

    Raises:
        ValueError: There is none of this name.
    """
    if "." not in name and not hasattr(torch.optim.lr_scheduler, name):
        near = suggestion(name, [_COSINE])
        if near:
            raise ValueError(f"scheduler='{name}': there is no such scheduler. {near}")
    return find_class(name, torch.optim.lr_scheduler, LRScheduler, "scheduler")


def check_scheduler(scheduler: str | None, options: Mapping[str, Any]) -> None:
    """Refuse a scheduler that does not exist, and options that it does not take.

    Raises:
        ValueError: It is so.
    """
    if scheduler is None or scheduler == _COSINE:
        if options:
            raise ValueError(f"scheduler_options={dict(options)}: scheduler={scheduler!r} has none")
        return
    own = {name: value for name, value in options.items() if name not in _OF_LIGHTNING}
    check_options(find_scheduler(scheduler), own, f"scheduler_options of {scheduler}")


def check_monitor(scheduler: str | None, options: Mapping[str, Any], trainer: Any) -> None:
    """Refuse a scheduler that waits for a metric of validation where a trainer does not validate.

    Raises:
        ValueError: It is so.
    """
    if scheduler is None or scheduler == _COSINE:
        return
    plateau = find_scheduler(scheduler) is torch.optim.lr_scheduler.ReduceLROnPlateau
    monitor = options.get("monitor", "val/loss")
    if not plateau or not str(monitor).startswith("val/"):
        return
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    why = None
    if not trainer.enable_validation or not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        why = "this trainer does not validate: give it validation images"
    elif every is not None and every > int(options.get("frequency", 1)) and (epochs is None or epochs > 0):
        why = f"this trainer validates every {every} epochs: give scheduler_options={{'frequency': {every}}}"
    if why is not None:
        raise ValueError(f"scheduler='{scheduler}' steps by '{monitor}', but {why}, or monitor='train/loss'")
