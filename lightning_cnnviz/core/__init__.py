"""Computation on tensors and plain modules: no Lightning, no logger, no picture."""

from lightning_cnnviz.core.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.top_patches import LayerTopPatches, TopPatches, diagnose, mine_top_patches

__all__ = ["LayerNotFoundError", "LayerTopPatches", "TopPatches", "diagnose", "mine_top_patches", "select_layers"]
