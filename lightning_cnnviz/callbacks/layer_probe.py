"""What each layer knows, by linear probes, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_cnnviz.callbacks._base.experiment import ExperimentMonitor, Progress
from lightning_cnnviz.callbacks._base.monitor import MonitorOptions
from lightning_cnnviz.callbacks._base.trainer import chosen_loader, find_network
from lightning_cnnviz.callbacks._base.validation_tap import ValidationTap
from lightning_cnnviz.core.data.batches import BatchFn
from lightning_cnnviz.core.network.layers import SelectedLayer, evenly, select_layers
from lightning_cnnviz.core.probing.dataset import dataset_labels, drawn_images
from lightning_cnnviz.core.probing.features import Features, merge_features
from lightning_cnnviz.core.probing.probe import LayerProbe, probe_layers, random_twin
from lightning_cnnviz.core.probing.protocols import Manifest, Protocol, draw_splits, find_protocol, restricted
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.render.layer_probe import layer_probe_report
from lightning_cnnviz.report import Report

__all__ = ["LAYERS", "LayerProbeMonitor"]

LAYERS = 6
"""How many layers are probed by default."""

_REHEARSED = 8
_IMAGES = 1000

_Sets = tuple[Features, Features | None]


class LayerProbeMonitor(ExperimentMonitor):
    """Shows what each layer already knows: linear classifiers on its features (Zeiler & Fergus 2013, Table 7).

    Accuracy against depth under `layer_probe/accuracy by depth`, the table behind it under `layer_probe/accuracy`, and
    each number to follow over epochs under `layer_probe_stats/<layer>/<head>`. In fit, probes learn from the trainer's
    training set and are tested on its validation set; in `trainer.validate` and `trainer.test`, and where one loader is
    given, both are drawn from the same set. Features of validation images come from the passes that validation makes
    anyway, where these were made with the weights of the look and the loader tells its order. Other images are read in
    an order of our own, by the set's own transforms: random ones give the same pixels at every look. Ranks share the
    images.

    Args:
        layers: Names, globs and keywords (see `select_layers`); by default up to six convolutions, evenly
            spread in depth. A convolution chosen by kind is read behind its BatchNorm and a ReLU, a layer chosen by
            name as it is.
        heads: Of `"svm"`, `"softmax"` and `"knn"`.
        per_class: Images of each class to learn from; None for all, or, with several splits, four fifths, drawn anew.
        splits: How many times images are drawn.
        protocol: A published protocol (`"caltech101-30"`, ..., see `PROTOCOLS`) or one of your own; what
            is given beside it changes it.
        images: Up to how many images of each set are drawn from, the same ones at every look, or `"all"`; by default
            1,000, and all where `per_class` or a protocol is given. Where the data set tells its labels (`targets`),
            those alone are read that are drawn.
        pool: Up to how many features of each layer, by average pooling; None for whole maps, on disk.
        control: `"random"` draws the same for a copy of the network with random weights beside it.
        data: A loader to draw both sets from, or a pair of loaders to learn from and to test on.
        dataloader_idx: Which of several validation (or test) loaders to test on.
        batch_fn: Takes a batch and returns `(images, labels)`, for batches of unusual form.
        allow_fewer: Whether classes with too few images give what they have.
        seed: Which images are read and how they are split.
        options: See `Monitor`; `every_n_epochs` is 5 by default.

    Raises:
        ValueError: At set-up or before the first step: no such layer (with the closest names), no such protocol, no
            class labels, multi-label data, or no data; too few images of a class, where the data set tells its labels.
    """

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
        options.setdefault("every_n_epochs", 5)
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
        self._plan = self._planned()
        whole = images == "all" or (images is None and not (per_class is None and protocol is None))
        self._limit = None if whole else _IMAGES if images is None else int(images)
        self._chosen: list[SelectedLayer] = []
        self._loaders: tuple[Any, Any] = (None, None)
        self._share = (0, 1)
        self._control_read = False
        self._control: LayerProbe | None = None
        self._manifest: Manifest | None = None  # drawn before training, where labels are known
        self._wanted: tuple[Tensor | None, Tensor | None] = (None, None)  # indices of the images that it needs
        self._tap: ValidationTap | None = None
        self._tapped: tuple[Any, Features | None] = (None, None)  # from which loader, for the look under way

    # From validation's own passes.

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Read along, where a look is due and the validation's images are among those to be read."""
        self._tap = None
        if self.data is not None or self.pool is None or trainer.sanity_checking or not self._due(trainer):
            return
        if self._failure is not None:
            return
        stage = str(trainer.state.fn.value)
        loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
        with self._guard():
            self._tap = ValidationTap(
                find_network(self._who, pl_module, self.model),
                self._chosen,
                chosen_loader(loaders, self.dataloader_idx),
                pool=self.pool,
                limit=self._limit,
                indices=self._wanted[1 if stage == "fit" else 0],
                seed=self.seed,
                batch_fn=self.batch_fn,
                share=(trainer.global_rank, trainer.world_size),
            )

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Announce a batch."""
        if self._tap is not None and dataloader_idx == self.dataloader_idx:
            self._tap.start_batch(batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take what the batch has shown."""
        if self._tap is not None and dataloader_idx == self.dataloader_idx:
            self._tap.end_batch()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """As for validation."""
        self.on_validation_start(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As for validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As for validation."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def stop_look(self) -> None:
        """Leave no hook behind."""
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def _look(self, trainer: Any, pl_module: Any, *, within_epoch: bool = True) -> None:
        tap, self._tap = self._tap, None
        found = None
        with self._guard():
            found = tap.features() if tap is not None else None
        # On all ranks or on none: a pass of our own is shared out otherwise.
        if tap is not None and trainer.strategy.reduce_boolean_decision(found is not None, all=True):
            self._tapped = (tap.loader, found)
        try:
            super()._look(trainer, pl_module, within_epoch=within_epoch)
        finally:
            self._tapped = (None, None)

    def prepare(self, network: nn.Module) -> None:
        """Choose the layers."""
        chosen = select_layers(network, "conv" if self.layers is None else self.layers)
        self._chosen = evenly(chosen, LAYERS) if self.layers is None else chosen
        self._control_read, self._control = False, None
        self._loaders, self._manifest, self._wanted = (None, None), None, (None, None)

    def check_trainer(self, trainer: Any, stage: str) -> None:
        """Refuse whole maps on several ranks: files are not gathered."""
        if self.pool is None and trainer.world_size > 1:
            raise ValueError(
                f"{self._who}(pool=None) reads whole feature maps into files, which {trainer.world_size} processes do "
                "not share; give pool=<number of features>"
            )

    def rehearse(self, network: nn.Module, trainer: Any) -> None:
        """Find the data, and read a few images."""
        self._loaders = self._find_loaders(trainer)
        self._share = (trainer.global_rank, trainer.world_size)
        with trainer.precision_plugin.forward_context():
            tried = [None if loader is None else self._try(network, loader) for loader in self._loaders]
        self._draw(tried)

    def takes_part(self, rank: int) -> bool:
        """Every rank reads its share of the images."""
        return True

    def experiment(self, network: nn.Module, progress: Progress) -> list[_Sets]:
        """Read features of the network and, at the first look, of its random control."""
        found = [self._sets(network, progress, tapped=True)]
        if self.control is not None and not self._control_read:
            found.append(self._sets(random_twin(network, self.seed), progress))
            self._control_read = True
        return found

    def merge(self, results: list[list[_Sets]]) -> LayerProbe:
        """Put the ranks' shares together, and fit the probes."""
        probes = []
        for parts in zip(*results, strict=True):
            train = merge_features([train for train, _ in parts])
            tests = [test for _, test in parts if test is not None]
            test = merge_features(tests) if tests else None
            pairs = zip((train, test), self._wanted, strict=True)
            whole = all(part is None or wanted is None or torch.equal(part.indices, wanted) for part, wanted in pairs)
            manifest = self._manifest if whole else None  # images may be missing where a loader leaves some out
            probes.append(probe_layers(train, self._plan, test=test, manifest=manifest))
        if len(probes) > 1:
            self._control = probes[1]
        return replace(probes[0], control=None if self._control is None else self._control.scores)

    def render(self, result: LayerProbe) -> Report:
        """Draw accuracy against depth."""
        return layer_probe_report(result)

    def _planned(self) -> Protocol:
        heads = None if self.heads is None else tuple(self.heads)
        given = {"heads": heads, "per_class": self.per_class, "splits": self.splits, "seed": self.seed}
        fewer = {"allow_fewer": True} if self.allow_fewer else {}
        return find_protocol(Protocol() if self.protocol is None else self.protocol, **given, **fewer)

    def _find_loaders(self, trainer: Any) -> tuple[Any, Any]:
        if isinstance(self.data, (tuple, list)) and len(self.data) == 2:
            return self.data[0], self.data[1]
        if self.data is not None:
            return self.data, None
        stage = str(trainer.state.fn.value)
        loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
        if stage != "fit":
            return chosen_loader(loaders, self.dataloader_idx), None
        train = chosen_loader(trainer.train_dataloader, 0)
        if loaders is None or trainer.limit_val_batches == 0:
            return train, None
        return train, chosen_loader(loaders, self.dataloader_idx)

    def _sets(self, network: nn.Module, progress: Progress, *, tapped: bool = False) -> _Sets:
        def read(loader: Any) -> Features:
            known, found = self._tapped
            wanted = self._wanted[loader is not self._loaders[0]]
            if tapped and found is not None and known is loader:
                # Outside of fit, the splits are drawn after the passes.
                return found if wanted is None else found.among(wanted)
            return tap_features(
                network,
                loader,
                self._chosen,
                pool=self.pool,
                limit=self._limit,
                indices=wanted,
                part=self._share,
                batch_fn=self.batch_fn,
                seed=self.seed,
                progress=progress,
            )

        learned, tested = self._loaders
        test = None if tested is None else read(tested)
        return read(learned), test

    def _try(self, network: nn.Module, loader: Any) -> Features:
        return tap_features(
            network, loader, self._chosen, pool=self.pool, limit=_REHEARSED, batch_fn=self.batch_fn, seed=self.seed
        )

    def _draw(self, tried: Sequence[Features | None]) -> None:
        """Draw the splits where data sets tell their labels, which are right for the images that were tried."""
        self._manifest, self._wanted = None, (None, None)
        drawn: list[Tensor | None] = []
        labels: list[Tensor | None] = []
        for loader, found in zip(self._loaders, tried, strict=True):
            known = None if found is None else dataset_labels(loader)
            if found is not None and (known is None or not torch.equal(known[found.indices], found.labels)):
                return
            drawn.append(None if known is None else drawn_images(len(known), self._limit, self.seed))
            labels.append(None if known is None else known[drawn[-1]])
        (learned, tested), (own, others) = drawn, labels
        assert learned is not None
        assert own is not None
        manifest = draw_splits(own, self._plan, indices=learned, test_labels=others, test_indices=tested)
        self._manifest, places, test_places = restricted(manifest, own_test=tested is not None)
        self._wanted = (learned[places], None if tested is None else tested[test_places])
