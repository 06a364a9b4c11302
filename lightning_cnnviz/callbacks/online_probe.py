"""What each layer knows, by linear probes that learn along with the network."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor, FeedOptions
from lightning_cnnviz.callbacks._base.first_step import abandon, in_step
from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.trainer import is_compiled, refuse_compiled
from lightning_cnnviz.callbacks.layer_probe import LAYERS
from lightning_cnnviz.core.data.batches import read_batch
from lightning_cnnviz.core.network.calling import GivenBatch, give
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.layers import evenly, image_axes, select_layers
from lightning_cnnviz.core.probing.dataset import why_no_labels
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores
from lightning_cnnviz.core.probing.online_heads import HeadTests, OnlineHeads, Targets

__all__ = ["OnlineProbeMonitor"]


class OnlineProbeMonitor(FeedMonitor):
    """Shows what each layer already knows, by a linear probe a layer that learns along with the network.

    It tells classes, several labels, values, or of label maps the class of some pixels, as `LayerProbeMonitor` does,
    from features of the training step's own forward pass, pooled and cut off from its graph; the probes have an
    optimizer of their own. Their accuracies over the validation set stand under `online_probe/accuracy by depth` (or
    under the other measure's name), each under `online_probe/<layer>/accuracy`. It costs a few percent of a training
    step; but such probes trail behind a network that changes.

    Probes learn on over epochs and, from checkpoints, over runs. Each rank's learn from its own images and are
    averaged when validation begins. Of several calls of the network in a step, the first with an image a label counts.
    Heads that have labels under their own names in the batch have probes and series of their own.

    Args:
        layers: See `LayerProbeMonitor`.
        pool: Up to how many features of each layer, by average pooling; a channel is not pooled away.
        options: See `FeedMonitor`; `data` is what probes are tested on, instead of the validation set.

    Raises:
        ValueError: At set-up or in the first step: no such layer, no labels, a compiled network, or, outside of fit,
            probes that have learned nothing.
    """

    view, axes = "online_probe", (1, 2, 3)

    def __init__(
        self, layers: str | list[str] | None = None, *, pool: int = 512, **options: Unpack[FeedOptions]
    ) -> None:
        super().__init__(**options)
        if pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer")
        self.layers, self.pool = layers, pool
        self._heads: OnlineHeads | None = None
        self._pass = ExitStack()

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers, and keep the probes of a fit before."""
        layers = select_layers(network, "conv" if self.layers is None else self.layers)
        layers = evenly(layers, LAYERS) if self.layers is None else layers
        learned = self._heads.learned if self._heads else None
        self._heads = OnlineHeads(partial(MapReader, network, layers, pool=self.pool), learned)

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Start anew in fit; elsewhere refuse probes that have learned nothing."""
        super().check_trainer(trainer, stage)
        network = self.network_of(trainer.lightning_module)
        refuse_compiled(self._who, network, compiled=is_compiled(trainer, network))
        if stage == "fit":
            self._learning.learned = {}  # a checkpoint, if there is one, is loaded after set-up
        elif not self._learning.learned:
            raise ValueError(
                self._failed_before
                or f"{self._who} has probes that learn in trainer.fit, and they have not: LayerProbeMonitor fits its "
                f"own in trainer.{stage}"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the step's forward pass."""
        in_step(self, trainer, self._pass, lambda: self._watch(pl_module, batch))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Learn from what the step has shown: gradient checkpointing is about to run layers again."""
        in_step(self, trainer, self._pass, self._pass.close)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Learn from a step that went without a backward pass, too."""
        self.on_before_backward(trainer, pl_module, outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind, and learn nothing from a step that failed."""
        abandon(self._pass, exception)
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """Return the probes, for a checkpoint."""
        return super().state_dict() | ({"probes": self._heads.state_dict()} if self.probes and self._heads else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run and the probes of a checkpoint."""
        super().load_state_dict(state_dict)
        if "probes" in state_dict:
            self._learning.load_state_dict(state_dict["probes"])

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the probes: several monitors keep apart."""
        return self._generate_state_key(name=self.name, layers=self.layers, pool=self.pool, model=self.model)

    def try_image(self, network: nn.Module, image: Tensor) -> None:
        """Find the network's heads."""
        self._learning.find_names(network, image)

    def labels_of(self, labels: Tensor | None, batch: GivenBatch) -> Targets:
        """As probes learn them, of each head."""
        return self._learning.targets(labels, batch)

    def running(self, network: nn.Module, look: Look) -> HeadTests:
        """Begin with no image, and with the same probes on every rank."""
        self._learning.average()
        return self._learning.test()

    def part(self, look: Look, running: Any) -> OnlineScores | ByHead:
        """Return the accuracies."""
        return running.compute()  # type: ignore[no-any-return]

    def _watch(self, pl_module: Any, batch: Any) -> None:
        images, labels = read_batch(batch, self.batch_fn, axes={image_axes(network := self.network_of(pl_module))})
        give(network, batch, images)
        if (targets := self._learning.first_targets(network, images, labels, batch)) is None:
            raise ValueError(why_no_labels(batch, self.batch_fn))
        self._pass.enter_context(self._learning.batch(images, targets))

    @property
    def probes(self) -> OnlineProbes | None:
        """What has been learned so far; of several heads, for the first of them."""
        return next(iter(self._heads.learned.values()), None) if self._heads else None

    @property
    def _learning(self) -> OnlineHeads:
        assert self._heads is not None, "set-up comes first"
        return self._heads
