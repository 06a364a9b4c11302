"""All the monitors that suit a network and its data, within a share of the training time."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.budget import Budget
from lightning_cnnviz.callbacks._base.monitor import Monitor, MonitorOptions
from lightning_cnnviz.callbacks.activation_maps import ActivationMapMonitor
from lightning_cnnviz.callbacks.attribution import AttributionMonitor
from lightning_cnnviz.callbacks.correlation import CorrelationMonitor
from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
from lightning_cnnviz.callbacks.filters import FilterMonitor
from lightning_cnnviz.callbacks.invariance import InvarianceMonitor
from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
from lightning_cnnviz.callbacks.layer_table import LayerTableMonitor
from lightning_cnnviz.callbacks.maximization import MaximizationMonitor
from lightning_cnnviz.callbacks.occlusion import OcclusionMonitor
from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor
from lightning_cnnviz.core.data.batches import BatchFn

__all__ = ["SuitableOptions", "monitors"]

# From cheap to dear: where there is little time, more of them have a look. Those of forward passes share them.
_OF_WEIGHTS = (FilterMonitor,)
_OF_PASSES = (TopPatchesMonitor, DeconvnetMonitor, CorrelationMonitor, LayerProbeMonitor)
_OF_IMAGES = (ActivationMapMonitor, AttributionMonitor, OcclusionMonitor, InvarianceMonitor, MaximizationMonitor)
_NO_SCHEDULE = ("every_n_epochs", "every_n_steps", "epochs")
# Which options each group takes beside those of every monitor.
_DATA = ("data", "dataloader_idx", "batch_fn")


class SuitableOptions(MonitorOptions, total=False):
    """The options of `monitors`: those of every monitor, and where the images are from."""

    data: Any
    dataloader_idx: int
    batch_fn: BatchFn | None


def monitors(budget: float = 0.05, **options: Unpack[SuitableOptions]) -> list[Monitor]:
    """Return a monitor of every view, which together take at most a share of the training time.

    They look after epochs 1, 2, 5, 10, 20, 40, ... and when training ends. Where the network or its data do not suit a
    view (no convolution, no labels, no class scores, no validation data), its monitor says in one line what it found
    and what it would need, and steps aside; the others look.

    The share is one of the training time so far, without looks. A look that would exceed it, going by what this
    monitor's looks have cost, is put off to the next of its epochs. How dear a first look is shows only when it is
    taken; training then makes up for it. The last look is always taken, and stands beside the share. Before training
    there is the table of layers. `OnlineProbeMonitor`, which costs a part of each step instead of looks, is left out.

    Args:
        budget: The share, above 0 and up to 1.
        options: See `Monitor`, for another schedule, too; `data`, `dataloader_idx` and `batch_fn` as `FeedMonitor`'s.

    Raises:
        ValueError: The budget is no such share, or an option is wrong.

    Example:
        >>> from lightning_cnnviz import MemorySink, monitors
        >>> callbacks = monitors(budget=0.1, sinks=[MemorySink()])
        >>> [type(each).__name__ for each in callbacks][:3]
        ['LayerTableMonitor', 'FilterMonitor', 'TopPatchesMonitor']
    """
    allowance = Budget(budget)
    given: dict[str, Any] = dict(options)
    if all(given.get(name) is None for name in _NO_SCHEDULE):
        given["epochs"] = "log"
    images = {name: given.pop(name) for name in _DATA if name in given}
    timeless = {name: value for name, value in given.items() if name not in _NO_SCHEDULE}
    chosen: list[Monitor] = [LayerTableMonitor(**timeless, **images)]
    chosen += [kind(**given) for kind in _OF_WEIGHTS]
    chosen += [kind(**given, **images) for kind in (*_OF_PASSES, *_OF_IMAGES)]
    for monitor in chosen:
        monitor.share(allowance)
    return chosen
