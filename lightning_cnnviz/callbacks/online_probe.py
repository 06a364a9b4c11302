"""What each layer knows, by linear probes that learn along with the network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.feed_monitor import FeedMonitor, FeedOptions
from lightning_cnnviz.callbacks._base.first_step import abandon, in_step
from lightning_cnnviz.callbacks._base.look import Look
from lightning_cnnviz.callbacks._base.trainer import is_compiled, refuse_compiled
from lightning_cnnviz.callbacks.layer_probe import LAYERS
from lightning_cnnviz.core.data.batches import read_batch
from lightning_cnnviz.core.network.calling import give
from lightning_cnnviz.core.network.layers import evenly, select_layers
from lightning_cnnviz.core.probing.dataset import why_no_labels
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores
from lightning_cnnviz.core.probing.online_passes import OnlineLearner, OnlineTest
from lightning_cnnviz.core.probing.targets import probe_targets

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

    Args:
        layers: See `LayerProbeMonitor`.
        pool: Up to how many features of each layer, by average pooling; a channel is not pooled away.
        options: See `FeedMonitor`; `data` is what probes are tested on, instead of the validation set.

    Raises:
        ValueError: At set-up or in the first step: no such layer (with the closest names), no labels, a network
            that is compiled, or, outside of fit, probes that have learned nothing.
    """

    view = "online_probe"

    def __init__(
        self, layers: str | list[str] | None = None, *, pool: int = 512, **options: Unpack[FeedOptions]
    ) -> None:
        super().__init__(**options)
        if pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer")
        self.layers, self.pool = layers, pool
        self._maps: MapReader | None = None
        self._learner: OnlineLearner | None = None
        self._pass = ExitStack()

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers, and keep the probes of a fit before."""
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        self._maps = MapReader(network, evenly(chosen, LAYERS) if self.layers is None else chosen, pool=self.pool)
        self._learner = OnlineLearner(self._maps, self.probes)

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Start anew in fit; elsewhere refuse probes that have learned nothing."""
        super().check_trainer(trainer, stage)
        network = self.network_of(trainer.lightning_module)
        refuse_compiled(self._who, network, compiled=is_compiled(trainer, network))
        if stage == "fit":
            self._learning.probes = None  # a checkpoint, if there is one, is loaded after set-up
        elif self.probes is None and self._failed_before is not None:
            raise ValueError(self._failed_before)
        elif self.probes is None:
            raise ValueError(
                f"{self._who} has probes that learn in trainer.fit, and they have not: LayerProbeMonitor fits its own "
                f"in trainer.{stage}"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the step's forward pass."""
        in_step(self, trainer, self._pass, lambda: self._watch(pl_module, batch))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Learn from what the step has shown: gradient checkpointing is about to run layers again."""
        in_step(self, trainer, self._pass, self._pass.close)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Learn from a step that went without a backward pass, too."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.on_before_backward(trainer, pl_module, outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind, and learn nothing from a step that failed."""
        abandon(self._pass, exception)
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """Return the probes, for a checkpoint."""
        return super().state_dict() | ({} if self.probes is None else {"probes": self.probes.state_dict()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run and the probes of a checkpoint."""
        super().load_state_dict(state_dict)
        if "probes" in state_dict:
            self._learning.probes = OnlineProbes.from_state_dict(state_dict["probes"])

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the probes: several monitors keep apart."""
        return self._generate_state_key(name=self.name, layers=self.layers, pool=self.pool, model=self.model)

    def labels_of(self, labels: Tensor | None) -> Tensor | None:
        """As probes learn them."""
        return probe_targets(labels)

    def running(self, network: nn.Module, look: Look) -> OnlineTest:
        """Begin with no image, and with the same probes on every rank."""
        if self.probes is not None:
            self.probes.average()
        assert self._maps is not None, "set-up comes first"
        return OnlineTest(self._maps, self.probes)

    def part(self, look: Look, running: Any) -> OnlineScores:
        """Return the accuracies."""
        scores: OnlineScores = running.compute()
        return scores

    def _watch(self, pl_module: Any, batch: Any) -> None:
        images, labels = read_batch(batch, self.batch_fn)
        give(self.network_of(pl_module), batch, images)
        if (targets := probe_targets(labels)) is None:
            raise ValueError(why_no_labels(batch, self.batch_fn))
        self._pass.enter_context(self._learning.batch(images, targets))

    @property
    def probes(self) -> OnlineProbes | None:
        """What has been learned so far."""
        return None if self._learner is None else self._learner.probes

    @property
    def _learning(self) -> OnlineLearner:
        assert self._learner is not None, "set-up comes first"
        return self._learner
