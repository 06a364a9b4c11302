"""FineTuner: any network with a new head, trained in part, in stages or in whole."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_cnnviz.core.network.endings import undone
from lightning_cnnviz.core.network.layers import LayerSpec
from lightning_cnnviz.files import whole_file
from lightning_cnnviz.finetune._arguments import (
    check_class_options,
    check_mode,
    check_numbers,
    check_optimizer,
    image_size_of,
    plain_settings,
)
from lightning_cnnviz.finetune.caching import CachedBatch, FeatureCache
from lightning_cnnviz.finetune.checkpoints import check_module, read_checkpoint, stored_settings
from lightning_cnnviz.finetune.features import BackboneFeatures
from lightning_cnnviz.finetune.freezing import Mode, find_stages, freeze, lowest_trained, settle_modes
from lightning_cnnviz.finetune.heads import find_classifiers, find_endings, install_heads, read_logits, sample_images
from lightning_cnnviz.finetune.metrics import ConfusionMatrix, make_metrics
from lightning_cnnviz.finetune.networks import make_network
from lightning_cnnviz.finetune.optimization import (
    check_monitor,
    check_scheduler,
    make_optimizer,
    make_scheduler,
    parameter_groups,
)
from lightning_cnnviz.finetune.resuming import resume_epoch, resume_run, run_state
from lightning_cnnviz.finetune.run_length import RunLength
from lightning_cnnviz.finetune.tasks import TunedTask, check_task, task_loss, task_targets
from lightning_cnnviz.finetune.weights import load_weights, read_weights, weights_file
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet

__all__ = ["FineTuner"]

log = logging.getLogger("lightning_cnnviz")

# Of an auxiliary classifier's loss: with one (inception's) and with two (googlenet's), as in their papers.
_ONE_AUXILIARY, _MORE_AUXILIARIES = 0.4, 0.3
# torchvision's own files of these were trained on inputs that are scaled in another way.
_TRANSFORMED = {"googlenet": "googlenet", "inception_v3": "inception_v3_google"}


class FineTuner(pl.LightningModule):
    """Trains a classification network of any origin on classes of its own, or on labels or values.

    The layer that classifies is found by running the network, and a new head takes its place. What is frozen is said by
    mode and epoch alone: frozen layers have no gradients, their BatchNorms keep their statistics and their dropout is
    off; the optimizer has all groups of parameters from the start, and skips those that are frozen. So a run that is
    resumed at the end of an epoch, in any stage, gives the weights of one that was not interrupted: random states are
    in the checkpoint. Parameters that were frozen before stay so.

    Batches are `(images, labels)`: class numbers `(N,)`, or as `task` says. Logged are `train/loss`, and under `val/`
    and `test/`: `loss` (without weights and smoothing); of classes `accuracy`, `accuracy_top5` (of more than five) and
    `mean_class_accuracy`; of several labels `accuracy` (the mean of the labels') and `mean_average_precision`; of a yes
    or no `accuracy` and `average_precision`; of values `mean_absolute_error` and `r2`. When training ends, the last
    validation's confusion matrix is drawn, where there are classes.

    For another loss, or for several outputs at once, override `compute_loss` and `update_metrics` in a subclass:
    `num_classes` is then the number of all outputs, and labels may be whatever the batch holds.

    Args:
        backbone: The name of a torchvision model (`"squeezenet1_0"`) or of timm's (`"timm/resnet18"`), or a network,
            which is changed.
        num_classes: How many classes there are; or how many labels, values, or outputs of a subclass. 1 of a yes or no.
        task: `"multiclass"`, one class an image; `"multilabel"`, labels `(N, num_classes)` of zeros and ones, each by a
            sigmoid; `"binary"`, a yes or no by one logit, labels `(N,)` or `(N, 1)`; `"regression"`, values
            `(N, num_classes)`, or `(N,)` of one, by the squared error.
        weights: None: from scratch, or the values that a network of your own has; `"DEFAULT"` or a name of
            torchvision's enum; a local file, or `"FILE:student"` of one that holds several networks. No code is run
            that a file brings.
        head: `"linear"`, `"mlp"`, or a module that takes what the old classifying layer was given.
        classifier: Name of the classifying layer, where several could be meant. Of a network with several outputs, all
            but the named one's are left alone; with a list, those of the others are auxiliary: their loss counts 0.4
            (of one) or 0.3 (of each of several) in training, as inception's and googlenet's do, which are found.
            Layers whose outputs are averaged (levit's, deit's) are found, and replaced together.
        mode: `"head"` trains the head alone, `"full"` everything, `"staged"` the head first, then more from the top.
        unfreeze_at: For `"staged"`: the epochs, counted from 0, that unfreeze the next stage each.
        layer_decay: The learning rate of each stage is this factor times the next higher one's.
        optimizer: A name in torch.optim, a class path, or what makes an optimizer of parameter groups.
        lr: The head's learning rate; a callable has its own.
        optimizer_options: Further options, of an optimizer by name.
        scheduler: `"cosine"` with a warm-up, step by step; None; or the name or class path of one of torch's.
        scheduler_options: Its options, and Lightning's `interval`, `frequency` and `monitor`.
        warmup_epochs: Length of the warm-up; at most half of a run that is limited by its steps.
        label_smoothing: Of the training loss.
        class_weights: Of the training loss, one a class (label, value).
        mixup: Images are mixed in pairs, with weights drawn from Beta(mixup, mixup); 0 for none.
        cache_features: In mode `"head"`, without augmentation: what the head is given is computed once an image, and
            kept in memory. Callbacks then see features where images were in training batches, and validation's pass is
            cached as well unless one of your callbacks looks at its batches.
        class_names: Names of the classes, for the confusion matrix.
        image_size: `(C, H, W)` of the image with which the network is run to find its classifier and stages.
        sinks: Where the confusion matrix goes; by default every logger of the trainer, and a page in its log folder;
            `[]` for nowhere.

    Raises:
        ImportError: timm is needed and not installed.
        ValueError: An argument is wrong, or weights or a head do not fit.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        task: TunedTask = "multiclass",
        weights: str | None = None,
        head: Literal["linear", "mlp"] | nn.Module = "linear",
        classifier: str | list[str] | None = None,
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
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_task(task, num_classes, label_smoothing, mixup)
        check_numbers(lr, layer_decay, warmup_epochs, label_smoothing, mixup)
        check_mode(mode, unfreeze_at, cache_features, mixup)
        check_class_options(num_classes, class_weights, class_names)
        check_optimizer(optimizer, lr, optimizer_options)
        check_scheduler(scheduler, scheduler_options or {})
        self.save_hyperparameters(plain_settings(arguments), logger=True)
        self.num_classes, self.class_names, self.task = num_classes, class_names, task
        self.mode: Mode = mode
        self.unfreeze_at = tuple(unfreeze_at or ())
        self.layer_decay, self.lr = layer_decay, lr
        self.optimizer, self.optimizer_options = optimizer, dict(optimizer_options or {})
        self.scheduler, self.scheduler_options = scheduler, dict(scheduler_options or {})
        self.warmup_epochs, self.label_smoothing, self.mixup = warmup_epochs, label_smoothing, mixup
        self.cache_features, self.sinks = cache_features, sinks
        self._outlet = None if sinks == [] else Outlet("FineTuner", sinks)
        self.image_size = image_size_of(image_size)
        self.backbone_name = backbone if isinstance(backbone, str) else type(backbone).__name__
        per_class = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", per_class, persistent=False)

        self.network = make_network(backbone) if isinstance(backbone, str) else backbone
        self.classifiers = find_classifiers(self.network, self.image_size, classifier)
        if weights is not None:
            given, (_, part) = read_weights(backbone, weights), weights_file(weights)
            load_weights(self.network, given, self.classifiers, f"weights={weights!r}", part=part)
            self._transform_input(backbone, weights)
        # What its owner has frozen stays frozen; not so the layer that is replaced.
        frozen = {id(value) for value in self.network.parameters() if not value.requires_grad}
        install_heads(self.network, self.classifiers, num_classes, head, self.image_size)
        self._always_frozen = frozenset(name for name, value in self.network.named_parameters() if id(value) in frozen)
        if cache_features and self.classifiers.joined:
            raise ValueError(
                f"cache_features=True: the logits of {self.backbone_name} are made by {list(self.classifiers.heads)} "
                "together, and features are kept for one layer; train with cache_features=False"
            )
        values = task == "regression"  # as they are
        self._endings = {} if values else find_endings(self.network, self.classifiers, self.image_size)
        self.stages = find_stages(self.network, self.classifiers, self.image_size)
        if len(self.unfreeze_at) > self.stages.top:
            raise ValueError(
                f"unfreeze_at={list(self.unfreeze_at)} unfreezes {len(self.unfreeze_at)} stages, but "
                f"{self.backbone_name} has {self.stages.top} below its head"
            )
        self.val_metrics, self.test_metrics = (
            make_metrics(num_classes, f"{stage}/", task) for stage in ("val", "test")
        )
        self.val_confusion = ConfusionMatrix(num_classes) if task == "multiclass" else None
        self._matrix: Tensor | None = None
        self._cache: FeatureCache | None = None
        self._resumed: dict[str, Any] | None = None
        self._plateau_epoch = -1
        self._lowest = -1
        self._settle(0)
        self.train()

    # The network.

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits or values `(N, num_classes)`; of a network that ends in a softmax, logarithms."""
        return self._read(self.network(images))[0]

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
        heads = self.classifiers.replaced
        state = {
            key: value.detach().cpu().clone()
            for key, value in self.network.state_dict().items()
            if not any(key.startswith(f"{name}.") for name in heads)
        }
        about = {"backbone": self.backbone_name, "left_out": list(heads), "image_size": list(self.image_size)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save({"state_dict": state, "about": about}, file)

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
        freeze(self.network, self.stages, lowest, self._always_frozen)
        return changed

    def setup(self, stage: str) -> None:
        """Refuse what cannot be trained, and freeze for the first epoch, before anything is wrapped."""
        if stage != "fit":
            return
        # It is intended; Lightning's own advice is to ignore it then.
        warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training")
        self._check_trainer()
        self._matrix, self._cache = None, None  # of an earlier run
        if self._outlet is not None:
            self._outlet.open(self.trainer)
        self._settle(0)
        self.train()

    def on_train_start(self) -> None:
        """Freeze what is frozen in the epoch that a checkpoint goes on with, and compute features once."""
        self._settle_for_epoch()
        if self.cache_features:
            self._cache = FeatureCache(self.network, self.classifiers.main.name)
            self._cache.install(self.trainer, sample_images(self.network, self.image_size, 2))
        # One that was loaded to be trained anew begins its own run.
        self._resumed = self._resumed if self.trainer.ckpt_path is not None else None
        self._plateau_epoch = -1
        if self._resumed is not None:
            resume_run(self.trainer, self._resumed)

    def on_train_epoch_start(self) -> None:
        """Unfreeze what is due."""
        self._settle_for_epoch()
        if self._resumed is not None:
            resume_epoch(self.trainer, self._resumed)
        self._resumed = None

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
        check_monitor(self.scheduler, self.scheduler_options, trainer)
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
            logits, others = self._logits(batch), list[Tensor]()
        else:
            if self.mixup:
                images, labels = self._mixed(images, labels)
            logits, others = self._read(self.network(images))
        loss = self.compute_loss(logits, labels, training=True)
        weight = _ONE_AUXILIARY if len(others) == 1 else _MORE_AUXILIARIES
        for auxiliary in others:
            loss = loss + weight * self.compute_loss(auxiliary, labels, training=True)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch."""
        self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch."""
        self._measure(batch, "test", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits `(N, num_classes)` of a batch of images, with labels or without."""
        return self.forward(batch if isinstance(batch, Tensor) else batch[0])

    def compute_loss(self, outputs: Tensor, labels: Any, *, training: bool = False) -> Tensor:
        """Return the loss of a batch; override it for another one.

        Args:
            outputs: `(N, num_classes)`: logits, or values.
            labels: What stands beside the images in the batch.
            training: Whether it is what training lowers: with weights and smoothing; also of auxiliary classifiers.

        Raises:
            ValueError: Labels are of a form that does not fit the task.
        """
        if not training:
            return task_loss(outputs.float(), labels, self.task)
        weight: Any = self.class_weights
        return task_loss(outputs, labels, self.task, weight=weight, label_smoothing=self.label_smoothing)

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, labels: Any) -> None:
        """Count a batch in metrics that are logged; override it where labels are of another form.

        Args:
            metrics: `val_metrics` or `test_metrics`, which a subclass may replace.
            outputs: See `compute_loss`.
            labels: Likewise.
        """
        metrics.update(outputs, task_targets(labels, outputs, self.task))
        if metrics is self.val_metrics and self.val_confusion is not None:
            self.val_confusion.update(outputs, labels)

    def _measure(self, batch: Any, stage: str, metrics: MetricCollection) -> None:
        outputs, labels = self._logits(batch), batch[1]
        loss = self.compute_loss(outputs, labels)
        self.update_metrics(metrics, outputs, labels)
        size = len(outputs)
        names: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=size, sync_dist=True, **names)
        self.log_dict(metrics, batch_size=size, **names)

    def _read(self, output: Any) -> tuple[Tensor, list[Tensor]]:
        """The logits in an output, and those of auxiliary classifiers: probabilities are taken back to logits."""
        training = self.network.training
        logits, others = read_logits(output, self.classifiers, training=training)
        if self.task == "regression":
            return logits, list(others)
        endings = self._endings[training]
        if self.task != "multiclass":  # each is by itself, also where a softmax has made them
            endings = tuple("sigmoid" if how else "" for how in endings)
        made = [undone(one, how) for one, how in zip((logits, *others), endings, strict=True)]
        return made[0], made[1:]

    def _logits(self, batch: Any) -> Tensor:
        if not isinstance(batch, CachedBatch):
            logits: Tensor = self(batch[0])
            return logits
        assert self._cache is not None
        return self._cache.logits(batch)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        mixed: tuple[Tensor, Tensor] = v2.MixUp(alpha=self.mixup, num_classes=self.num_classes)(images, labels)
        return mixed

    # Optimization.

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with all groups of parameters, and the scheduler."""

        def groups(decays: bool) -> list[dict[str, Any]]:
            return parameter_groups(self.network, self.stages, self.layer_decay, self._always_frozen, decays=decays)

        made = make_optimizer(self.optimizer, groups, self.lr, self.optimizer_options)
        if self.scheduler is None:
            return made
        length = RunLength(self.trainer, self.scheduler)
        schedule = make_scheduler(self.scheduler, made, self.scheduler_options, length, self.warmup_epochs)
        return {"optimizer": made, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, and remember in which epoch one that needs a metric did."""
        super().lr_scheduler_step(scheduler, metric)
        if metric is not None:
            self._plateau_epoch = self.trainer.current_epoch

    # The confusion matrix.

    def on_validation_epoch_end(self) -> None:
        """Keep what validation has counted."""
        if self.val_confusion is None:
            return
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._matrix = self.val_confusion.compute().cpu()
        self.val_confusion.reset()

    def on_train_end(self) -> None:
        """Draw the last validation's confusion matrix, and give the loaders back."""
        if self._cache is not None:
            self._cache.remove()
        if self._outlet is None:
            return
        if self._matrix is not None and self.val_confusion is not None and self._outlet.is_open:
            step = Step(epoch=self.trainer.current_epoch, global_step=self.trainer.global_step, stage="fit")
            lost = self.val_confusion.left_out
            self._outlet.show(confusion_report(self._matrix, self.class_names, unscored=lost), step)
        self._outlet.close()

    # Checkpoints.

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """Load a checkpoint as Lightning does; weights that it was trained from are not looked for.

        A network, a head or an optimizer of your own is no setting that is stored: give it again by keyword. So is what
        would have to be imported (`backbone="package.module:factory"`): no code is run that a file names.

        Raises:
            ValueError: The checkpoint names code, or cannot be read.
        """
        trusted = {name: options[name] for name in ("weights_only",) if options.get(name) is not None}
        content = read_checkpoint(checkpoint_path, **trusted)
        parameters = inspect.signature(cls).parameters
        check_module(content, checkpoint_path, parameters, typed=options)
        stored_settings(content, checkpoint_path, parameters, typed=options)
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights": None, **options})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no weight, but changes what a network computes, and how a run goes on."""
        checkpoint["transform_input"] = bool(getattr(self.network, "transform_input", False))
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":
            checkpoint["run"] = run_state(trainer, self._plateau_epoch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set it again, and keep the rest until training starts."""
        self._resumed = checkpoint.get("run")
        if hasattr(self.network, "transform_input"):
            self.network.transform_input = checkpoint.get("transform_input", False)

    def _transform_input(self, backbone: str | nn.Module, weights: str) -> None:
        if isinstance(backbone, str) and backbone in _TRANSFORMED:
            file, _ = weights_file(weights)
            own = not file.is_file() or file.name.startswith(f"{_TRANSFORMED[backbone]}-")
            self.network.transform_input = own  # type: ignore[assignment]
