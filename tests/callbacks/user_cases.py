"""Modules of users in trainers of users, and which views serve each: `docs/modules.md` is made of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from callbacks import user_modules as user
from callbacks.user_modules import Classifier, labelled
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

Data = Callable[[int, int], Any]


def fit(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """As most do."""
    trainer.fit(module, train, val)


def probabilities(output: Tensor) -> Tensor:
    """Of logits."""
    return output.softmax(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One LightningModule in one Trainer.

    Attributes:
        name: Its identity.
        title: What it is, for the table.
        module: Makes it.
        data: Makes its data set, of a number of items and a seed; None for modules that have loaders of their own.
        val: Whether there is a validation loader, and how many.
        loader: Options of its loaders.
        trainer: Options of the Trainer.
        callbacks: Makes those that it has beside monitors.
        run: Runs it.
        aside: Why views step aside: a part of the reason, by view.
        shown: Whether any view is shown.
        p: Makes probabilities (or values) of what the module returns: what views have to come to.
        call: Runs the network that views look at.
        checked: Whether values are computed once more: not where the last look was at other weights or images.
        quick: Whether it is tried in each test run.
    """

    name: str
    title: str
    module: Callable[[], pl.LightningModule] = Classifier
    data: Data | None = lambda count, seed: labelled(count, seed=seed)
    val: int = 1
    loader: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    run: Callable[[Any, Any, Any, Any], None] = fit
    aside: dict[str, str] = field(default_factory=dict)
    shown: bool = True
    p: Callable[[Any], Tensor] = probabilities
    call: Callable[[Any, Tensor], Any] = lambda module, images: module(images)
    checked: bool = True
    quick: bool = False

    def loaders(self) -> tuple[Any, Any]:
        """Return those of training and of validation."""
        if self.data is None:
            return None, None
        options: dict[str, Any] = {"batch_size": 4, **self.loader}
        train = DataLoader(self.data(12, 0), **options)
        vals = [DataLoader(self.data(7, seed), **options) for seed in range(1, self.val + 1)]
        return train, vals[0] if self.val == 1 else vals or None


def of(net: Callable[[], nn.Module], loss: Callable[[Any, Any], Tensor] = F.cross_entropy) -> Callable[[], Any]:
    """A classifier's kind, by its network and loss."""
    return lambda: Classifier(net(), loss)


def changed(change: Callable[[Tensor], Any], outputs: int = user.CLASSES) -> Callable[[], nn.Module]:
    """A network whose output is changed."""
    return lambda: user.Sum(user.convnet(outputs), change)


def lr_find(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """Look for a learning rate before."""
    Tuner(trainer).lr_find(module, train, val, num_training=4)
    trainer.fit(module, train, val)


def scale_batch_size(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """Look for a batch size before."""
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1, init_val=2)
    trainer.fit(module)


def validate_before(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """See how it is before."""
    trainer.validate(module, val, verbose=False)
    trainer.fit(module, train, val)


def test_after(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """Test on data without labels."""
    trainer.fit(module, train, val)
    module.loss = lambda batch: module(batch[0] if isinstance(batch, (list, tuple)) else batch)
    trainer.test(module, DataLoader(user.images(7, seed=5), batch_size=4), verbose=False)


def predict_alone(trainer: Any, module: Any, train: Any, val: Any) -> None:
    """No monitor has a part in it."""
    trainer.predict(module, DataLoader(user.images(7, seed=5), batch_size=4))


def compiled() -> nn.Module:
    """As `torch.compile` makes it; run eagerly, since a compiler may be missing."""
    return torch.compile(user.convnet(), backend="eager")  # type: ignore[return-value]


def multi_hot(given: Tensor) -> Tensor:
    return torch.stack([torch.arange(len(given)) % 2, torch.ones(len(given)), torch.arange(len(given)) // 2 % 2], 1)


def ignored(given: Tensor) -> Tensor:
    return torch.where(torch.arange(len(given)) % 4 == 0, -100, user.labels(len(given)))


def mixed_sizes(count: int, seed: int) -> Any:
    """Batches of four, each of a size of its own."""
    sizes = [(10 + 2 * (place // 4),) * 2 for place in range(count)]
    return user.Listed([(user.images(1, seed=seed, size=size)[0], place % 3) for place, size in enumerate(sizes)])


def streamed(count: int, seed: int) -> Any:
    return user.Streamed(count, seed)


def log_loss(given: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(given.log(), labels)


def logits_loss(given: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(given["logits"] if isinstance(given, dict) else given.logits, labels)


def binary_loss(given: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(given[:, 0], labels.float())


def multilabel_loss(given: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(given, labels)


def regression_loss(given: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(given[:, 0], labels)


def dense_loss(given: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(given["out"], labels)


def yes_or_no(output: Tensor) -> Tensor:
    return torch.cat([1 - output.sigmoid(), output.sigmoid()], 1)


class Segmenter(nn.Module):
    """As torchvision's: a mapping with `out`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = user.UNet()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.net(images)}


# Why views step aside: what each says, in part.
_NO_LABELS = "a probe needs"
_PROBES = {"layer_probe": _NO_LABELS, "online_probe": _NO_LABELS}
_OF_CONVOLUTIONS = ("top_patches", "deconvnet", "correlation", "activation_maps", "maximization", *_PROBES)
_OF_SCORES = ("attribution", "occlusion", "invariance")
_OF_PASSES = ("top_patches", "deconvnet", "correlation")
_OF_IMAGES = ("activation_maps", "maximization", *_OF_SCORES)
VIEWS = ("layer_table", "filters", *_OF_PASSES, *_PROBES, *_OF_IMAGES)


def because(reason: str, *views: str) -> dict[str, str]:
    """One reason of several views."""
    return dict.fromkeys(views, reason)


_ANY_AXES = ("layer_probe", "online_probe", "top_patches", "deconvnet", "maximization")
_NOT_2D = because(
    "is no network of images: its convolutions are",
    *(view for view in ("filters", *_OF_CONVOLUTIONS, *_OF_SCORES) if view not in _ANY_AXES),
)
_NO_IMAGES = because("no images found in a batch", *(view for view in VIEWS if view != "filters"))
_NO_VALIDATION = {
    **because("looks at validation batches, but", *_OF_PASSES, "online_probe"),
    **because("draws its images from the validation data, and there is none", *_OF_IMAGES),
}

by_name = user.ByName
CASES = [
    # What a network returns.
    Case(name="plain", title="A classifier", quick=True),
    Case(
        name="dict",
        title="Its output is a mapping with `logits`",
        module=of(changed(lambda z: {"logits": z}), logits_loss),
        p=lambda output: output["logits"].softmax(1),
    ),
    Case(
        name="dataclass",
        title="Its output is a dataclass with `logits`",
        module=of(changed(user.Output), logits_loss),
        p=lambda output: output.logits.softmax(1),
    ),
    Case(
        name="model_output",
        title="A Hugging Face `ModelOutput`",
        module=of(changed(lambda z: user.ModelOutput(logits=z)), logits_loss),
        p=lambda output: output.logits.softmax(1),
    ),
    Case(
        name="one_logit",
        title="One logit, labels 0 and 1",
        module=of(lambda: user.convnet(1), binary_loss),
        data=user.pairs(lambda x: torch.arange(len(x)) % 2),
        p=yes_or_no,
    ),
    Case(
        name="multilabel",
        title="Several labels an image (multi-hot floats)",
        module=of(user.convnet, multilabel_loss),
        data=user.pairs(multi_hot),
        p=torch.sigmoid,
    ),
    Case(
        name="probabilities",
        title="A network that ends in softmax",
        module=of(changed(lambda z: z.softmax(1)), log_loss),
        p=lambda output: output,
    ),
    Case(
        name="segmentation",
        title="Segmentation, `{'out': (N, K, H, W)}` and label maps",
        module=of(Segmenter, dense_loss),
        data=user.pairs(lambda x: (x[:, 0] * 2.99).long()),
        quick=True,
        p=lambda output: output["out"].softmax(1),
    ),
    Case(
        name="regression",
        title="Regression, one value",
        module=of(lambda: user.convnet(1), regression_loss),
        data=user.pairs(lambda x: x.mean((1, 2, 3))),
        p=lambda output: output,
    ),
    Case(
        name="heads",
        title="Two heads, by name",
        module=user.Heads,
    ),
    Case(
        name="autoencoder",
        title="An autoencoder, no labels",
        module=user.Autoencoder,
        data=lambda count, seed: user.pairs(lambda x: x)(count, seed),
        quick=True,
        aside={**_PROBES, **because("as an autoencoder has: no scores of classes", *_OF_SCORES)},
    ),
    Case(
        name="gan",
        title="A GAN, `automatic_optimization=False`, two optimizers",
        module=user.Generative,
        call=lambda module, images: module.discriminator(images),
        p=lambda output: output,
    ),
    Case(
        name="detection",
        title="Detection, a list of images",
        module=user.Detector,
        data=user.boxes,
        loader={"collate_fn": user.as_lists},
        aside=_NO_IMAGES,
    ),
    # How it is called, and what it is made of.
    Case(
        name="no_forward",
        title="No `forward`: backbone and head are children",
        module=user.WithoutForward,
        quick=True,
        call=lambda module, images: module.head(module.backbone(images)),
    ),
    Case(
        name="one_child",
        title="No `forward`: one child is the network",
        module=user.OneChild,
        call=lambda module, images: module.model(images),
    ),
    Case(name="configure_model", title="Layers are made in `configure_model`", module=user.Configured),
    Case(
        name="no_convolution",
        title="No convolution",
        module=of(user.dense_net),
        quick=True,
        aside={
            **because("Classifier has no Conv2d; it is made of", "filters", *_OF_CONVOLUTIONS),
            "attribution": "has no layer that returns feature maps",
            "invariance": "has no convolution that runs exactly once",
        },
    ),
    Case(
        name="vit",
        title="A vision transformer: its one convolution cuts patches",
        module=of(user.VisionTransformer),
        quick=True,
        aside=because("cuts images into patches of 5 x 5", *_OF_CONVOLUTIONS, "attribution"),
    ),
    Case(
        name="conv1d",
        title="Signals `(N, C, L)`, Conv1d",
        module=of(user.of_signals),
        data=lambda count, seed: labelled(count, seed=seed, size=(24,)),
        quick=True,
        aside=_NOT_2D,
    ),
    Case(
        name="conv3d",
        title="Volumes `(N, C, D, H, W)`, Conv3d",
        module=of(user.of_volumes),
        data=lambda count, seed: labelled(count, seed=seed, size=(6, 6, 6)),
        aside=_NOT_2D,
    ),
    Case(
        name="quantized",
        title="Quantized convolutions",
        module=of(user.quantized),
        aside=because("is quantized", *VIEWS),
    ),
    Case(
        name="compiled",
        title="`torch.compile`d",
        module=of(compiled),
        aside={"online_probe": "compiled networks (torch.compile)"},
    ),
    Case(name="lazy", title="Lazy layers", module=of(user.lazy)),
    Case(name="tied", title="A layer that runs twice, and two that share weights", module=of(user.Tied)),
    Case(name="weight_norm", title="Weight normalization", module=of(user.weight_normed)),
    Case(name="batch_norm", title="BatchNorm, one of them frozen", module=of(user.frozen_batch_norm)),
    # What it is given.
    Case(
        name="batch_dict",
        title="Batches are mappings, `image` and `label`",
        module=by_name,
        data=user.mappings,
        checked=False,
    ),
    Case(
        name="odd_names",
        title="Batches are mappings of other names",
        module=partial(by_name, "photo", "species"),
        data=partial(user.mappings, names=("photo", "species")),
        aside=_NO_IMAGES,
    ),
    Case(
        name="metadata",
        title="A network of two inputs",
        module=user.WithMetadata,
        data=partial(user.mappings, meta=True),
        aside=because("missing 1 required positional argument", *(view for view in VIEWS if view != "filters")),
    ),
    Case(name="ignored", title="Some labels are -100 (ignore)", data=user.pairs(ignored), quick=False, checked=False),
    Case(
        name="no_test_labels",
        title="`trainer.test` on images without labels",
        run=test_after,
        aside=_PROBES,
        checked=False,
    ),
    Case(
        name="sizes",
        title="Each batch has images of a size of its own",
        data=mixed_sizes,
        quick=True,
        aside={"layer_probe": "are of different sizes, and no batch can be made of them"},
    ),
    Case(
        name="uint8",
        title="uint8 images, normalized inside the network",
        module=user.OfBytes,
        data=lambda count, seed: user.TensorDataset((user.images(count, seed=seed) * 255).byte(), user.labels(count)),
        quick=True,
    ),
    Case(
        name="rgb",
        title="3 channels",
        module=of(lambda: user.convnet(channels=3)),
        data=lambda count, seed: labelled(count, 3, seed=seed),
    ),
    Case(
        name="four_channels",
        title="4 channels",
        module=of(lambda: user.convnet(channels=4)),
        data=lambda count, seed: labelled(count, 4, seed=seed),
    ),
    Case(
        name="twelve_channels",
        title="12 channels",
        module=of(lambda: user.convnet(channels=12)),
        data=lambda count, seed: labelled(count, 12, seed=seed),
    ),
    Case(name="iterable", title="An `IterableDataset`", data=streamed, checked=False),
    # Trainers.
    Case(name="no_validation", title="No validation loader", val=0, quick=True, aside=_NO_VALIDATION),
    Case(name="two_validations", title="Two validation loaders", val=2, quick=True),
    Case(name="limit_val_0", title="`limit_val_batches=0`", trainer={"limit_val_batches": 0}, aside=_NO_VALIDATION),
    Case(name="no_sanity", title="`num_sanity_val_steps=0`", trainer={"num_sanity_val_steps": 0}),
    Case(name="fast_dev_run", title="`fast_dev_run=True`", trainer={"fast_dev_run": True}, shown=False, checked=False),
    Case(name="accumulation", title="`accumulate_grad_batches=2`", trainer={"accumulate_grad_batches": 2}),
    Case(name="clipping", title="`gradient_clip_val=0.1`", trainer={"gradient_clip_val": 0.1}),
    Case(name="bf16_mixed", title='`precision="bf16-mixed"`', trainer={"precision": "bf16-mixed"}, checked=False),
    Case(name="bf16_true", title='`precision="bf16-true"`', trainer={"precision": "bf16-true"}, checked=False),
    Case(name="overfit", title="`overfit_batches=1`", trainer={"overfit_batches": 1}, checked=False),
    Case(name="val_in_epoch", title="`val_check_interval=0.5`", trainer={"val_check_interval": 0.5}),
    Case(name="max_steps", title="`max_steps`, in the middle of an epoch", trainer={"max_steps": 4, "max_epochs": 9}),
    Case(name="ema", title="`EMAWeightAveraging`", callbacks=lambda: [EMAWeightAveraging(decay=0.5)], quick=False),
    Case(
        name="swa",
        title="`StochasticWeightAveraging`",
        callbacks=lambda: [StochasticWeightAveraging(0.05, swa_epoch_start=1)],
        trainer={"max_epochs": 3},
        checked=False,
    ),
    Case(name="lr_find", title="`Tuner.lr_find` before", module=user.Tuned, data=None, run=lr_find, quick=True),
    Case(
        name="batch_size", title="`Tuner.scale_batch_size` before", module=user.Tuned, data=None, run=scale_batch_size
    ),
    Case(
        name="validate_first",
        title="`trainer.validate` before `trainer.fit`",
        run=validate_before,
        aside={"online_probe": "has probes that learn in trainer.fit", "layer_probe": "needs 3 or more images a class"},
    ),
    Case(name="predict", title="`trainer.predict` alone", run=predict_alone, shown=False),
]
