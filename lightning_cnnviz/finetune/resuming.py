"""What a checkpoint needs beside weights, so that a run that is resumed gives those of one that was not interrupted."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered_objects, rank, ranks

__all__ = ["resume_epoch", "resume_run", "run_state"]

log = logging.getLogger("lightning_cnnviz")


def run_state(trainer: Any, plateau_epoch: int) -> dict[str, Any]:
    """Return the random states of every rank, and on what `ReduceLROnPlateau` is still to step in this epoch.

    Every rank must call it. All of it can be read with `weights_only=True`.

    Args:
        trainer: While it fits.
        plateau_epoch: The last epoch in which it has stepped, -1 for none.
    """
    return {"random": gathered_objects(_random_state(trainer)), "plateau": _due(trainer, plateau_epoch)}


def resume_run(trainer: Any, state: dict[str, Any]) -> None:
    """Go on from a `run_state`; call it when all else is ready for the first epoch."""
    # Lightning writes checkpoints before it steps these, and does not make up for it.
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor in state["plateau"]:
            config.scheduler.step(state["plateau"][config.monitor])
    if len(state["random"]) != ranks():
        log.warning("resumed on %d processes, not on %d: random numbers differ", ranks(), len(state["random"]))
        return
    _set_random_state(trainer, state["random"][rank()])
    # The first epoch's iterator has been made, and has drawn.
    iter(trainer.fit_loop._data_fetcher)


def resume_epoch(trainer: Any, state: dict[str, Any]) -> None:
    """Go on from a `run_state` in the first epoch that begins, if Lightning makes that epoch's iterator now.

    So it is where the checkpoint was written before its epoch was over: this epoch is ended first, without a batch.
    """
    made = trainer.current_epoch > 0 and not trainer.fit_loop.is_resuming and not trainer.fit_loop.epoch_loop.restarting
    if made and len(state["random"]) == ranks():
        _set_random_state(trainer, state["random"][rank()])


def _due(trainer: Any, plateau_epoch: int) -> dict[str, float]:
    loop, epoch = trainer.fit_loop.epoch_loop, trainer.current_epoch
    progress = trainer.fit_loop.epoch_progress.current
    if plateau_epoch >= epoch or progress.ready == progress.completed or not loop._num_ready_batches_reached():
        return {}
    due = {}
    for config in trainer.lr_scheduler_configs:
        value = trainer.callback_metrics.get(config.monitor)
        turn = config.interval == "epoch" and (epoch + 1) % config.frequency == 0
        if config.reduce_on_plateau and turn and value is not None:
            due[config.monitor] = float(value)
    return due


def _random_state(trainer: Any) -> dict[str, Any]:
    version, numbers, normal = random.getstate()
    kind, keys, place, has_normal, cached = np.random.get_state()
    return {
        "python": [version, torch.tensor(numbers), normal],
        "numpy": [str(kind), torch.tensor(keys.astype(np.int64)), int(place), int(has_normal), float(cached)],  # type: ignore
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "loaders": [generator.get_state() for generator in _generators(trainer)],
    }


def _set_random_state(trainer: Any, state: dict[str, Any]) -> None:
    version, numbers, normal = state["python"]
    random.setstate((version, tuple(numbers.tolist()), normal))
    kind, keys, place, has_normal, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_normal, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_initialized() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes(each) for each in state["cuda"]])
    for generator, own in zip(_generators(trainer), state["loaders"], strict=False):
        generator.set_state(_bytes(own))


def _bytes(state: Tensor) -> Tensor:
    return state.cpu()  # a checkpoint may have been read to a GPU


def _generators(trainer: Any) -> list[torch.Generator]:
    """Those of the training loaders, which draw the order of images."""
    combined = trainer.fit_loop._combined_loader
    found: dict[int, torch.Generator] = {}
    for loader in [] if combined is None else combined.flattened:
        for owner in (loader, getattr(loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())
