"""Where labeled images come from: folders, scikit-learn's digits, torchvision's data sets."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_cnnviz.core.network.suggestions import closest_names, did_you_mean
from lightning_cnnviz.finetune.decoding import read_image_file

__all__ = ["ImageList", "ImageSource", "data_name", "find_images", "images_of_files", "list_images"]

_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TRAIN_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: dict[str, dict[str, Any]] = {**_TRAIN_TEST, "val": {"split": "val"}}
_WHOLE: dict[str, dict[str, Any]] = {"all": {}}
_AGAIN = "links to images that are there already"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageList:
    """Labeled images, read one at a time.

    Attributes:
        labels: Of each image, its place in the classes; -1 for none.
        read: Takes an image's number and returns it as a PIL image, or as a tensor `(C, H, W)` from 0 to 1. It also
            takes how many pixels along the shorter side are enough, and may then return fewer than there are.
        files: Of each image; None where images are not files of their own.
    """

    labels: tuple[int, ...]
    read: Callable[..., Any]
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource:
    """A data set, and how its images are best given to a network.

    Attributes:
        name: For messages.
        classes: The classes' names.
        parts: The images by part: `"train"`, `"val"` and `"test"` as far as there are any, or `"all"` in one.
        ignored: Number of files that are no images, by suffix.
        small: Whether objects fill the frame of small images: nothing is cut off at the borders.
        mirror: Whether an image and its mirror image are of the same class.
        size: The images' own side, where it is to be kept.
        channels: 3, or 1 for gray images that are to stay so.
        mean: Of the pixels from 0 to 1, where it is not ImageNet's.
        std: Likewise.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, ImageList]
    ignored: Mapping[str, int] = field(default_factory=dict)
    small: bool = False
    mirror: bool = True
    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _TorchvisionSet:
    """How one of torchvision's data sets is asked for its parts."""

    parts: Mapping[str, Mapping[str, Any]]
    small: bool = False
    mirror: bool = True


_SETS = {
    "CIFAR10": _TorchvisionSet(_TRAIN_FLAG, small=True),
    "CIFAR100": _TorchvisionSet(_TRAIN_FLAG, small=True),
    "Caltech101": _TorchvisionSet(_WHOLE),
    "Caltech256": _TorchvisionSet(_WHOLE),
    "Country211": _TorchvisionSet({**_TRAIN_TEST, "val": {"split": "valid"}}),
    "DTD": _TorchvisionSet(_THREE),
    "EuroSAT": _TorchvisionSet(_WHOLE, small=True),
    "FGVCAircraft": _TorchvisionSet(_THREE),
    "FashionMNIST": _TorchvisionSet(_TRAIN_FLAG, small=True),
    "Flowers102": _TorchvisionSet(_THREE),
    "Food101": _TorchvisionSet(_TRAIN_TEST),
    "GTSRB": _TorchvisionSet(_TRAIN_TEST, small=True, mirror=False),
    "Imagenette": _TorchvisionSet({"train": {"split": "train"}, "val": {"split": "val"}}),
    "KMNIST": _TorchvisionSet(_TRAIN_FLAG, small=True, mirror=False),
    "MNIST": _TorchvisionSet(_TRAIN_FLAG, small=True, mirror=False),
    "OxfordIIITPet": _TorchvisionSet({"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "RenderedSST2": _TorchvisionSet(_THREE, mirror=False),
    "SEMEION": _TorchvisionSet(_WHOLE, small=True, mirror=False),
    "STL10": _TorchvisionSet(_TRAIN_TEST, small=True),
    "SUN397": _TorchvisionSet(_WHOLE),
    "SVHN": _TorchvisionSet(_TRAIN_TEST, small=True, mirror=False),
    "StanfordCars": _TorchvisionSet(_TRAIN_TEST),
    "USPS": _TorchvisionSet(_TRAIN_FLAG, small=True, mirror=False),
}


def data_name(data: str | Path) -> str:
    """Return what people call the images that `data` means: the last part of a path, or the name itself.

    Example:
        >>> data_name("photos/birds/"), data_name("CIFAR10")
        ('birds', 'CIFAR10')
    """
    name = Path(data).expanduser().resolve().name
    return name.encode(errors="replace").decode(errors="replace")


def find_images(data: str | Path, *, root: str | Path = "data", download: bool = False) -> ImageSource:
    """Find the images that `data` means; of a folder, the files are listed and none is read.

    Hidden files and folders are left out. Links are followed, but each file is listed once in a part of the data, in
    its own place. Listing takes less than a kilobyte of memory an image.

    Args:
        data: A folder, `"digits"`, or the name of one of torchvision's data sets; a folder of such a name is written
            with its path (`"./digits"`).
        root: Where torchvision's data sets are.
        download: Whether they may be downloaded.

    Raises:
        FileNotFoundError: There is no such folder or data set, or it is not there and may not be downloaded.
        ValueError: The folder is not made as it should be; says how it should.
    """
    if data == "digits":
        return _digits()
    names = {name.lower(): name for name in _SETS}
    if isinstance(data, str) and data.lower() in names:
        return _torchvision(names[data.lower()], root, download)
    folder = Path(data).expanduser()
    if folder.is_dir():
        return _folder(folder)
    if folder.exists():
        raise ValueError(f"data='{data}' is a file; give a folder with a folder of images for each class")
    close = [names.get(word, word) for word in closest_names(str(data).lower(), [*names, "digits"], 2)]
    close += [str(folder.parent / name) for name in closest_names(folder.name, _folders_in(folder.parent))]
    hint = did_you_mean(close[:3])
    kinds = f'Give a folder of images, "digits", or one of torchvision\'s {", ".join(_SETS)}'
    raise FileNotFoundError(f"data='{data}': there is no such folder ({folder.absolute()}). {hint or kinds}")


def list_images(place: str | Path) -> tuple[str, ...]:
    """Return a file, or the image files in a folder and its folders, in the order of their names.

    Raises:
        FileNotFoundError: There is none.
    """
    place = Path(place).expanduser()
    if place.is_file():
        return (str(place),)
    files, _ = _files_below(place)
    if not files:
        raise FileNotFoundError(f"there is no image in {place.absolute()} ({', '.join(IMG_EXTENSIONS)})")
    return tuple(files)


def images_of_files(files: Sequence[str], labels: Sequence[int] | None = None) -> ImageList:
    """Return a list of the images in files, of no class where no labels are given."""
    files = tuple(files)
    chosen = (-1,) * len(files) if labels is None else tuple(labels)
    return ImageList(labels=chosen, read=_Reader(files), files=files)


# Folders


def _folder(folder: Path) -> ImageSource:
    parts = _part_folders(folder)
    if parts and "train" not in parts:
        raise ValueError(
            f"{folder} has {', '.join(f'{part.name}/' for part in parts.values())} and no train/; give a folder with "
            "train/ (and test/, val/), or one with a folder for each class"
        )
    listed, ignored = {}, Counter[str]()
    for part, place in (parts or {"all": folder}).items():
        listed[part], others = _class_files(place)
        ignored += others
    classes = tuple(sorted({name for files in listed.values() for name in files}))
    if len(classes) < 2:
        raise ValueError(_one_class(folder, parts.get("train", folder), classes[0]))
    images = {part: _images_of_classes(files, classes) for part, files in listed.items()}
    return ImageSource(name=str(folder), classes=classes, parts=images, ignored=ignored)


def _part_folders(folder: Path) -> dict[str, Path]:
    """Return train/, val/ and test/ by part; none where folders of these names can only be classes."""
    parts: dict[str, Path] = {}
    for name in _folders_in(folder):
        part = _PARTS.get(name.lower())
        if part is None or not _folders_in(folder / name):
            continue
        if part in parts:
            raise ValueError(f"{folder} has both {parts[part].name}/ and {name}/; one of them must go elsewhere")
        parts[part] = folder / name
    others = [name for name in _folders_in(folder) if name.lower() not in _PARTS]
    # "train" may be a class, as in bus, car, train.
    return parts if "train" in parts or not others else {}


def _class_files(folder: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    names = _folders_in(folder)
    if not names:
        files, others = _files_below(folder)
        there = f"{len(files)} images and no folders" if files else f"no folders ({_counted(others) or 'it is empty'})"
        raise ValueError(f"{folder} has {there}: put the images of each class into a folder of its own, named after it")
    ignored = Counter[str]()
    found = [(name, *each) for name in names for each in _walk(folder / name, ignored)]
    return {**{name: [] for name in names}, **_once(found, ignored)}, ignored


def _files_below(folder: Path) -> tuple[list[str], Counter[str]]:
    """Return the image files of a folder, sorted, and the number of others by suffix; hidden ones are not counted."""
    others = Counter[str]()
    files = _once([("", *each) for each in _walk(folder, others)], others)
    return files.get("", []), others


def _once(found: Iterable[tuple[str, str, str, int]], ignored: Counter[str]) -> dict[str, list[str]]:
    """Return the files of each class, sorted, each file once: in its own place rather than where a link leads to it."""
    files: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, file, real, _ in sorted(found, key=lambda each: (each[3], each[0], each[1])):
        files.setdefault(name, [])
        if real in seen:
            ignored[_AGAIN] += 1
        else:
            seen.add(real)
            files[name].append(file)
    return {name: sorted(own) for name, own in files.items()}


def _walk(folder: Path, others: Counter[str]) -> Iterator[tuple[str, str, int]]:
    """Yield each image file below a folder, its real path, and how far links lead to it: 1 as a link, 2 by folders.

    Links to folders are followed, but for those that lead back to where they are or above: they would have no end.
    """
    home = os.path.realpath(folder)
    waiting = deque([(str(folder), home, folder.is_symlink())])
    visited = set()
    while waiting:
        place, real, linked = waiting.popleft()  # those that links lead to come last
        if real in visited:
            continue
        visited.add(real)
        with suppress(FileNotFoundError), os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                own_link = entry.is_symlink()
                path = os.path.realpath(entry.path) if own_link else os.path.join(real, entry.name)
                if _is_folder(entry):
                    if not own_link:
                        (waiting.append if linked else waiting.appendleft)((entry.path, path, linked))
                    elif not _is_above(path, real) and not _is_above(path, home):
                        waiting.append((entry.path, path, True))
                elif entry.name.lower().endswith(IMG_EXTENSIONS):
                    # Most real paths are the paths themselves: then one text serves for both.
                    yield entry.path, entry.path if path == entry.path else path, 2 * linked + own_link
                else:
                    others[Path(entry.name).suffix.lower() or entry.name] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_above(folder: str, place: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)


def _images_of_classes(files: Mapping[str, Sequence[str]], classes: Sequence[str]) -> ImageList:
    pairs = [(file, label) for label, name in enumerate(classes) for file in files.get(name, ())]
    return images_of_files([file for file, _ in pairs], [label for _, label in pairs])


@dataclass(frozen=True)
class _Reader:
    """Reads files by number; a class, since loaders' workers cannot be given a function made here."""

    files: tuple[str, ...]

    def __call__(self, index: int, enough: int | None = None) -> Image.Image:
        return read_image_file(self.files[index], enough)


def _one_class(folder: Path, place: Path, name: str) -> str:
    inner = _folders_in(place / name)
    if len(inner) > 1:
        return f"{place} has one folder, '{name}', with {len(inner)} folders in it; did you mean data='{place / name}'?"
    return f"{folder} has one class, '{name}'; telling classes apart takes two or more"


def _folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder; a link that leads to it or to what it lies in is none."""
    if not folder.is_dir():
        return []
    home = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and _is_folder(entry)
            and not (entry.is_symlink() and _is_above(os.path.realpath(entry.path), home))
        )


def _counted(others: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))


# Data sets


def _digits() -> ImageSource:
    from sklearn.datasets import load_digits  # takes a second

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = {}
    for part, chosen in (("train", order[600:]), ("val", order[:300]), ("test", order[300:600])):
        enlarged = F.interpolate(images[chosen], size=32, mode="bilinear", antialias=False)
        parts[part] = ImageList(labels=tuple(torch.tensor(labels)[chosen].tolist()), read=_TensorReader(enlarged))
    return ImageSource(
        name="scikit-learn's digits",
        classes=tuple(str(digit) for digit in range(10)),
        parts=parts,
        small=True,
        mirror=False,
        size=32,
        channels=1,
        mean=(0.305,),
        std=(0.33,),
    )


@dataclass(frozen=True, eq=False)
class _TensorReader:
    images: Tensor

    def __call__(self, index: int, enough: int | None = None) -> Tensor:
        return self.images[index]


def _torchvision(name: str, root: str | Path, download: bool) -> ImageSource:
    kind = _SETS[name]
    opened = {part: _opened(name, root, download, options) for part, options in kind.parts.items()}
    labels = {part: _labels(dataset) for part, dataset in opened.items()}
    count = 1 + max(max(numbers) for numbers in labels.values())
    classes = _names(next(iter(opened.values())), count)
    parts = {part: ImageList(labels=labels[part], read=_TorchvisionReader(dataset)) for part, dataset in opened.items()}
    return ImageSource(name=f"torchvision's {name}", classes=classes, parts=parts, small=kind.small, mirror=kind.mirror)


def _opened(name: str, root: str | Path, download: bool, options: Mapping[str, Any]) -> Any:
    make = getattr(datasets, name)
    place = Path(root).expanduser()
    try:
        return make(place, download=False, **options)
    except (RuntimeError, OSError) as error:
        if not download:
            raise FileNotFoundError(
                f"{name} is not in root='{root}' ({place.absolute()}): give download=True to fetch it, or "
                f"root=<the folder in which torchvision has put it> ({error})"
            ) from error
    try:
        return make(place, download=True, **options)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded to root='{root}' ({type(error).__name__}: {error}); without a network, "
            "give root=<a folder in which torchvision has put it on another machine>"
        ) from error


@dataclass(frozen=True)
class _TorchvisionReader:
    dataset: Any

    def __call__(self, index: int, enough: int | None = None) -> Any:
        return self.dataset[index][0]


def _labels(dataset: Any) -> tuple[int, ...]:
    """Return the label of each image without reading one; torchvision keeps them under many names."""
    for name in ("targets", "labels", "y", "_labels"):
        values = getattr(dataset, name, None)
        if values is not None:
            return tuple(int(value) for value in values)
    return tuple(int(label) for _, label in dataset._samples)


def _names(dataset: Any, count: int) -> tuple[str, ...]:
    names: Iterable[Any] = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    # Imagenette gives several names for each.
    named = tuple(name if isinstance(name, str) else str(name[0]) for name in names)
    return named if len(named) >= count else tuple(str(number) for number in range(count))
