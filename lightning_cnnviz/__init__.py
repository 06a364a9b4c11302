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
    from lightning_cnnviz.callbacks.activation_maps import ActivationMapMonitor
    from lightning_cnnviz.callbacks.attribution import AttributionMonitor
    from lightning_cnnviz.callbacks.base import Monitor
    from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
    from lightning_cnnviz.callbacks.filters import FilterMonitor, RenormalizeFilters
    from lightning_cnnviz.callbacks.invariance import InvarianceMonitor
    from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
    from lightning_cnnviz.callbacks.layer_table import LayerTableMonitor
    from lightning_cnnviz.callbacks.maximization import MaximizationMonitor
    from lightning_cnnviz.callbacks.occlusion import OcclusionMonitor
    from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
    from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor
    from lightning_cnnviz.core.arithmetic import layer_table
    from lightning_cnnviz.core.attribution import AttributionMaps, attribute
    from lightning_cnnviz.core.deconvnet import Projection, Unit, project
    from lightning_cnnviz.core.features import tap_features
    from lightning_cnnviz.core.invariance import InvarianceCurves, measure_invariance
    from lightning_cnnviz.core.maximization import Maximization, maximize
    from lightning_cnnviz.core.occlusion import OcclusionMaps, occlude
    from lightning_cnnviz.core.probing import probe, probe_layers
    from lightning_cnnviz.core.protocols import Protocol
    from lightning_cnnviz.core.top_patches import TopPatches, mine_top_patches
    from lightning_cnnviz.core.transforms import Transform
    from lightning_cnnviz.finetune.data import ImageFolderDataModule
    from lightning_cnnviz.finetune.module import FineTuner
    from lightning_cnnviz.sinks.base import MemorySink, Sink
    from lightning_cnnviz.sinks.page import PageSink
    from lightning_cnnviz.sinks.wandb import WandbSink
    from lightning_cnnviz.studies.ablation import ablation_study
    from lightning_cnnviz.studies.digits import digits_transfer
    from lightning_cnnviz.studies.sample_efficiency import sample_efficiency

__all__ = [
    "ActivationMapMonitor",
    "AttributionMaps",
    "AttributionMonitor",
    "DeconvnetMonitor",
    "FilterMonitor",
    "FineTuner",
    "ImageFolderDataModule",
    "InvarianceCurves",
    "InvarianceMonitor",
    "LayerProbeMonitor",
    "LayerTableMonitor",
    "Maximization",
    "MaximizationMonitor",
    "MemorySink",
    "Monitor",
    "OcclusionMaps",
    "OcclusionMonitor",
    "OnlineProbeMonitor",
    "PageSink",
    "Projection",
    "Protocol",
    "RenormalizeFilters",
    "Sink",
    "TopPatches",
    "TopPatchesMonitor",
    "Transform",
    "Unit",
    "WandbSink",
    "ablation_study",
    "attribute",
    "digits_transfer",
    "layer_table",
    "maximize",
    "measure_invariance",
    "mine_top_patches",
    "occlude",
    "probe",
    "probe_layers",
    "project",
    "sample_efficiency",
    "tap_features",
]

_HOMES = {
    "ActivationMapMonitor": "callbacks.activation_maps",
    "AttributionMaps": "core.attribution",
    "AttributionMonitor": "callbacks.attribution",
    "DeconvnetMonitor": "callbacks.deconvnet",
    "FilterMonitor": "callbacks.filters",
    "FineTuner": "finetune.module",
    "ImageFolderDataModule": "finetune.data",
    "InvarianceCurves": "core.invariance",
    "InvarianceMonitor": "callbacks.invariance",
    "LayerProbeMonitor": "callbacks.layer_probe",
    "LayerTableMonitor": "callbacks.layer_table",
    "Maximization": "core.maximization",
    "MaximizationMonitor": "callbacks.maximization",
    "MemorySink": "sinks.base",
    "Monitor": "callbacks.base",
    "OcclusionMaps": "core.occlusion",
    "OcclusionMonitor": "callbacks.occlusion",
    "OnlineProbeMonitor": "callbacks.online_probe",
    "PageSink": "sinks.page",
    "Projection": "core.deconvnet",
    "Protocol": "core.protocols",
    "RenormalizeFilters": "callbacks.filters",
    "Sink": "sinks.base",
    "TopPatches": "core.top_patches",
    "TopPatchesMonitor": "callbacks.top_patches",
    "Transform": "core.transforms",
    "Unit": "core.deconvnet",
    "WandbSink": "sinks.wandb",
    "ablation_study": "studies.ablation",
    "attribute": "core.attribution",
    "digits_transfer": "studies.digits",
    "layer_table": "core.arithmetic",
    "maximize": "core.maximization",
    "measure_invariance": "core.invariance",
    "mine_top_patches": "core.top_patches",
    "occlude": "core.occlusion",
    "probe": "core.probing",
    "probe_layers": "core.probing",
    "project": "core.deconvnet",
    "sample_efficiency": "studies.sample_efficiency",
    "tap_features": "core.features",
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
