"""Monitors: Lightning callbacks that say when and on which layers to look."""

from lightning_cnnviz.callbacks.base import Monitor
from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor

__all__ = ["DeconvnetMonitor", "Monitor", "TopPatchesMonitor"]
