"""Fine-tuning: a network with a new head, trained in part or in whole, and its data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cnnviz.finetune.data import ImageFolderDataModule
    from lightning_cnnviz.finetune.module import FineTuner

__all__ = ["FineTuner", "ImageFolderDataModule"]

_HOMES = {"FineTuner": "module", "ImageFolderDataModule": "data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
