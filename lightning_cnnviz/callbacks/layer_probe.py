"""What each layer knows, by linear probes, while training goes on."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.features_along import FeaturesAlong
from lightning_cnnviz.callbacks._base.monitor import MonitorOptions
from lightning_cnnviz.callbacks._base.options import name_for_loader, space_out
from lightning_cnnviz.callbacks._base.trainer import learning_loaders, learning_source, of_one_size
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.data.distributed import rank, ranks
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.layers import SelectedLayer, evenly, select_layers
from lightning_cnnviz.core.probing.head_plans import HeadPlans
from lightning_cnnviz.core.probing.plan import FeatureSets
from lightning_cnnviz.core.probing.probe import LayerProbe
from lightning_cnnviz.core.probing.protocols import Protocol, find_protocol
from lightning_cnnviz.record.identity import DataIdentity

__all__ = ["LAYERS", "LayerProbeMonitor"]

LAYERS, _IMAGES = 6, 1000
"""How many layers are probed by default, and on how many images of each set."""


class LayerProbeMonitor(ExperimentMonitor):
    """Shows what each layer already knows: linear probes on its features (Zeiler & Fergus 2013, Table 7).

    What is told is found from the labels: one class an image; several labels, each from the rest (mean average
    precision); values, by ridge regression (R2); of label maps the class of some pixels, from the features of the cell
    that each lies in. Heads that have labels under their own names in the batch are told each by itself.

    Accuracy against depth is `layer_probe/accuracy by depth`, each number `layer_probe/<layer>/<head>`. In fit, probes
    learn from the trainer's training set and are tested on its validation set; elsewhere, and where one loader is
    given, both are drawn from the same set. Features of validation images come from validation's own passes, where
    these were made with the weights of the look and the loader tells its order. Others are read in an order of our own,
    with the same pixels at every look. Ranks share the images.

    Args:
        layers: Names, globs and keywords (see `select_layers`); by default up to six convolutions, evenly spread in
            depth. A convolution chosen by kind is read behind its BatchNorm and a ReLU, one chosen by name as it is.
        heads: Of `"svm"`, `"softmax"` and `"knn"`.
        per_class: Images of each class to learn from; None for all, or, with several splits, four fifths, drawn anew.
        splits: How many times images are drawn.
        protocol: A published one (`"caltech101-30"`, see `PROTOCOLS`) or your own; what is given beside it changes it.
        images: Up to how many images of each set are drawn from, the same ones at every look, or `"all"`; by default
            1,000, and all where `per_class` or a protocol is given. Where the data set tells its labels (`targets`),
            only images that are drawn are read.
        pool: Up to how many features of each layer, by average pooling; None for whole maps, on disk.
        control: `"random"` draws the same for a copy of the network with random weights beside it.
        data: A loader to draw both sets from, or a pair of loaders to learn from and to test on.
        dataloader_idx: Which of several validation (or test) loaders to test on, see `FeedMonitor`.
        batch_fn: Takes a batch and returns `(images, labels)`, for batches of unusual form.
        allow_fewer: Whether classes with too few images give what they have.
        seed: Which images are read and how they are split.
        every_n_epochs: 5 by default, where no other schedule is given; see `Monitor` for it and for other options.

    Raises:
        ValueError: At set-up or before the first step: no such layer or protocol, no labels, no data; too few images.
    """

    view, axes = "layer_probe", (1, 2, 3)
    of_convolutions = every_rank = True

    def __init__(
        self,
        layers: str | list[str] | None = None,
        heads: tuple[str, ...] | list[str] | None = None,
        *,
        per_class: int | None = None,
        splits: int | None = None,
        protocol: str | Protocol | None = None,
        images: int | Literal["all"] | None = None,
        pool: int | None = 4096,
        control: Literal["random"] | None = None,
        data: Any = None,
        dataloader_idx: int = 0,
        batch_fn: BatchFn | None = None,
        allow_fewer: bool = False,
        seed: int = 0,
        **options: Unpack[MonitorOptions],
    ) -> None:
        space_out(options)
        name_for_loader(options, dataloader_idx, data)
        super().__init__(**options)
        if control not in (None, "random"):
            raise ValueError(f'control={control!r}: give "random", or None for no control')
        if isinstance(images, int) and images < 1:
            raise ValueError(f'images={images}: give 1 or more, or "all"')
        if pool is not None and pool < 1:
            raise ValueError(f"pool={pool}: give the largest number of features of a layer, or None for whole maps")
        self.layers, self.heads, self.per_class, self.splits, self.protocol = layers, heads, per_class, splits, protocol
        self.images, self.pool, self.control, self.data = images, pool, control, data
        self.dataloader_idx, self.batch_fn, self.allow_fewer, self.seed = dataloader_idx, batch_fn, allow_fewer, seed
        changes = {"heads": heads, "per_class": per_class, "splits": splits, "allow_fewer": allow_fewer or None}
        self._protocol = find_protocol(protocol, seed=seed, **changes)
        # The last ones stand for the heads where images have no single class.
        self.number_names = (*self._protocol.heads, "logistic", "ridge")
        whole = images == "all" or (images is None and not (per_class is None and protocol is None))
        self._limit = None if whole else _IMAGES if images is None else int(images)
        self._along, self._chosen, self._source = FeaturesAlong(self), list[SelectedLayer](), ""
        self.plans: HeadPlans | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Subscribe to validation's own passes."""
        super().setup(trainer, pl_module, stage)
        if trainer.state.fn != "predict":
            self._feed.subscribers.append(self._along)

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        self._chosen = evenly(chosen, LAYERS) if self.layers is None else chosen
        self.plans = None

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse whole maps on several ranks: files are not gathered."""
        if self.pool is None and trainer.world_size > 1:
            raise ValueError(f"{self._who}(pool=None): several processes share no files; give pool=<number>")

    def dry_run(self, network: nn.Module, trainer: Any) -> None:
        """Find the data, read a few images, and draw the splits where labels are told; once a stage."""
        if self.plans is None:
            loaders = learning_loaders(trainer, self.data, self.dataloader_idx)
            self._source = learning_source(trainer, self.data, self.dataloader_idx)
            options: Any = {"pool": self.pool, "limit": self._limit, "seed": self.seed, "batch_fn": self.batch_fn}
            with trainer.precision_plugin.forward_context(), of_one_size():
                self.plans = HeadPlans(network, self._chosen, self._protocol, loaders, **options)
            self._outlet.tell_splits(self.plans.split_manifests(), self.view, self.name)

    def experiment(self, network: nn.Module, progress: Progress) -> list[list[FeatureSets]]:
        """Read features of the network and, at the first look, of its random control; for each head."""
        assert self.plans is not None, "the dry run comes first"
        control, given = self.control is not None and self._looks == 0, self._along.features_of(network)
        return self.plans.read(network, given=given, control=control, part=(rank(), ranks()), progress=progress)

    def data_of(self, result: LayerProbe | ByHead) -> DataIdentity:
        """Return how many images were learned from and tested on."""
        images = sum((result.results[0] if isinstance(result, ByHead) else result).images)
        return DataIdentity(images=images, loader=self.dataloader_idx if self._source else -1, source=self._source)

    def merge(self, parts: list[list[list[FeatureSets]]]) -> LayerProbe | ByHead:
        """Put the ranks' features together, and fit the probes."""
        assert self.plans is not None, "the dry run comes first"
        return self.plans.fit(parts)
