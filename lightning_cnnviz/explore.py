"""Exploration of a trained network: every view of it on a folder of images, on one page, without training."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz.callbacks import (
    ActivationMapMonitor,
    AttributionMonitor,
    CorrelationMonitor,
    DeconvnetMonitor,
    FilterMonitor,
    InvarianceMonitor,
    LayerProbeMonitor,
    LayerTableMonitor,
    MaximizationMonitor,
    OcclusionMonitor,
    TopPatchesMonitor,
)
from lightning_cnnviz.core.network.classification import Classified, classify
from lightning_cnnviz.core.network.hooks import analysis_mode, model_device
from lightning_cnnviz.core.network.layers import why_no_convolution
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.checkpoints import read_checkpoint, stored_settings
from lightning_cnnviz.finetune.heads import find_classifiers
from lightning_cnnviz.finetune.images import LabeledImages
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.finetune.networks import make_network
from lightning_cnnviz.finetune.presets import image_transform
from lightning_cnnviz.finetune.sources import ImageList, data_name, find_images, images_of_files, list_images
from lightning_cnnviz.finetune.weights import load_weights, read_weights, weights_file
from lightning_cnnviz.record.data import plain
from lightning_cnnviz.record.identity import NetworkIdentity, network_identity, versions
from lightning_cnnviz.record.store import Record, RecordedLook
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink

__all__ = ["RANDOM", "VIEWS", "Exploration", "explore", "find_exploration_images", "has_random_weights", "load_network"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BATCH = 16

RANDOM = "random, not trained"
"""What is said of weights that a network by name was made with."""


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """What a view's monitor is made with.

    Attributes:
        options: For views of all images.
        sample: For views of a few images and of class scores.
        layers: Those that were asked for, by the name of the argument; empty for each view's own choice.
        features: Likewise, how many feature maps of each layer.
    """

    options: dict[str, Any]
    sample: dict[str, Any]
    layers: dict[str, Any]
    features: dict[str, Any]


VIEWS: Mapping[str, Callable[[_Arguments], pl.Callback]] = {
    "layer_table": lambda args: LayerTableMonitor(**args.options),
    "filters": lambda args: FilterMonitor(**args.options),
    "top_patches": lambda args: TopPatchesMonitor(**args.layers, **args.features, **args.options),
    "deconvnet": lambda args: DeconvnetMonitor(**args.layers, **args.features, **args.options),
    "correlation": lambda args: CorrelationMonitor(**args.layers, **args.options),
    "activation_maps": lambda args: ActivationMapMonitor(**args.layers, **args.sample),
    "layer_probe": lambda args: LayerProbeMonitor(**args.layers, **args.options),
    "invariance": lambda args: InvarianceMonitor(**args.sample),
    "occlusion": lambda args: OcclusionMonitor(**args.sample),
    "attribution": lambda args: AttributionMonitor(**args.sample),
    "maximization": lambda args: MaximizationMonitor(steps=64, **args.layers, **args.sample),
}
"""How each view is made, by its name."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What an exploration made.

    Attributes:
        page: The local page.
        views: Which views are on it.
        left_out: Which are not, and why.
        reused: Which of them are those of an earlier exploration: same weights, images and arguments.
    """

    page: Path
    views: tuple[str, ...]
    left_out: Mapping[str, str]
    reused: tuple[str, ...] = ()


def load_network(
    name: str,
    weights: str | None = None,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    backbone: str | nn.Module | None = None,
) -> nn.Module:
    """Return a trained network.

    Args:
        name: A checkpoint of a `FineTuner`, or a network by its name: torchvision's, `timm/NAME`, or
            `package.module:factory`.
        weights: `"DEFAULT"`, another name of weights, or a file; None for the values that the network is made with.
        input_size: Channels, height and width of its input.
        backbone: Of a checkpoint of a network of your own: the network that it was trained from, or its name. What
            would have to be imported is taken from here alone: no code is run that a checkpoint names.

    Raises:
        ImportError: A package is needed that is not installed.
        ValueError: There is no such network, or weights do not fit it.
    """
    file = Path(name).expanduser()
    if file.is_file():
        if weights is not None:
            raise ValueError(f"weights={weights!r}: '{name}' is a checkpoint, which has its own; leave them out")
        return _from_checkpoint(file, backbone)
    if backbone is not None:
        raise ValueError(f"backbone={backbone!r} is for a checkpoint, and '{name}' is no file")
    network = make_network(name)
    if weights is not None:
        channels, height, width = input_size
        classifiers = find_classifiers(network, (channels, height, width))
        head = network.get_submodule(classifiers.main.name)
        before = [parameter.detach().clone() for parameter in head.parameters()]
        given, (_, part) = read_weights(name, weights), weights_file(weights)
        load_weights(network, given, classifiers, f"weights={weights!r}", part=part)
        if all(torch.equal(one, other) for one, other in zip(before, head.parameters(), strict=True)):
            raise ValueError(
                f"weights={weights!r} has no classifier of as many classes as {name}; of a network that was "
                "fine-tuned, give FineTuner's checkpoint in place of the name"
            )
    return network


def has_random_weights(name: str, weights: str | None) -> bool:
    """Tell whether a network of `load_network` is untrained; of a factory of your own nobody knows."""
    return weights is None and ":" not in name and not Path(name).expanduser().is_file()


def _from_checkpoint(file: Path, backbone: str | nn.Module | None) -> nn.Module:
    checkpoint = read_checkpoint(file)
    typed = {} if backbone is None else {"backbone": backbone}
    known = inspect.signature(FineTuner).parameters
    settings = stored_settings(checkpoint, file, known, typed=typed, how="backbone=... or --{} NAME") | typed
    if "backbone" not in settings or "num_classes" not in settings or "state_dict" not in checkpoint:
        raise ValueError(
            f"{file} is no checkpoint of a FineTuner with a network by name; give the network's name, and "
            f"weights={str(file)!r}; or backbone=... of a FineTuner with a network of your own"
        )
    tuner = FineTuner(**settings, sinks=[])
    tuner.on_load_checkpoint(checkpoint)
    try:
        tuner.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not fit its network: {str(error).splitlines()[0]}") from error
    network = tuner.network
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def find_exploration_images(
    data: str | Path,
    *,
    input_size: Sequence[int] = (3, 224, 224),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    most: int | None = None,
    root: str | Path = "data",
    download: bool = False,
) -> LabeledImages:
    """Return images to explore a network with: test images where there are some, else validation's, else all.

    Args:
        data: A folder of images, with a folder for each class or without; `"digits"`; or a torchvision data set.
        input_size: Channels, height and width of the network's input.
        mean: Subtracted from pixels of 0 to 1; by default ImageNet's.
        std: And divided by.
        most: At most so many images, spread evenly over them; by default all.
        root: Where torchvision's data sets are.
        download: Whether one that is not there may be downloaded.

    Raises:
        FileNotFoundError: There is no such folder or data set, or no image in it.
        ValueError: `input_size` has no 1 or 3 channels, or a number is out of range.
    """
    channels, height, width = input_size
    if channels not in (1, 3) or min(height, width) < 1:
        raise ValueError(f"input_size={tuple(input_size)}: give channels (1 or 3), height and width")
    if most is not None and most < 1:
        raise ValueError(f"{most} images: give 1 or more")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, channels):
            raise ValueError(f"{name}={list(values)}: give one value, or {channels}, one a channel")
    images, classes, crop = _images_of(data, root, download)
    places = list(range(len(images.labels)))
    if most is not None and most < len(places):
        places = [places[round(number * (len(places) - 1) / max(1, most - 1))] for number in range(most)]
    by_default = ([_IMAGENET[0], _IMAGENET[1]]) if channels == 3 else [(0.449,), (0.226,)]
    transform = image_transform(
        (height, width), crop=crop, mean=list(mean or by_default[0]), std=list(std or by_default[1])
    )
    return LabeledImages(
        images,
        places,
        [images.labels[place] for place in places],
        classes,
        transform,
        channels=channels,
        enough=math.ceil(max(height, width) / crop),
        name=data_name(data),
    )


def explore(
    network: nn.Module,
    images: LabeledImages,
    out: Path,
    *,
    views: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    features: int | Literal["all"] | None = None,
    wandb: str | None = None,
    weights: str = "",
) -> Exploration:
    """Look at a trained network from every side, and write one page.

    What each view has computed is kept in the record beside the page. Of the same weights, images and arguments, no
    view is computed again: an exploration that was interrupted goes on.

    Where the images have as many classes as the network, they are taken to be the same ones; a network of one score
    tells two. Else, class scores are those of the class that the network gives each image, or its value where it has
    one score; of a network that gives each pixel a class, those of each class that it sees.

    Args:
        network: Takes images `(N, C, H, W)`; left as it was.
        images: From `find_exploration_images`.
        out: Folder of the page.
        views: Names in `VIEWS`; by default all that suit the network and the images.
        layers: For the views that show layers; by default each chooses its own.
        features: Of how many feature maps of each layer patches and projections are shown: the first n, or `"all"`; by
            default 16 of patches and 8 of projections.
        wandb: A W&B project, to log an offline run there, too.
        weights: What is said of the weights beside the network's name, such as `RANDOM`.

    Raises:
        ValueError: There is no such view or layer, `features` is less than 1, the network does not take the images, or
            the folder cannot be written.
    """
    if features is not None and features != "all" and (isinstance(features, bool) or features < 1):
        raise ValueError(f'features={features!r}: give a number of at least 1, or "all"')
    unknown = [view for view in views or () if view not in VIEWS]
    if unknown:
        raise ValueError(f"no view is called '{unknown[0]}'.{suggestion(unknown[0], VIEWS, ' ')} There are {[*VIEWS]}")
    left_out = _left_out(network, images)
    refused = [f"{view}: {left_out[view]}" for view in views or () if view in left_out]
    if refused:
        raise ValueError("; ".join(refused))
    chosen = [view for view in views or VIEWS if view not in left_out]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be written: {error}") from error
    page, logger = PageSink(out), None if wandb is None else _logger(wandb, out)
    sinks: list[Sink] = [page] if wandb is None else [WandbSink(), page]
    options: dict[str, Any] = {"sinks": sinks, "on_error": "raise"}
    arguments = _Arguments(
        options=options,
        sample=options | _sample_options(network, images),
        layers={} if layers is None else {"layers": [*layers]},
        features={} if features is None else {"features": None if features == "all" else features},
    )
    monitors: dict[str, Any] = {view: VIEWS[view](arguments) for view in chosen}
    for sink in sinks:
        sink.open([] if logger is None else [logger], out)
    seen = replace(network_identity(network), weights=weights)
    earlier = _earlier(Record(out / "record"), monitors, seen, images)
    reused = tuple(view for view in chosen if view in earlier and _shown(earlier[view], page, sinks))
    missing = [monitors[view] for view in chosen if view not in reused]
    if missing:
        run = _run(seen, images, layers, features)
        for monitor in missing:
            monitor.load_state_dict({"run": run})
        _validate(_Explored(network, weights), images, missing, logger, out)
    if logger is not None:
        logger.experiment.finish()
    return Exploration(page=page.path.resolve(), views=tuple(chosen), left_out={} if views else left_out, reused=reused)


def _validate(explored: _Explored, images: LabeledImages, monitors: list[Any], logger: Any, out: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        logger=logger or False,
        callbacks=monitors,
        accelerator="cpu" if model_device(explored).type == "cpu" else "auto",
        devices=1,
        default_root_dir=out,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.validate(explored, _loader(images), verbose=False)


def _run(seen: NetworkIdentity, images: LabeledImages, layers: Sequence[str] | None, features: int | str | None) -> str:
    """Name the exploration: looks at other images, weights or features stand beside its own, never among them."""
    chosen = (layers and [*layers], *([] if features is None else [features]))
    asked = hashlib.blake2b(repr((seen, *chosen)).encode(), digest_size=8)
    return f"{images.checksum()}-{asked.hexdigest()}"


def _earlier(
    record: Record, monitors: Mapping[str, Any], seen: NetworkIdentity, images: LabeledImages
) -> dict[str, RecordedLook]:
    """The looks of earlier explorations that the monitors would take again, by view."""
    pictures = f"{images.checksum()}-"
    found = {}
    for look in record.looks(stage="validate"):
        identity = look.identity
        monitor = monitors.get(identity.view)
        if (
            monitor is not None
            and identity.network == seen
            and identity.run.startswith(pictures)
            and identity.versions.get("lightning_cnnviz") == versions()["lightning_cnnviz"]
            and _described(identity.arguments) == _described(monitor.arguments)
        ):
            found[identity.view] = look
    return found


def _described(arguments: Mapping[str, Any]) -> Any:
    """What a view depends on: not where it is shown."""
    return plain({name: value for name, value in arguments.items() if name != "sinks"})


def _shown(look: RecordedLook, page: PageSink, sinks: Sequence[Sink]) -> bool:
    """Show a look as it was, where it is not on the page already; say whether that could be done."""
    lacking = [sink for sink in sinks if sink is not page or not page.shows(look.identity.view, look.step)]
    try:
        report = look.report() if lacking else None
    except (ValueError, OSError):  # damaged: it is computed again
        return False
    for sink in lacking:
        assert report is not None
        sink.write(report, look.step)
    return True


class _Explored(pl.LightningModule):
    """Validates a network; having no `forward` of its own, it leaves layers the names that they have in the network."""

    def __init__(self, network: nn.Module, weights: str) -> None:
        super().__init__()
        self.network, self.weights_are = network, weights

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.network(batch[0])


def _images_of(data: str | Path, root: str | Path, download: bool) -> tuple[ImageList, tuple[str, ...], float]:
    """The images, their classes' names, and how much of them the crop covers."""
    folder = Path(data).expanduser()
    if folder.is_dir() and not any(place.is_dir() and not place.name.startswith(".") for place in folder.iterdir()):
        return images_of_files(list_images(folder)), (), 224 / 256
    source = find_images(data, root=root, download=download)
    part = next(part for part in ("test", "val", "all", "train") if part in source.parts)
    return source.parts[part], source.classes, 1.0 if source.small else 224 / 256


def _left_out(network: nn.Module, images: LabeledImages) -> dict[str, str]:
    """The views that do not suit the network or the images, and why."""
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        raise ValueError(f"{type(network).__name__} has no convolution (nn.Conv2d): {why_no_convolution(network)}")
    left_out = {}
    labels = {label for label in images.targets if label >= 0}
    if len(labels) < 2:
        left_out["layer_probe"] = "it needs images of two classes or more, in a folder for each class"
    elif min(images.targets.count(label) for label in labels) < _LEAST:
        left_out["layer_probe"] = f"it needs {_LEAST} images of each class"
    if _classified(network, images) is None:
        left_out |= dict.fromkeys(_OF_CLASSES, "the network returns no scores of classes, and no values")
    return left_out


_LEAST = 5  # to learn from, to choose C on, and to test on
_OF_CLASSES = ("invariance", "occlusion", "attribution")


def _sample_options(network: nn.Module, images: LabeledImages) -> dict[str, Any]:
    """The data of views of class scores: the images with their classes, where these are the network's own."""
    found = _classified(network, images)
    if found is not None and found.task.kind != "segmentation" and _are_labeled(images, found.classes):
        return {}
    # Names of other classes than the network's would be put to its numbers.
    return {"data": _loader(images.without_classes()), "batch_fn": _images_alone}


def _are_labeled(images: LabeledImages, classes: int) -> bool:
    """Whether each image has one of so many classes, and there are no others."""
    return bool(images.targets) and min(images.targets) >= 0 and len(images.classes) == classes


def _classified(network: nn.Module, images: LabeledImages) -> Classified | None:
    """What the network makes of an image: of one score and images of two classes, a yes or no; None for no scores."""
    image, label = images[0]
    labels = torch.tensor([label]) if _are_labeled(images, 2) else None
    with analysis_mode(network):
        try:
            found = classify(network, image[None].to(model_device(network)))
            if found.task.kind == "regression" and found.classes == 1 and labels is not None:
                found = classify(network, image[None].to(model_device(network)), labels)
        except ValueError as error:
            if "does not take images" in str(error):
                raise
            return None
    if found.regions is not None and not found.task.part and found.regions.shape[1:] != image.shape[1:]:
        return None  # feature maps of a network without a head
    return found


def _images_alone(batch: tuple[Tensor, Tensor]) -> Tensor:
    return batch[0]


def _loader(images: LabeledImages) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(images, batch_size=_BATCH, generator=torch.Generator().manual_seed(0))


def _logger(project: str, out: Path) -> WandbLogger:
    return WandbLogger(project=project, save_dir=str(out), offline=True, settings={"silent": True, "console": "off"})
