"""The numbers of looks, where a trainer's other callbacks find them: early stopping, checkpoints, schedulers."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lightning_cnnviz.callbacks._base.schedule import Schedule
from lightning_cnnviz.sinks.series import key_part

__all__ = ["publish", "refuse_too_early", "warn_of_unknown"]

log = logging.getLogger("lightning_cnnviz")


def publish(trainer: Any, numbers: Mapping[str, float]) -> None:
    """Put the numbers of a look where Lightning's own are, `trainer.callback_metrics`; on every rank the same."""
    device = trainer.strategy.root_device
    trainer.callback_metrics.update({key: torch.tensor(float(value), device=device) for key, value in numbers.items()})


def refuse_too_early(who: str, prefixes: Mapping[str, Any], owner: Any, trainer: Any, schedule: Schedule) -> None:
    """Refuse a callback, or a learning rate's schedule, that asks for a monitor's number before there is one.

    Also one that asks before the newest number is there.

    Args:
        who: The monitor, for messages.
        prefixes: Of each monitor of the trainer, by what the keys of its numbers begin with.
        owner: The monitor.
        trainer: The trainer, when every callback is set up.
        schedule: When the monitor looks.

    Raises:
        ValueError: There is such a one; says what would do.
    """
    for place, callback in enumerate(trainer.callbacks):
        key = getattr(callback, "monitor", None)
        if not isinstance(key, str) or _owner_of(key, prefixes) is not owner or not getattr(callback, "strict", True):
            continue
        asked = f'{type(callback).__name__}(monitor="{key}")'
        if schedule.epochs == "last":
            raise ValueError(_only_at_the_end(asked, who))
        at_validation, option = _asks_at_validation(callback, trainer)
        if at_validation and not owner.looks_at_validation:
            raise ValueError(
                f"{asked} asks when validation ends, and {who} looks when the training epoch ends: give "
                f"{type(callback).__name__}({option}=True)"
            )
        if at_validation and place < trainer.callbacks.index(owner.leader):
            raise ValueError(f"{asked} asks before {who} has looked: put it behind the monitors in callbacks=[...]")
        first = _first_asked(callback, trainer, at_validation)
        looks = schedule.first_epoch(trainer)
        if first is not None and looks is not None and looks > first:
            raise ValueError(_too_seldom(asked, first, who, looks))
    for config in trainer.lr_scheduler_configs:
        asks = config.reduce_on_plateau and config.interval == "epoch" and config.strict
        if not asks or _owner_of(str(config.monitor), prefixes) is not owner:
            continue
        asked = f'{type(config.scheduler).__name__}, by "monitor": "{config.monitor}",'
        looks = schedule.first_epoch(trainer)
        if schedule.epochs == "last":
            raise ValueError(_only_at_the_end(asked, who))
        if (looks or 0) > config.frequency:
            raise ValueError(_too_seldom(asked, config.frequency, who, looks))


def warn_of_unknown(who: str, prefixes: Mapping[str, Any], owner: Any, trainer: Any, layers: Iterable[str]) -> None:
    """Warn of a callback, or a learning rate's schedule, that asks for a number which a monitor will not have.

    Its keys begin with the monitor's. Lightning itself would say so when the first epoch has passed, or never.

    Args:
        who: The monitor, for messages.
        prefixes: Of each monitor of the trainer, by what the keys of its numbers begin with.
        owner: The monitor.
        trainer: The trainer, when every callback is set up.
        layers: The names that layers of its network have.
    """
    names = owner.number_names
    parts = [key_part(layer) for layer in layers if layer]
    for asked, key in _asking(trainer) if names else ():
        if _owner_of(key, prefixes) is not owner:
            continue
        prefix = max((each for each in prefixes if key.startswith(f"{each}/")), key=len)
        *within, name = key.removeprefix(f"{prefix}/").split("/")
        meant = [*(_closest(part, parts, 0.8) for part in within), _closest(name, names, 0)]
        if meant != [*within, name]:
            log.warning(
                '%s asks for a number that %s does not have: did you mean "%s"? Its numbers end in %s',
                asked,
                who,
                "/".join([prefix, *meant]),
                ", ".join(names),
            )


def _asking(trainer: Any) -> Iterator[tuple[str, str]]:
    """Who goes by a number, as it is written, and the number's key."""
    for callback in trainer.callbacks:
        key = getattr(callback, "monitor", None)
        if isinstance(key, str):
            yield f'{type(callback).__name__}(monitor="{key}")', key
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            yield f'{type(config.scheduler).__name__}, by "monitor": "{config.monitor}",', str(config.monitor)


def _closest(part: str, names: Sequence[str], cutoff: float) -> str:
    """Return the name that a part of a key was meant to be: itself, unless it is only much like one."""
    return part if part in names else next(iter(difflib.get_close_matches(part, names, 1, cutoff)), part)


def _only_at_the_end(asked: str, who: str) -> str:
    return (
        f'{asked} asks while training goes on, and {who} looks when it has ended (epochs="last"): give '
        f"{who.split(' ')[0]}(every_n_epochs=1)"
    )


def _too_seldom(asked: str, first: int, who: str, looks: int | None) -> str:
    return (
        f"{asked} asks after epoch {first}, and {who} does not look before epoch {looks}: give "
        f"{who.split(' ')[0]}(every_n_epochs={first})"
    )


def _owner_of(key: str, prefixes: Mapping[str, Any]) -> Any:
    """Whose number it is: of several, the one with the longest prefix."""
    fitting = [prefix for prefix in prefixes if key.startswith(f"{prefix}/")]
    return prefixes[max(fitting, key=len)] if fitting else None


def _asks_at_validation(callback: Any, trainer: Any) -> tuple[bool, str]:
    """Whether it asks when validation ends instead of when the epoch does, and the option that says so."""
    if hasattr(callback, "_should_save_on_train_epoch_end"):
        return not callback._should_save_on_train_epoch_end(trainer), "save_on_train_epoch_end"
    return not getattr(callback, "_check_on_train_epoch_end", True), "check_on_train_epoch_end"


def _first_asked(callback: Any, trainer: Any, at_validation: bool) -> int | None:
    """After which epoch it asks first; None where it does not go by epochs."""
    every = getattr(callback, "_every_n_epochs", 1)
    if every < 1:
        return None
    validated = (trainer.check_val_every_n_epoch or 1) if at_validation else 1
    return int(max(every, validated))
