"""Which look it is: what was looked at, of which network, when, by whom, with what."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from lightning_cnnviz import __version__
from lightning_cnnviz.report import Step

__all__ = ["DataIdentity", "LookIdentity", "NetworkIdentity", "network_identity", "versions"]


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """Which images were looked at.

    Attributes:
        dataset: What the data set calls itself (its `name`), else its class (or the loader's), for people; "" for
            weights alone.
        images: How many were looked at; None where that is not known.
        loader: Which of several loaders; -1 for one that the monitor was given.
        source: Which loader of which stage, for people; "" for one of the monitor's own, or for weights alone.
    """

    dataset: str = ""
    images: int | None = None
    loader: int = 0
    source: str = ""

    @property
    def sentence(self) -> str:
        """What is known of them, for people; "" for nothing."""
        count = "" if self.images is None else f"{self.images:,} images"
        return ", ".join(filter(None, (" of ".join(filter(None, (count, self.dataset))), self.source)))


@dataclass(frozen=True, kw_only=True)
class NetworkIdentity:
    """Which network, and which weights.

    Attributes:
        type: Its class.
        parameters: How many it has.
        checksum: Of all parameters and buffers, 16 hexadecimal digits: other weights, another checksum.
        weights: What is to be said of the weights, as `"averaged by EMAWeightAveraging"` or `"random, not trained"`; ""
            for those that training has at the moment.
    """

    type: str = ""
    parameters: int = 0
    checksum: str = ""
    weights: str = ""

    @property
    def sentence(self) -> str:
        """Which network, for people."""
        return f"{self.type}, weights {self.weights}" if self.weights else self.type


@dataclass(frozen=True, kw_only=True)
class LookIdentity:
    """Which look it is.

    Attributes:
        view: What was seen, as `"top_patches"`.
        name: The monitor's name, where two of one view stand beside each other.
        stage: `"fit"`, `"validate"` or `"test"`.
        epoch: Number of training epochs that were complete.
        global_step: Number of optimizer steps taken.
        run: The training (or evaluation) it belongs to: resumed, it stays the same; begun anew, it is another.
        data: Which images.
        network: Which network.
        monitor: The class of the monitor.
        arguments: What it was made with, as plain values.
        versions: Of Python and of the libraries that numbers depend on.
        time: When the look was kept, in seconds since 1970 (UTC).
        logged: The epoch and the step under which Lightning logs its own numbers of this moment, where known.
        within: How much of the epoch under way was done, from 0 up to 1; 0 between epochs, and where that is not known.
    """

    view: str
    name: str = ""
    stage: str = "fit"
    epoch: int = 0
    global_step: int = 0
    run: str = ""
    data: DataIdentity = field(default_factory=DataIdentity)
    network: NetworkIdentity = field(default_factory=NetworkIdentity)
    monitor: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    time: float = 0.0
    logged: tuple[int, int] | None = None
    within: float = 0.0

    @property
    def step(self) -> Step:
        """When it was taken, for people."""
        return Step(
            epoch=self.epoch,
            global_step=self.global_step,
            stage=self.stage,
            run=self.run,
            data=self.data.sentence,
            network=self.network.sentence,
            logged=self.logged,
            within=self.within,
        )

    @property
    def source(self) -> str:
        """What tells its reports from all others, see `Report.source`."""
        return f"{self.view}/{self.name}" if self.name else self.view

    @property
    def described_as(self) -> str:
        """What the monitor is called, in what is said of it once a run."""
        return f"{self.monitor}/{self.name}" if self.name else self.monitor

    @property
    def moment(self) -> tuple[int, int]:
        """When it was taken: optimizer steps, then epochs."""
        return (self.global_step, self.epoch)

    @property
    def series(self) -> tuple[str, str, str, str, str, int]:
        """What looks have in common that can be laid on one line: run, stage, view, name, data set, loader."""
        return (self.run, self.stage, self.view, self.name, self.data.dataset, self.data.loader)


def network_identity(network: nn.Module) -> NetworkIdentity:
    """Return the identity of a network, whose values are read once: about a second a gigabyte.

    Example:
        >>> network_identity(nn.Linear(2, 1)).parameters
        3
    """
    digest = hashlib.blake2b(digest_size=8)
    values = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in sorted(values):
        digest.update(name.encode(errors="surrogateescape"))
        if isinstance(values[name], UninitializedTensorMixin):
            continue
        value = values[name].detach()
        digest.update(f" {value.dtype} {tuple(value.shape)}".encode())
        if value.layout is torch.strided:
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    made = (parameter for parameter in network.parameters() if not isinstance(parameter, UninitializedTensorMixin))
    count = sum(parameter.numel() for parameter in made)
    return NetworkIdentity(type=type(network).__name__, parameters=count, checksum=digest.hexdigest())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that numbers depend on."""
    return {
        "lightning_cnnviz": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
