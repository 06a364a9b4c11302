"""Computation on tensors and plain modules: no Lightning, no logger, no picture."""

from lightning_cnnviz.core.arithmetic import LayerTable, layer_table, output_size, parameter_count, same_padding
from lightning_cnnviz.core.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.top_patches import LayerTopPatches, TopPatches, diagnose, mine_top_patches

__all__ = [
    "LayerNotFoundError",
    "LayerTable",
    "LayerTopPatches",
    "TopPatches",
    "diagnose",
    "layer_table",
    "mine_top_patches",
    "output_size",
    "parameter_count",
    "same_padding",
    "select_layers",
]
