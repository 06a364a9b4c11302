"""What a training's result depends on, in plain types: results are told apart by it, and kept under a hash of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.finetune.sources import find_images

__all__ = ["data_fingerprint", "plain_description", "weights_description"]


def data_fingerprint(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Say which images a data set has, by their names and sizes: the same ones in another place are the same data.

    Args:
        data: As `ImageFolderDataModule` takes it.
        options: Its options, of which `root` and `download` are used.

    Raises:
        FileNotFoundError: There is no such folder or data set.
        ValueError: The folder is not made as it should be.
    """
    source = find_images(data, root=options.get("root", "data"), download=options.get("download", False))
    digest = hashlib.sha256()
    for part, images in sorted(source.parts.items()):
        files = images.files
        if files is None:
            digest.update(f"{part} {len(images.labels)}\n".encode())
            continue
        base = os.path.commonpath(files)
        lines = (f"{part} {os.path.relpath(file, base)} {os.path.getsize(file)}\n" for file in files)
        digest.update("".join(sorted(lines)).encode())
    is_folder = Path(data).expanduser().is_dir() and data != "digits"
    return {"name": None if is_folder else data.lower(), "files": digest.hexdigest()[:16]}


def weights_description(weights: str | None) -> Any:
    """Return what stands for weights: a hash of a file's content, wherever it lies; else their name."""
    file = None if weights is None else Path(weights).expanduser()
    if file is None or not file.is_file():
        return weights
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return {"file": digest.hexdigest()[:16]}


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
