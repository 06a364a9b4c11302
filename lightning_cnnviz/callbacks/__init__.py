"""Monitors: Lightning callbacks that say when and on which layers to look."""

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

__all__ = [
    "ActivationMapMonitor",
    "AttributionMonitor",
    "DeconvnetMonitor",
    "FilterMonitor",
    "InvarianceMonitor",
    "LayerProbeMonitor",
    "LayerTableMonitor",
    "MaximizationMonitor",
    "Monitor",
    "OcclusionMonitor",
    "OnlineProbeMonitor",
    "RenormalizeFilters",
    "TopPatchesMonitor",
]
