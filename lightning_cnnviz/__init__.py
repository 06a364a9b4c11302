"""Lightning callbacks that show what a convnet learns, while it trains.

    from lightning_cnnviz import TopPatchesMonitor

    trainer = Trainer(logger=WandbLogger(project="flowers"), callbacks=[TopPatchesMonitor()])

The names below are loaded when they are first used, so that importing `lightning_cnnviz.core` loads neither Lightning
nor wandb.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cnnviz.callbacks.base import Monitor
    from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
    from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor
    from lightning_cnnviz.core.deconvnet import Projection, Unit, project
    from lightning_cnnviz.core.top_patches import TopPatches, mine_top_patches
    from lightning_cnnviz.sinks.base import MemorySink, Sink
    from lightning_cnnviz.sinks.page import PageSink
    from lightning_cnnviz.sinks.wandb import WandbSink

__all__ = [
    "DeconvnetMonitor",
    "MemorySink",
    "Monitor",
    "PageSink",
    "Projection",
    "Sink",
    "TopPatches",
    "TopPatchesMonitor",
    "Unit",
    "WandbSink",
    "mine_top_patches",
    "project",
]

_HOMES = {
    "DeconvnetMonitor": "callbacks.deconvnet",
    "MemorySink": "sinks.base",
    "Monitor": "callbacks.base",
    "PageSink": "sinks.page",
    "Projection": "core.deconvnet",
    "Sink": "sinks.base",
    "TopPatches": "core.top_patches",
    "TopPatchesMonitor": "callbacks.top_patches",
    "Unit": "core.deconvnet",
    "WandbSink": "sinks.wandb",
    "mine_top_patches": "core.top_patches",
    "project": "core.deconvnet",
}

try:
    __version__ = version("lightning_cnnviz")
except PackageNotFoundError:  # used from a checkout that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
