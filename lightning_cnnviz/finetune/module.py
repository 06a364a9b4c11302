"""FineTuner: any classification network with a new head, trained in part, in stages or in whole."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.core.network.layers import LayerSpec
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.caching import CachedBatch, Tail, cached_loader, find_tail
from lightning_cnnviz.finetune.features import BackboneFeatures
from lightning_cnnviz.finetune.freezing import Mode, find_stages, freeze, lowest_trained, settle_modes
from lightning_cnnviz.finetune.heads import find_classifiers, install_heads, read_logits, sample_images
from lightning_cnnviz.finetune.networks import make_network
from lightning_cnnviz.finetune.optimization import (
    check_options,
    check_scheduler,
    find_class,
    make_optimizer,
    make_scheduler,
    parameter_groups,
)
from lightning_cnnviz.finetune.weights import load_weights, read_weights
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet

__all__ = ["FineTuner"]

log = logging.getLogger("lightning_cnnviz")

_MODES = ("head", "full", "staged")
_SIZE = (3, 224, 224)
# Of an auxiliary classifier's loss: with one (inception's) and with two (googlenet's), as in their papers.
_ONE_AUXILIARY, _MORE_AUXILIARIES = 0.4, 0.3
_TOP = 5
# torchvision's own files of these were trained on inputs that are scaled in another way.
_TRANSFORMED = {"googlenet": "googlenet", "inception_v3": "inception_v3_google"}


class _ClassMean(MulticlassConfusionMatrix):
    """The mean over the classes of each one's accuracy; a class without images does not count."""

    def compute(self) -> Tensor:
        counts = super().compute().double()
        seen = counts.sum(1) > 0
        return (counts.diagonal()[seen] / counts.sum(1)[seen]).mean().float()


class FineTuner(pl.LightningModule):
    """Trains a classification network of any origin on classes of its own.

    The layer that classifies is found by running the network, and a new head takes its place. What is frozen is said by
    mode and epoch alone: frozen layers have no gradients, their BatchNorms keep their statistics and their dropout is
    off; the optimizer has all groups of parameters from the start, and skips those that are frozen. So a run that is
    resumed in any stage gives the weights of one that was not interrupted. Parameters that were frozen before stay so.

    Batches are `(images, labels)`. Logged are `train/loss`, and `loss` (plain cross-entropy), `accuracy`,
    `accuracy_top5` (of more than five classes) and `mean_class_accuracy` under `val/` and `test/`. When training ends,
    the last validation's confusion matrix is drawn.

    Args:
        backbone: The name of a torchvision model (`"squeezenet1_0"`) or of timm's (`"timm/resnet18"`), or a network,
            which is changed.
        num_classes: How many classes there are.
        weights: None: from scratch, or the values that a network of your own has; `"DEFAULT"` or a name of
            torchvision's enum; a local file. No code is run that a file brings.
        head: `"linear"`, `"mlp"`, or a module that takes what the old classifying layer was given.
        classifier: Name of the classifying layer, where several could be meant.
        mode: `"head"` trains the head alone, `"full"` everything, `"staged"` the head first, then more from the top.
        unfreeze_at: For `"staged"`: the epochs, counted from 0, that unfreeze the next stage each.
        layer_decay: The learning rate of each stage is this share of the next higher one's.
        optimizer: A name in torch.optim, a class path, or what makes an optimizer of parameter groups.
        lr: The head's learning rate; a callable has its own.
        optimizer_options: Further options, of an optimizer by name.
        scheduler: `"cosine"` with a warm-up, step by step; None; or the name or class path of one of torch's.
        scheduler_options: Its options, and Lightning's `interval`, `frequency` and `monitor`.
        warmup_epochs: Length of the warm-up; at most half of a run that is limited by its steps.
        label_smoothing: Of the training loss.
        class_weights: Of the training loss, one a class.
        mixup: Images are mixed in pairs, with shares from Beta(mixup, mixup); 0 for not.
        cache_features: In mode `"head"`, without augmentation: what the head is given is computed once an image, and
            kept in memory. Callbacks then see features where images were in training batches, and validation's pass is
            cached as well unless one of your callbacks looks at its batches.
        class_names: Names of the classes, for the confusion matrix.
        image_size: `(C, H, W)` of the image with which the network is run to find its classifier and stages.
        sinks: Where the confusion matrix goes; by default every WandbLogger of the trainer, and a page in its log
            folder; `[]` for nowhere.

    Raises:
        ImportError: timm is needed and not installed.
        ValueError: An argument is wrong, or weights or a head do not fit.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        weights: str | None = None,
        head: Literal["linear", "mlp"] | nn.Module = "linear",
        classifier: str | None = None,
        mode: Literal["head", "full", "staged"] = "full",
        unfreeze_at: Sequence[int] | None = None,
        layer_decay: float = 1.0,
        optimizer: str | Callable[..., Any] = "AdamW",
        lr: float = 1e-3,
        optimizer_options: dict[str, Any] | None = None,
        scheduler: str | None = "cosine",
        scheduler_options: dict[str, Any] | None = None,
        warmup_epochs: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        mixup: float = 0.0,
        cache_features: bool = False,
        class_names: Sequence[str] | None = None,
        image_size: Sequence[int] | None = None,
        sinks: list[Sink] | None = None,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_numbers(num_classes, lr, layer_decay, warmup_epochs, label_smoothing, mixup)
        _check_mode(mode, unfreeze_at, cache_features, mixup)
        _check_classes(num_classes, class_weights, class_names)
        _check_optimizer(optimizer, lr, optimizer_options)
        check_scheduler(scheduler, scheduler_options or {})
        unsaved = [name for name, value in given.items() if name == "sinks" or not _is_plain(value)]
        self.save_hyperparameters(_plain(given, unsaved), logger=True)
        self.num_classes, self.class_names = num_classes, class_names
        self.mode: Mode = mode
        self.unfreeze_at = tuple(unfreeze_at or ())
        self.layer_decay, self.lr = layer_decay, lr
        self.optimizer, self.optimizer_options = optimizer, dict(optimizer_options or {})
        self.scheduler, self.scheduler_options = scheduler, dict(scheduler_options or {})
        self.warmup_epochs, self.label_smoothing, self.mixup = warmup_epochs, label_smoothing, mixup
        self.cache_features, self.sinks = cache_features, sinks
        self._outlet = None if sinks == [] else Outlet("FineTuner", sinks)
        self.image_size = _size(image_size)
        self.backbone_name = backbone if isinstance(backbone, str) else type(backbone).__name__
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)

        self.network = make_network(backbone) if isinstance(backbone, str) else backbone
        self.classifiers = find_classifiers(self.network, self.image_size, classifier)
        if weights is not None:
            found = read_weights(backbone, weights)
            load_weights(self.network, found, self.classifiers, f"weights={weights!r}")
            self._transform_input(backbone, weights)
        # What its owner has frozen stays frozen; not so the layer that is replaced.
        frozen = {id(value) for value in self.network.parameters() if not value.requires_grad}
        install_heads(self.network, self.classifiers, num_classes, head, self.image_size)
        self._never = frozenset(name for name, value in self.network.named_parameters() if id(value) in frozen)
        self.stages = find_stages(self.network, self.classifiers, self.image_size)
        if len(self.unfreeze_at) > self.stages.top:
            raise ValueError(
                f"unfreeze_at={list(self.unfreeze_at)} unfreezes {len(self.unfreeze_at)} stages, but "
                f"{self.backbone_name} has {self.stages.top} below its head"
            )
        self.val_metrics, self.test_metrics = _metrics(num_classes, "val/"), _metrics(num_classes, "test/")
        self.val_confusion = MulticlassConfusionMatrix(num_classes)
        self._matrix: Tensor | None = None
        self._tail: Tail | None = None
        self._put_back: list[tuple[Any, list[Any]]] = []
        self._lowest = -1
        self._settle(0)
        self.train()

    # The network.

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, num_classes)`."""
        return read_logits(self.network(images), self.classifiers, training=self.network.training)[0]

    def backbone_features(self, layers: LayerSpec | Mapping[str, str]) -> BackboneFeatures:
        """Return the feature layers as a module that trains: images to `{name: feature maps}`.

        Args:
            layers: As `select_layers` takes them; or the name under which each is returned, `{"features.12": "out"}`.

        Raises:
            LayerNotFoundError: There is no such layer.
        """
        return BackboneFeatures(self.network, layers, self.image_size)

    def export_backbone(self, path: str | Path) -> None:
        """Write the weights of everything but the head, readable with `weights_only=True` and as `weights=path`."""
        heads = (self.classifiers.main.name, *(extra.name for extra in self.classifiers.auxiliary))
        state = {
            key: value.detach().cpu().clone()
            for key, value in self.network.state_dict().items()
            if not any(key.startswith(f"{name}.") for name in heads)
        }
        about = {"backbone": self.backbone_name, "left_out": list(heads), "image_size": list(self.image_size)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": state, "about": about}, path)

    # What is frozen.

    @property
    def lowest_trained_stage(self) -> int:
        """The number of the lowest stage that is trained now; `stages.top` is the head."""
        return self._lowest

    def train(self, mode: bool = True) -> FineTuner:
        """Set training mode; what is frozen stays in eval mode."""
        super().train(mode)
        if mode and hasattr(self, "stages"):
            settle_modes(self.network, self.stages, self._lowest)
        return self

    def _settle(self, epoch: int) -> bool:
        """Freeze what is frozen in an epoch; whether that is not what was frozen before."""
        lowest = lowest_trained(self.mode, self.unfreeze_at, epoch, self.stages.top)
        changed, self._lowest = lowest != self._lowest, lowest
        freeze(self.network, self.stages, lowest, self._never)
        return changed

    def setup(self, stage: str) -> None:
        """Refuse what cannot be trained, and freeze for the first epoch, before anything is wrapped."""
        if stage != "fit":
            return
        # It is intended; Lightning's own advice is to ignore it then.
        warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training")
        self._check_trainer()
        self._matrix, self._put_back = None, []  # of an earlier run
        if self._outlet is not None:
            self._outlet.open(self.trainer)
        self._settle(0)
        self.train()

    def on_train_start(self) -> None:
        """Freeze what is frozen in the epoch that a checkpoint goes on with, and compute features once."""
        self._settle_for_epoch()
        if self.cache_features:
            self._cache()

    def on_train_epoch_start(self) -> None:
        """Unfreeze what is due."""
        self._settle_for_epoch()

    def _settle_for_epoch(self) -> None:
        changed = self._settle(self.trainer.current_epoch)
        self.train()
        strategy = self.trainer.strategy
        if changed and isinstance(strategy, DDPStrategy):
            # It reduces the gradients of those parameters alone that were trained when it was made. The old one's hooks
            # go with it, and it refers to itself.
            strategy.model = self
            gc.collect()
            strategy.configure_ddp()

    def _check_trainer(self) -> None:
        trainer = self.trainer
        if self.unfreeze_at and not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise ValueError(
                f'mode="staged" trains on one device or with DDP, not with {type(trainer.strategy).__name__}: it '
                "would not learn of parameters that are unfrozen later"
            )
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0 or trainer.max_steps > 0:
            return
        if self.scheduler == "cosine" and self.warmup_epochs >= epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} is no shorter than the run of max_epochs={epochs}; "
                "give less, 0 for none"
            )
        late = [epoch for epoch in self.unfreeze_at if epoch >= epochs]
        if late:
            log.warning("unfreeze_at=%s: the run ends before epoch %s", list(self.unfreeze_at), late[0])

    # Steps.

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch[0], batch[1]
        if isinstance(batch, CachedBatch):
            logits, others = self._head_logits(batch), list[Tensor]()
        else:
            if self.mixup:
                images, labels = self._mixed(images, labels)
            output = self.network(images)
            logits, others = read_logits(output, self.classifiers, training=self.network.training)
        loss = self._loss(logits, labels)
        share = _ONE_AUXILIARY if len(others) == 1 else _MORE_AUXILIARIES
        for extra in others:
            loss = loss + share * self._loss(extra, labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch."""
        logits, labels = self._measure(batch, "val", self.val_metrics)
        self.val_confusion.update(logits, labels)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch."""
        self._measure(batch, "test", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits `(N, num_classes)` of a batch of images, with labels or without."""
        return self.forward(batch if isinstance(batch, Tensor) else batch[0])

    def _measure(self, batch: Any, stage: str, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        logits = self._head_logits(batch) if isinstance(batch, CachedBatch) else self(batch[0])
        labels = batch[1]
        loss = F.cross_entropy(logits.float(), labels)
        metrics.update(logits, labels)
        size = len(labels)
        names: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=size, sync_dist=True, **names)
        self.log_dict(metrics, batch_size=size, **names)
        return logits, labels

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights: Any = self.class_weights
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        mixed: tuple[Tensor, Tensor] = v2.MixUp(alpha=self.mixup, num_classes=self.num_classes)(images, labels)
        return mixed

    # Optimization.

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with all groups of parameters, and the scheduler."""

        def groups(decays: bool) -> list[dict[str, Any]]:
            return parameter_groups(self.network, self.stages, self.layer_decay, self._never, decays=decays)

        made = make_optimizer(self.optimizer, groups, self.lr, self.optimizer_options)
        if self.scheduler is None:
            return made
        schedule = make_scheduler(
            self.scheduler,
            made,
            self.scheduler_options,
            total=self._total_steps,
            epochs=self._total_epochs,
            warmup=self._warmup_steps,
        )
        return {"optimizer": made, "lr_scheduler": schedule}

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                f"scheduler={self.scheduler!r} needs an end: give Trainer(max_epochs=...) or max_steps=..."
            )
        return int(total)

    def _total_epochs(self) -> int:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            return max(1, round(self._total_steps() / self._steps_per_epoch()))
        return epochs

    def _steps_per_epoch(self) -> float:
        if self.trainer.num_training_batches == float("inf"):
            # Where steps alone end the run, Lightning has not needed to know yet.
            self.trainer.fit_loop.setup_data()
        batches = self.trainer.num_training_batches
        return max(1.0, batches / self.trainer.accumulate_grad_batches)

    def _warmup_steps(self) -> int:
        total = self._total_steps()
        most = total // 2 if self.trainer.max_steps > 0 else total
        if not self.warmup_epochs:
            return 0
        return round(min(self.warmup_epochs * self._steps_per_epoch(), most))

    # Features that are computed once.

    def _head_logits(self, batch: CachedBatch) -> Tensor:
        assert self._tail is not None
        return self._tail(self.network.get_submodule(self.classifiers.main.name)(batch.features))

    def _cache(self) -> None:
        trainer = self.trainer
        if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            raise ValueError(
                "cache_features=True: images that are loaded anew (reload_dataloaders_every_n_epochs) have no features "
                "that could be kept; train with cache_features=False"
            )
        name = self.classifiers.main.name
        self._tail = find_tail(self.network, name, sample_images(self.network, self.image_size, 2))
        self._swap(trainer.fit_loop._combined_loader, "training")
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        # The first epoch's iterator was made over images, and drew what it had to.
        with keep_random_state():
            iter(fetcher)
        watching = [type(callback).__name__ for callback in trainer.callbacks if _watches_validation(callback)]  # type: ignore[attr-defined]
        if watching:
            log.info("validation images run through the whole network, since %s looks on", ", ".join(watching))
        elif trainer.fit_loop.epoch_loop.val_loop._combined_loader is not None:
            self._swap(trainer.fit_loop.epoch_loop.val_loop._combined_loader, "validation")

    def _swap(self, combined: Any, what: str) -> None:
        loaders = list(combined.flattened)
        name = self.classifiers.main.name
        generators = [
            (each, each.get_state()) for each in {getattr(loader, "generator", None) for loader in loaders} if each
        ]
        bar = self.trainer.progress_bar_callback
        shown = bool(self.trainer.is_global_zero and getattr(bar, "is_enabled", False))
        combined.flattened = [cached_loader(loader, self.network, name, what, progress=shown) for loader in loaders]
        for generator, state in generators:
            generator.set_state(state)
        self._put_back.append((combined, loaders))

    # The confusion matrix.

    def on_validation_epoch_end(self) -> None:
        """Keep what validation has counted."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._matrix = self.val_confusion.compute().cpu()
        self.val_confusion.reset()

    def on_train_end(self) -> None:
        """Draw the last validation's confusion matrix, and give the loaders back."""
        self._give_back()
        if self._outlet is None:
            return
        if self._matrix is not None and self._outlet.is_open:
            step = Step(epoch=self.trainer.current_epoch, global_step=self.trainer.global_step, stage="fit")
            self._outlet.show(confusion_report(self._matrix, self.class_names), step)
        self._outlet.close()

    def _give_back(self) -> None:
        for combined, loaders in self._put_back:
            combined.flattened = loaders
        self._put_back = []

    # Checkpoints.

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """Load a checkpoint as Lightning does; weights that it was trained from are not looked for.

        A network, a head or an optimizer of your own is no setting that is stored: give it again by keyword.
        """
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights": None, **options})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no weight, but changes what a network computes."""
        checkpoint["transform_input"] = bool(getattr(self.network, "transform_input", False))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set it again."""
        if hasattr(self.network, "transform_input"):
            self.network.transform_input = checkpoint.get("transform_input", False)

    def _transform_input(self, backbone: str | nn.Module, weights: str) -> None:
        if isinstance(backbone, str) and backbone in _TRANSFORMED:
            file = Path(weights)
            own = not file.is_file() or file.name.startswith(f"{_TRANSFORMED[backbone]}-")
            self.network.transform_input = own  # type: ignore[assignment]


def _metrics(num_classes: int, prefix: str) -> MetricCollection:
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "mean_class_accuracy": _ClassMean(num_classes),
    }
    if num_classes > _TOP:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=_TOP)
    # Not in groups of shared states: the class mean computes another thing of its state than its kind.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _watches_validation(callback: Any) -> bool:
    hooks = ("on_validation_batch_start", "on_validation_batch_end")
    owners = (next(base for base in type(callback).__mro__ if hook in vars(base)) for hook in hooks)
    return any(not owner.__module__.startswith(("lightning.", "pytorch_lightning.")) for owner in owners)


# Arguments.


def _check_numbers(
    num_classes: int, lr: float, layer_decay: float, warmup_epochs: float, label_smoothing: float, mixup: float
) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r}: a classifier has 2 classes or more")
    if not lr > 0:
        raise ValueError(f"lr={lr}: give a learning rate above 0")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: give a share in (0, 1]; 1 for one learning rate everywhere")
    if not 0 <= warmup_epochs < float("inf"):
        raise ValueError(f"warmup_epochs={warmup_epochs}: give 0 or more")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: give a share in [0, 1)")
    if not 0 <= mixup < float("inf"):
        raise ValueError(f"mixup={mixup}: give 0 for none, or the parameter of Beta(mixup, mixup), 0.2 say")


def _check_mode(mode: str, unfreeze_at: Sequence[int] | None, cache_features: bool, mixup: float) -> None:
    if mode not in _MODES:
        raise ValueError(f'mode={mode!r}: give "head", "full" or "staged". {suggestion(str(mode), _MODES)}'.rstrip())
    if mode != "staged" and unfreeze_at is not None:
        raise ValueError(f'unfreeze_at={list(unfreeze_at)} is for mode="staged"; the mode is "{mode}"')
    if mode == "staged":
        epochs = list(unfreeze_at or ())
        whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0 for epoch in epochs)
        if not epochs or not whole or epochs != sorted(epochs):
            raise ValueError(
                f"unfreeze_at={unfreeze_at}: give the epochs, ascending and counted from 0, at which the next stage "
                "from the top is unfrozen, for example [2, 4, 6]"
            )
    if cache_features and mode != "head":
        raise ValueError(f'cache_features=True needs mode="head", where the backbone does not change; got "{mode}"')
    if cache_features and mixup:
        raise ValueError(f"cache_features=True: images that are mixed (mixup={mixup}) have no features of their own")


def _check_classes(num_classes: int, class_weights: Sequence[float] | None, class_names: Sequence[str] | None) -> None:
    for name, values in (("class_weights", class_weights), ("class_names", class_names)):
        if values is not None and len(values) != num_classes:
            raise ValueError(f"{name} has {len(values)} entries for num_classes={num_classes}; give one a class")
    if class_weights is not None and (min(class_weights) < 0 or not any(class_weights)):
        raise ValueError(f"class_weights={list(class_weights)}: give weights of 0 or more, not all of them 0")


def _check_optimizer(optimizer: str | Callable[..., Any], lr: float, options: dict[str, Any] | None) -> None:
    if isinstance(optimizer, str):
        kind = find_class(optimizer, torch.optim, torch.optim.Optimizer, "optimizer")
        check_options(kind, {"lr": lr, **(options or {})}, f"optimizer_options of {optimizer}")
    elif options:
        raise ValueError(f"optimizer_options={options}: give them to your callable itself (functools.partial)")


def _size(image_size: Sequence[int] | None) -> tuple[int, int, int]:
    size = tuple(_SIZE if image_size is None else image_size)
    if len(size) != 3 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"image_size={image_size}: give (channels, height, width), for example {_SIZE}")
    return (size[0], size[1], size[2])


def _weights(class_weights: Sequence[float] | None) -> Tensor | None:
    return None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is read with `weights_only=True` can hold it."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _plain(given: dict[str, Any], unsaved: Sequence[str]) -> dict[str, Any]:
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: value for name, value in listed.items() if name not in unsaved}
