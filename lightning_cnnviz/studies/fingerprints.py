"""What a training's result depends on, in plain types: results are told apart by it, and kept under a hash of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.files import write_file
from lightning_cnnviz.finetune.networks import make_network
from lightning_cnnviz.finetune.sources import find_images
from lightning_cnnviz.finetune.weights import weights_file
from lightning_cnnviz.studies.sources import code_hash

__all__ = ["data_fingerprint", "network_fingerprint", "plain_description", "weights_description"]


def data_fingerprint(data: str, options: Mapping[str, Any], manifest: Path | None = None) -> dict[str, Any]:
    """Say which images a data set has, by their names and content: the same ones in another place are the same data.

    Of data sets whose images are no files of their own, labels and 64 images, spread evenly, are looked at.

    Args:
        data: As `ImageFolderDataModule` takes it.
        options: Its options, of which `root` and `download` are used.
        manifest: A file of checksums: a file whose size, times and inode are those that it had is not read again. It is
            written where its folder is there.

    Raises:
        FileNotFoundError: There is no such folder or data set.
        ValueError: The folder is not made as it should be.
    """
    source = find_images(data, root=options.get("root", "data"), download=options.get("download", False))
    digest, sums = hashlib.sha256(), _Checksums(manifest)
    for part, images in sorted(source.parts.items()):
        if images.files is None:
            digest.update(f"{part} {images.labels}\n".encode())
            for place in _spread(len(images.labels)):
                pixels = np.ascontiguousarray(images.read(place))
                digest.update(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes())
            continue
        base = os.path.commonpath(images.files)
        lines = (f"{part} {os.path.relpath(file, base)} {sums.of(file)}\n" for file in images.files)
        digest.update("".join(sorted(lines)).encode(errors="surrogatepass"))
    sums.write()
    is_folder = Path(data).expanduser().is_dir() and data != "digits"
    return {"name": None if is_folder else data.lower(), "images": digest.hexdigest()[:16]}


def network_fingerprint(backbone: str | nn.Module) -> dict[str, Any]:
    """Say what a name means: of a network that is imported, what it is made of; and which versions make it."""
    made: dict[str, Any] = {"versions": _versions(backbone)}
    if isinstance(backbone, str) and ":" in backbone:
        with keep_random_state():
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            network = make_network(backbone)
        made |= {"network": _network_hash(network), "code": code_hash(network, backbone.partition(":")[0])}
    return made


def _versions(backbone: str | nn.Module) -> dict[str, str]:
    names = ["lightning_cnnviz", "torch", "torchvision", "lightning"]
    if isinstance(backbone, str) and backbone.startswith("timm/"):
        names.append("timm")
    return {name: str(importlib.import_module(name).__version__) for name in names}


def _spread(count: int) -> list[int]:
    return sorted({number * (count - 1) // 63 for number in range(64)}) if count else []


class _Checksums:
    """Checksums of files, kept by what tells that a file has not been touched."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._changed = file, False
        self._kept: dict[str, list[Any]] = {}
        if file is not None:
            with suppress(OSError, ValueError, RecursionError):
                content = json.loads(file.read_text(encoding="utf-8"))
                self._kept = content if isinstance(content, dict) else {}

    def of(self, file: str) -> str:
        status = os.stat(file)
        # Whoever gives a file another content and its old time cannot give it its old time of change.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        kept = self._kept.get(os.path.abspath(file))
        if isinstance(kept, list) and kept[:4] == stamp and len(kept) == 5 and isinstance(kept[4], str):
            return kept[4]
        self._kept[os.path.abspath(file)] = [*stamp, _file_hash(Path(file))]
        self._changed = True
        return str(self._kept[os.path.abspath(file)][4])

    def write(self) -> None:
        if self._changed and self._file is not None and self._file.parent.is_dir():
            with suppress(OSError):  # next time, files are read again
                write_file(self._file, json.dumps(self._kept).encode())


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def weights_description(weights: str | None) -> Any:
    """Return what stands for weights: a hash of a file's content, wherever it lies; else their name."""
    if weights is None:
        return None
    file, part = weights_file(weights)
    if not file.is_file():
        return weights
    return {"file": _file_hash(file)} | ({"part": part} if part else {})


def plain_description(value: Any, what: str) -> Any:
    """Return what stands for a value in a description: itself if it is plain.

    Args:
        value: A network, tensor, path, mapping, list, function, class, or anything that JSON can hold.
        what: What it is, for the message.

    Raises:
        TypeError: It is a function or an object that has no name in a module, so that two of them look alike.

    Example:
        >>> plain_description({"optimizer": torch.optim.SGD, "size": (32, 32)}, "options")
        {'optimizer': 'torch.optim.sgd:SGD', 'size': [32, 32]}
    """
    if isinstance(value, nn.Module):
        return {"network": type(value).__qualname__, "weights": _network_hash(value)}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain_description(part, f"{what}[{name!r}]") for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_description(part, f"{what}[{place}]") for place, part in enumerate(value)]
    if callable(value):
        name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '<')}"
        if "<" in name:
            raise TypeError(
                f"{what} is {value!r}: a study tells results apart by what made them, so give a function or a class of "
                "a module, or its name"
            )
        return name
    return value


def _network_hash(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
