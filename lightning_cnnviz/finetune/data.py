"""Labeled images for training: split by class, a few of each if so wanted, augmented, and the same at every run."""

from __future__ import annotations

import logging
import math
import multiprocessing
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cnnviz.core.data.distributed import gathered_objects, rank, ranks, together
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.decoding import broken_files
from lightning_cnnviz.finetune.images import EpochOrder, LabeledImages
from lightning_cnnviz.finetune.presets import Augmentation, image_transform
from lightning_cnnviz.finetune.sources import (
    ImageList,
    ImageSource,
    data_name,
    find_images,
    images_of_files,
    list_images,
)
from lightning_cnnviz.finetune.splits import listed_names, split_images

__all__ = ["ImageFolderDataModule"]

log = logging.getLogger("lightning_cnnviz")

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _NoLoaders(CombinedLoader):
    """No loaders: makes a trainer leave validation out, where it would warn of an empty list."""

    def __init__(self) -> None:
        super().__init__([], "sequential")

    @property
    def flattened(self) -> list[Any]:
        """No loader at all."""
        return []

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        pass


class ImageFolderDataModule(pl.LightningDataModule):
    """Labeled images from a folder, from scikit-learn's digits, or from one of torchvision's data sets.

    A folder has `train/` and, as far as there are any, `test/` and `val/` (or `valid/`, `validation/`), each with a
    folder of images for each class; or it has a folder for each class, and is split by the seed: the same fraction of
    each class. Files that are no images by their suffix are left out, and counted.

    Which images are drawn from a class depends on the seed and the class alone: five a class are among the fifteen of
    the same seed, and the test images stay the same whatever is held out for validation. The order of an epoch, and
    what augmentation does to an image in it, depend on the seed and the epoch alone, not on torch's random state nor on
    the number of workers: a resumed run sees what an uninterrupted one would have seen. (In a loop of your own, call
    `loader.sampler.set_epoch(epoch)`.) A last batch of one image is left out, since BatchNorm cannot normalize it.

    Images in files are shown upright, as their EXIF orientation says, gray ones of 16 bits with their whole range.
    Hidden files and folders are left out, and a file that several links lead to is there once in each part. Of a JPEG
    of more than 12 megapixels only so many are decoded as the network's input can show.
    (torchvision's data sets read their own files.)

    With `on_corrupt="raise"`, `setup` decodes the images that the run is about to use, and raises if there is one that
    cannot be read. With `"skip"` it decodes all images of the data set, leaves such files out and warns of their
    number; the next ones of their class take their places. This takes about 0.2 ms a core for a photograph of 300 x
    200 pixels, 25 ms for one of 12 megapixels; ranks share the work. `check=False` leaves it out: a file that cannot be
    read then stops the run that reads it, and is named, too. Of torchvision's data sets nothing is checked.

    Args:
        data: A folder; `"digits"`; or a torchvision data set such as `"CIFAR10"`, `"Caltech101"` or `"Flowers102"`.
        per_class: Number of training images a class, after others were held out; by default all.
        val: Held out of training for validation: a fraction of each class, or a number of images a class; 0 for no
            validation. By default the data set's own validation images where it has some (otherwise they are left
            aside), else a tenth.
        test: Likewise for testing, where the data set has no test images; by default a fifth where it is not divided
            at all, else none.
        seed: Decides which images are drawn, their order, and the augmentation.
        batch_size: Of every loader.
        image_size: Side, or height and width, of the network's input; by default 224 (digits: 32).
        augment: Of training images: `"none"`, `"light"` (crops shifted, mirrored), `"standard"` (parts of any size,
            mirrored) or `"strong"` (this, and TrivialAugment). See `presets.image_transform`.
        mean: Subtracted from pixels of 0 to 1; by default ImageNet's (digits: 0.305).
        std: And divided by; by default ImageNet's (digits: 0.33).
        channels: 3, or 1 for gray images; by default 3 (digits: 1).
        crop: Fraction of the resized image's side that the crop covers; by default 224/256, and 1 for digits and for
            torchvision sets of small images.
        flip: Whether augmentation mirrors images; by default it does, but no digits, letters or traffic signs.
        classes: These classes alone, numbered in this order.
        num_workers: Of every loader.
        on_corrupt: What is done about files that cannot be read: `"raise"` or `"skip"`.
        check: Whether files are decoded once at `setup`.
        download: Whether a torchvision data set that is not in `root` may be downloaded; on several machines, or under
            torchrun, do so once beforehand.
        root: Where torchvision's data sets are.
        predict: A file or a folder of images for `trainer.predict`; by default it is the test images, else the
            validation's.

    Attributes:
        class_names: Names of the classes, in the order of their numbers.
        image_shape: `(C, H, W)` of the network's input.
        train_set: The training images; the others are `val_set`, `test_set` and `predict_set`, None where there are
            none.

    Raises:
        FileNotFoundError: There is no such folder or data set.
        ValueError: The folder is not as described; a class has too few images, or only one part of the data has it; an
            argument is out of range. All at once, and corrupt files at `setup`.

    Example:
        >>> data = ImageFolderDataModule("digits", per_class=5, classes=["3", "8"])
        >>> data.num_classes, data.image_shape, len(data.train_set), sorted(data.train_set.targets)
        (2, (1, 32, 32), 10, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        data: str | Path,
        *,
        per_class: int | None = None,
        val: float | None = None,
        test: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
        image_size: int | tuple[int, int] | None = None,
        augment: Augmentation = "light",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        crop: float | None = None,
        flip: bool | None = None,
        classes: Sequence[str] | None = None,
        num_workers: int = 0,
        on_corrupt: Literal["raise", "skip"] = "raise",
        check: bool = True,
        download: bool = False,
        root: str | Path = "data",
        predict: str | Path | None = None,
    ) -> None:
        super().__init__()
        _check_numbers(per_class=per_class, batch_size=batch_size)
        _check_amounts(val=val, test=test)
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed={seed}, num_workers={num_workers}: give 0 or more")
        if on_corrupt not in ("raise", "skip"):
            raise ValueError(f'on_corrupt={on_corrupt!r}: give "raise" or "skip"')
        self.data, self.per_class, self.val, self.test, self.seed = data, per_class, val, test, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augment, self.on_corrupt, self.check = augment, on_corrupt, check
        self._source, self._name = find_images(data, root=root, download=download), data_name(data)
        self.class_names = list(self._source.classes) if classes is None else _chosen(self._source, classes)
        self._set_up_images(image_size, channels, mean, std, crop, flip)
        self._to_predict = None if predict is None else images_of_files(list_images(predict))
        self._sound: set[str] = set()
        self._broken: dict[str, str] = {}
        self._divide()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def targets(self) -> list[int]:
        """Labels of the training images."""
        return self.train_set.targets

    # Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Check the files of the images that the stage uses; with `on_corrupt="skip"`, all of them."""
        skips = self.on_corrupt == "skip"
        lists = [*self._source.parts.values(), *([self._to_predict] if self._to_predict else [])]
        used = [images.files for images in lists] if skips else [images.files for images in self._used(stage)]
        broken = self._check([file for files in used for file in files or ()]) if self.check else {}
        if broken and not skips:
            raise ValueError(f'{_named(broken)}; on_corrupt="skip" leaves such files out')
        if broken:
            self._broken |= broken
            self._divide()
            rank_zero_warn(f"{_named(broken)}; they are left out")
        if stage == "fit":
            rank_zero_info(self._summary())

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the training images, in an order of its own for each epoch."""
        count, place = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        order = EpochOrder(self.train_set, self.seed, count, place)
        one_left = len(order) % self.batch_size == 1 and len(order) > 1
        return self._loader(self.train_set, sampler=order, drop_last=one_left and self.batch_size > 1)

    def val_dataloader(self) -> Any:
        """Return the validation images, in their order; no loader if there are none."""
        if self.val_set is None and self._asked_for("validate"):
            raise ValueError(
                f"{self._source.name} has no validation images: val={self.val}; give a fraction, as val=0.1"
            )
        return _NoLoaders() if self.val_set is None else self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the test images, in their order.

        Raises:
            ValueError: There are none.
        """
        if self.test_set is None:
            raise ValueError(
                f"{self._source.name} has no test images (in test/, a folder for each class); give test=0.2, for "
                "training too, to hold a fifth of the training images out, or use validate"
            )
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the images to be predicted, in their order.

        Raises:
            ValueError: There are none.
        """
        if self.predict_set is None:
            raise ValueError("there are no images to predict: give predict=<a file, or a folder of images>")
        return self._loader(self.predict_set)

    def split_manifest(self) -> dict[str, Any] | None:
        """Return which images train, validate and test: their files, or else their numbers; None before `setup`."""
        parts = {"train": self.train_set, "val": self.val_set, "test": self.test_set}
        there = {name: images.files or images.indices for name, images in parts.items() if images is not None}
        return {"source": self._source.name, "seed": self.seed, **there} if there else None

    def on_exception(self, exception: BaseException) -> None:
        """Say what a worker was reading that the system has killed: torch gives its process alone."""
        parts = [part for part in (self.train_set, self.val_set, self.test_set, self.predict_set) if part is not None]
        killed = _named_workers(exception)
        if not killed and isinstance(exception, ConnectionError | EOFError):
            # A worker that is killed while a batch comes from it breaks the connection before torch misses its process.
            try:
                killed = _ended([process for part in parts for process in part.readers()])
            except RuntimeError as error:  # torch's: it raises when the signal of the end comes, wherever we are then
                killed = _named_workers(error)
        if not killed:
            return
        read = (part.read_by(process) for process in killed for part in parts)
        files = list(dict.fromkeys(file for file in read if file is not None))
        log.error(
            "a worker process of the data was ended from outside, by lack of memory for the most part%s. Fewer workers "
            "(num_workers=%d) or smaller batches (batch_size=%d) need less; num_workers=0 shows an error of its own",
            f", while it read {', '.join(files)}" if files else "",
            self.num_workers,
            self.batch_size,
        )

    def _loader(self, images: LabeledImages, **options: Any) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A loader without one would draw from torch's random state.
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )

    def _asked_for(self, what: str) -> bool:
        return self.trainer is not None and self.trainer.state.fn == what

    # What images look like

    def _set_up_images(
        self,
        size: int | tuple[int, int] | None,
        channels: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        crop: float | None,
        flip: bool | None,
    ) -> None:
        source = self._source
        size = source.size if size is None else size
        height, width = (size, size) if isinstance(size, int) else size
        channels = source.channels if channels is None else channels
        crop = crop if crop is not None else 1.0 if source.small else 224 / 256
        if min(height, width) < 1:
            raise ValueError(f"image_size={size}: give a side in pixels, or (height, width)")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: give 3, or 1 for gray images")
        if not 0 < crop <= 1:
            raise ValueError(f"crop={crop}: give the fraction of the resized image that is kept, above 0 and up to 1")
        self.image_shape = (channels, height, width)
        self.mean = _by_channel("mean", mean, source.mean or _IMAGENET_MEAN, channels)
        self.std = _by_channel("std", std, source.std or _IMAGENET_STD, channels)
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: give values above 0")
        options: dict[str, Any] = {"crop": crop, "mean": self.mean, "std": self.std}
        options["flip"] = source.mirror if flip is None else flip
        self._crop, self._least = crop, 0.5 if source.small else 0.08
        options["least"] = self._least  # a corner of what fills the frame does not show what it is
        self._train_transform = image_transform((height, width), self.augment, **options)
        self._plain_transform = image_transform((height, width), **options)

    def _images(self, images: ImageList, indices: Sequence[int], *, training: bool = False) -> LabeledImages:
        numbers = {self._source.classes.index(name): number for number, name in enumerate(self.class_names)}
        return LabeledImages(
            images,
            indices,
            [numbers.get(images.labels[index], -1) for index in indices],
            self.class_names,
            self._train_transform if training else self._plain_transform,
            channels=self.image_shape[0],
            augmented=training and self.augment != "none",
            seed=self.seed,
            enough=self._enough(training),
            name=self._name,
        )

    def _enough(self, training: bool) -> int:
        """How many pixels along the shorter side the transform can make use of."""
        side = max(self.image_shape[1:])
        if training and self.augment in ("standard", "strong"):
            return math.ceil(side / math.sqrt(self._least * 3 / 4))  # the smallest part, of the longest form
        return math.ceil(side / self._crop)

    # Which image is where

    def _divide(self) -> None:
        """Divide the images, but those of broken files, among training, validation and test."""
        parts = self._source.parts
        whole = parts.get("all")
        by_part = {part: self._by_class(images, part) for part, images in parts.items()}
        by_class = by_part.get("train") or by_part["all"]
        holds_out_val = self.val is not None or "val" not in parts
        val = (0.1 if self.val is None else self.val) if holds_out_val else 0
        test = 0 if "test" in parts else self.test if self.test is not None else 0.2 if whole else 0
        split = split_images(by_class, self.seed, val=val, test=test, per_class=self.per_class, where=self._source.name)
        images = whole or parts["train"]
        self.train_set = self._images(images, split.train, training=True)
        self.val_set = self._images(images, split.val) if split.val else None
        self.test_set = self._images(images, split.test) if split.test else None
        if not holds_out_val:
            self.val_set = self._images(parts["val"], _sorted(by_part["val"]))
        if "test" in parts:
            self.test_set = self._images(parts["test"], _sorted(by_part["test"]))
        self.predict_set = self.test_set or self.val_set
        if self._to_predict is not None:
            files = range(len(self._to_predict.labels))
            self.predict_set = self._images(
                self._to_predict, [index for index in files if not self._is_broken(self._to_predict, index)]
            )

    def _is_broken(self, images: ImageList, index: int) -> bool:
        return bool(self._broken) and images.files is not None and images.files[index] in self._broken

    def _by_class(self, images: ImageList, part: str) -> dict[str, list[int]]:
        labels = {self._source.classes.index(name): name for name in self.class_names}
        by_class: dict[str, list[int]] = {name: [] for name in self.class_names}
        for index, label in enumerate(images.labels):
            if label in labels and not self._is_broken(images, index):
                by_class[labels[label]].append(index)
        empty = [name for name, indices in by_class.items() if not indices]
        if empty:
            raise ValueError(self._without_images(part, empty))
        return by_class

    def _without_images(self, part: str, empty: list[str]) -> str:
        where = f"{self._source.name}" if part == "all" else f"the {part} part of {self._source.name}"
        why = " that can be read" if self._broken else ""
        others = "" if part == "all" else ", which another part has"
        return (
            f"{where} has no images{why} of {listed_names(empty)}{others}; add some, or give classes=[...] without them"
            + self._ignored("files that are no images")
        )

    def _ignored(self, what: str) -> str:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self._source.ignored.items()))
        return f" ({what}: {counts})" if counts else ""

    def _used(self, stage: str | None) -> list[LabeledImages]:
        parts = {
            "fit": [self.train_set, self.val_set],
            "validate": [self.val_set],
            "test": [self.test_set],
            "predict": [self.predict_set],
        }
        every = [self.train_set, self.val_set, self.test_set, self.predict_set]
        return [images for images in (every if stage is None else parts[stage]) if images is not None]

    def _check(self, files: Sequence[str]) -> dict[str, str]:
        """Return which files cannot be read, of those not yet checked. Ranks share the work."""
        waiting = [file for file in dict.fromkeys(files) if file not in self._sound and file not in self._broken]
        mine = waiting[rank() :: ranks()]
        with together("checking images"):
            every = {file: reason for part in gathered_objects(broken_files(mine)) for file, reason in part.items()}
        broken = {file: every[file] for file in waiting if file in every}
        self._sound.update(file for file in waiting if file not in broken)
        return broken

    def _summary(self) -> str:
        parts = (("training", self.train_set), ("validation", self.val_set), ("test", self.test_set))
        counts = ", ".join(f"{len(images):,} {name}" for name, images in parts if images is not None)
        left_out = self._ignored("files that are no images, left out")
        return f"{self._source.name}: {self.num_classes} classes, {counts} images{left_out}"


def _by_channel(what: str, given: Sequence[float] | None, default: Sequence[float], channels: int) -> list[float]:
    if given is None:
        values = list(default)
        values = [round(sum(values) / len(values), 6)] if channels == 1 else values
    else:
        values = [float(value) for value in given]
    if len(values) not in (1, channels):
        raise ValueError(f"{what}={values}: give one value, or {channels}, one a channel")
    return values * channels if len(values) == 1 else values


def _chosen(source: ImageSource, classes: Sequence[str]) -> list[str]:
    chosen = [str(name) for name in classes]
    for name in chosen:
        if name not in source.classes:
            hint = suggestion(name, source.classes) or f"It has {listed_names(source.classes)}"
            raise ValueError(f"classes: {source.name} has no '{name}'. {hint}")
    if len(set(chosen)) < len(chosen) or len(chosen) < 2:
        raise ValueError(f"classes={chosen}: give two or more, each once")
    return chosen


def _sorted(by_class: dict[str, list[int]]) -> list[int]:
    return sorted(index for indices in by_class.values() for index in indices)


def _named(broken: dict[str, str]) -> str:
    shown = [f"{file} ({reason})" for file, reason in list(broken.items())[:3]]
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    count = "1 file" if len(broken) == 1 else f"{len(broken)} files"
    return f"{count} cannot be read as images: {', '.join(shown)}{more}"


def _named_workers(error: BaseException) -> list[int]:
    """Return the processes whose end torch's error tells."""
    named = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return [] if named is None else [int(process) for process in named[1].split(",")]


def _ended(processes: Sequence[int], seconds: float = 2) -> list[int]:
    """Return those of our processes that have ended; one that is just ending has `seconds` to do so."""
    until = time.monotonic() + seconds
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        ended = [process for process in processes if process not in alive]
        if ended or not processes or time.monotonic() > until:
            return ended
        time.sleep(0.02)


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: give 1 or more")


def _check_amounts(**amounts: float | None) -> None:
    for name, amount in amounts.items():
        # A command line may make 2.0 of 2.
        if amount is not None and (amount < 0 or (amount > 1 and amount != int(amount))):
            raise ValueError(
                f"{name}={amount}: give a fraction of each class (0.1), a whole number of images a class (5), or 0"
            )
