"""What each layer knows, by softmax probes that learn along with the network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.passes import PassMonitor, PassOptions
from lightning_cnnviz.callbacks.layer_probe import LAYERS
from lightning_cnnviz.core.data.batches import read_batch
from lightning_cnnviz.core.network.layers import evenly, select_layers
from lightning_cnnviz.core.probing.dataset import why_no_labels
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores
from lightning_cnnviz.core.probing.online_passes import OnlineLearner, OnlineTest
from lightning_cnnviz.render.layer_probe import online_probe_report
from lightning_cnnviz.report import Report

__all__ = ["OnlineProbeMonitor"]


class OnlineProbeMonitor(PassMonitor):
    """Shows what each layer already knows, by a softmax probe a layer that learns along with the network.

    Features are those of the training step's own forward pass, pooled and cut off from its graph; the probes have an
    optimizer of their own. Their accuracies over the validation set stand under `online_probe/accuracy by depth`, and
    to follow over epochs under `online_probe_stats/<layer>`. It costs a few percent of a training step, where
    `LayerProbeMonitor` takes passes of its own; but such probes trail behind a network that changes, and come close to
    the best linear classifier, not up to it.

    Probes learn on over epochs and, from a checkpoint, over runs. On several ranks each rank's probes learn from its
    own images and become their mean when validation begins. A step that calls the network several times is read at its
    first call with as many images as there are labels.

    Args:
        layers: Names, globs and keywords (see `select_layers`); by default up to six convolutions, evenly
            spread in depth. A convolution chosen by kind is read behind its BatchNorm and a ReLU, a layer chosen by
            name as it is.
        pool: Up to how many features of each layer, by average pooling; a channel is not pooled away.
        options: See `PassMonitor`; `data` is what probes are tested on, instead of the validation set.

    Raises:
        ValueError: At set-up or in the first step: no such layer (with the closest names), no class labels, a network
            that is compiled, or, outside of fit, probes that have learned nothing.
    """

    def __init__(
        self, layers: str | list[str] | None = None, *, pool: int = 512, **options: Unpack[PassOptions]
    ) -> None:
        super().__init__(**options)
        if pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer")
        self.layers, self.pool = layers, pool
        self._probes: OnlineProbes | None = None
        self._maps: MapReader | None = None
        self._learner: OnlineLearner | None = None
        self._test: OnlineTest | None = None
        self._pass = ExitStack()

    # What every monitor says.

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        _refuse_compiled(self._who, network)
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        chosen = evenly(chosen, LAYERS) if self.layers is None else chosen
        self._maps = MapReader(network, chosen, pool=self.pool)
        self._learner = None

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Start anew in fit; elsewhere refuse probes that have learned nothing."""
        super().check_trainer(trainer, stage)
        if getattr(trainer.lightning_module, "_compiler_ctx", None) is not None:
            _refuse_compiled(self._who, trainer.lightning_module, compiled=True)
        if stage == "fit":
            self._probes = None  # a checkpoint, if there is one, is loaded after set-up
        elif self._probes is None:
            raise ValueError(
                f"{self._who} has probes that learn in trainer.fit, and they have not: LayerProbeMonitor fits its own "
                f"in trainer.{stage}"
            )

    # In training: learn.

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the step's forward pass."""
        if self._failure is None:
            with self._guard(raises=trainer.global_step == 0 and batch_idx == 0):
                images, labels = read_batch(batch, self.batch_fn)
                if labels is None:
                    raise ValueError(why_no_labels(batch, self.batch_fn))
                assert self._maps is not None
                self._learner = self._learner or OnlineLearner(self._maps, self._probes)
                self._pass.enter_context(self._learner.batch(images, labels))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Learn from what the step has shown: gradient checkpointing is about to run layers again."""
        self._learn(trainer, first=trainer.global_step == 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Learn from what the step has shown, where it made no backward pass."""
        self._learn(trainer, first=trainer.global_step <= 1 and batch_idx == 0)

    def _learn(self, trainer: Any, *, first: bool) -> None:
        with self._guard(raises=first):
            self._pass.close()
        if self._learner is not None:
            self._probes = self._learner.probes

    def state_dict(self) -> dict[str, Any]:
        """Return the probes, for a checkpoint."""
        return {} if self._probes is None else self._probes.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the probes of a checkpoint."""
        self._probes = OnlineProbes.from_state_dict(state_dict)

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the probes: several monitors keep apart."""
        return self._generate_state_key(layers=self.layers, pool=self.pool, model=self.model)

    # In validation: be tested.

    def start_look(self) -> None:
        """Start with no image, and with the same probes on every rank."""
        assert self._maps is not None
        if self._probes is not None:
            self._probes.average()
        self._test = OnlineTest(self._maps, self._probes)

    def start_batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """Place hooks."""
        assert self._test is not None
        self._pass.enter_context(self._test.batch(images, indices, labels))

    def end_batch(self) -> None:
        """Remove the hooks, and see what the probes make of the batch."""
        self._pass.close()

    def finish_look(self, indices_known: bool) -> OnlineScores:
        """Merge the ranks."""
        assert self._test is not None
        self._test.merge()
        return self._test.compute()

    def render(self, result: OnlineScores, loader: Any) -> Report:
        """Draw accuracy against depth."""
        return online_probe_report(result)

    def stop_look(self) -> None:
        """Remove the hooks, and forget the batch."""
        self._pass.__exit__(RuntimeError, RuntimeError("the batch is given up"), None)
        self._test = None


def _refuse_compiled(who: str, network: nn.Module, *, compiled: bool = False) -> None:
    """Compiled code does not see hooks, or is compiled with them."""
    compiled = compiled or any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in network.modules()
    )
    if compiled:
        raise ValueError(
            f"{who} reads features in the training step, which compiled networks (torch.compile) do not show: use "
            "LayerProbeMonitor, which makes passes of its own, or train uncompiled"
        )
