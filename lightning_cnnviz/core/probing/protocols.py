"""Protocols of linear probing: how many images of a class are learned from, how many test, and which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.probing.solvers import HEADS

__all__ = [
    "PROTOCOLS",
    "Manifest",
    "Protocol",
    "Split",
    "check_classes",
    "digest_of",
    "draw_splits",
    "find_protocol",
    "restricted",
]

Scaling = Literal["center", "standard", "none"]

_NO_IMAGES = ("paper", "name", "extensions")  # fields that have no part in which images are drawn


@dataclass(frozen=True)
class Protocol:
    """How probes are fitted and tested.

    Attributes:
        name: Its key in `PROTOCOLS`, shown beside every number.
        per_class: Training images of each class. None for all, or where there is something to draw (several splits, or
            no test set of its own) four fifths of them.
        splits: How many times images are drawn.
        test_per_class: At most so many test images of each class; None for all that are left.
        heads: Of `"svm"`, `"softmax"` and `"knn"`.
        Cs: What C is chosen from, inside the training split; one alone is taken as it is. In the units of features that
            are scaled as `scaling` says.
        extensions: While the best C is at an end of these, and better than its neighbor, more are tried beyond it, in
            steps of their own ratio: at most so many. 0 for `Cs` alone.
        val_per_class: So many training images of each class are held out to choose C, before the probe is fitted again
            on all; by default a fifth, at least one.
        neighbors: Of the k-nearest-neighbors head.
        scaling: Fitted on the images that are learned from. `"center"`: the mean is taken off and all features are
            divided by one number, so that the mean square norm is 1. `"standard"`: each feature is divided by its own
            standard deviation, then all by the square root of their number. `"none"`: left as they are.
        average: `"class"`: mean of the classes' accuracies; `"image"`: the right ones as a fraction of all test images.
        allow_fewer: Whether a class with too few images gives all but one to learn from, instead of an error.
        seed: Of the draw.
        paper: Accuracies in percent that a paper printed for this protocol, by row and by column.
    """

    name: str = "custom"
    per_class: int | None = None
    splits: int = 5
    test_per_class: int | None = None
    heads: tuple[str, ...] = HEADS
    Cs: tuple[float, ...] = (0.1, 1.0, 10.0)
    extensions: int = 4
    val_per_class: int | None = None
    neighbors: int = 5
    scaling: Scaling = "center"
    average: Literal["class", "image"] = "class"
    allow_fewer: bool = False
    seed: int = 0
    paper: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("per_class", "test_per_class", "val_per_class", "splits", "neighbors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: give 1 or more")
        if self.extensions < 0:
            raise ValueError(f"extensions={self.extensions}: give 0 or more")
        wrong = [head for head in self.heads if head not in (*HEADS, "knn")]
        if wrong or not self.heads:
            raise ValueError(f'heads={self.heads}: choose some of "svm", "softmax", "knn"')
        if not self.Cs or min(self.Cs) <= 0:
            raise ValueError(f"Cs={self.Cs}: give one or more positive numbers")
        if self.scaling not in ("center", "standard", "none"):
            raise ValueError(f'scaling={self.scaling!r}: give "center", "standard" or "none"')
        if self.average not in ("class", "image"):
            raise ValueError(f'average={self.average!r}: give "class" or "image"')
        if self.per_class is not None and self.val_per_class is not None and self.val_per_class >= self.per_class:
            raise ValueError(
                f"val_per_class={self.val_per_class} of per_class={self.per_class} training images leaves none to fit"
            )

    @property
    def chooses(self) -> bool:
        """Whether there is a C to choose."""
        return len(set(self.Cs)) > 1 and any(head in HEADS for head in self.heads)


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Which images do what; places among the features, ascending.

    Attributes:
        train: `(N,)` int64, learned from in the end.
        fit: `(M,)` int64, the part of `train` that is learned from while C is chosen.
        held_out: `(N - M,)` int64, the rest of `train`, on which C is chosen.
        test: `(T,)` int64; places in the test set's features where that is a set of its own.
    """

    train: Tensor
    fit: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifest:
    """All splits, and a number that tells whether two tables stand on the same ones.

    Attributes:
        splits: One for each repetition.
        digest: SHA-256 over the protocol and the data-set indices of every split, hexadecimal.
        fewer: Classes that gave fewer images than asked for.
    """

    splits: tuple[Split, ...]
    digest: str
    fewer: tuple[int, ...] = ()


_SVM_101 = "SVM: layer 1 44.8, 2 66.2, 3 72.3, 4 76.6, 5 86.2, 7 85.5; softmax: layer 5 82.9, 7 85.4"
_SVM_256 = "SVM: layer 1 24.6, 2 39.6, 3 46.0, 4 51.3, 5 65.6, 7 71.7; softmax: layer 5 65.7, 7 72.6"
_TABLE_7 = "Zeiler & Fergus (2013), Table 7, percent"
_TABLE_4 = "Zeiler & Fergus (2013), Table 4, percent"
_TABLE_5 = "Zeiler & Fergus (2013), Table 5, percent"


def _transfer(pretrained: float, scratch: float) -> str:
    return f"softmax on the pretrained convnet {pretrained}, the convnet from scratch {scratch}"


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("caltech101-15", 15, 5, 50, paper={_TABLE_4: _transfer(83.8, 22.8)}),
        Protocol("caltech101-30", 30, 5, 50, paper={_TABLE_4: _transfer(86.5, 46.5), _TABLE_7: _SVM_101}),
        Protocol("caltech256-15", 15, 5, 50, paper={_TABLE_5: _transfer(65.7, 9.0)}),
        Protocol("caltech256-30", 30, 5, 50, paper={_TABLE_5: _transfer(70.6, 22.5)}),
        Protocol("caltech256-45", 45, 5, 50, paper={_TABLE_5: _transfer(72.7, 31.2)}),
        Protocol("caltech256-60", 60, 5, 50, paper={_TABLE_5: _transfer(74.2, 38.8), _TABLE_7: _SVM_256}),
        Protocol(
            "decaf-30",
            30,
            5,
            val_per_class=5,
            paper={"Donahue et al. (2013), DeCAF6 with dropout, Caltech-101, percent": "SVM 86.91 ± 0.7"},
        ),
        Protocol("full", None, 1, average="image"),
    )
}
"""Protocols by name."""


def find_protocol(protocol: str | Protocol | None = None, **changes: Any) -> Protocol:
    """Return a protocol, by its name or the standard one, with some of its fields changed; None leaves a field.

    Raises:
        ValueError: No such protocol, or a field is wrong.

    Example:
        >>> find_protocol("caltech101-30", splits=2).per_class
        30
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"protocol='{protocol}': there are {', '.join(PROTOCOLS)}; or give a Protocol(per_class=..., ...)"
            )
        protocol = PROTOCOLS[protocol]
    if protocol is not None and not isinstance(protocol, Protocol):
        raise TypeError(
            f"protocol is a {type(protocol).__name__}; give one of {', '.join(PROTOCOLS)}, or a Protocol(per_class=...)"
        )
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    return replace(protocol or Protocol(), **{name: value for name, value in given.items() if value is not None})


def draw_splits(
    labels: Tensor,
    protocol: Protocol,
    *,
    indices: Tensor | None = None,
    test_labels: Tensor | None = None,
    test_indices: Tensor | None = None,
) -> Manifest:
    """Draw a protocol's splits by its seed.

    Which images are drawn depends on their indices and not on the order in which they come. Training images are drawn
    before and apart from those of a test set of its own, whose labels make no difference to them.

    Args:
        labels: `(N,)` int64.
        protocol: See there.
        indices: `(N,)` data-set indices, for the digest; by default places.
        test_labels: `(T,)` int64 of a test set of its own; without one, test images are what is left of each class.
        test_indices: `(T,)`, for the digest.

    Raises:
        ValueError: One class alone, or a class with too few images; names the classes and their counts.
    """
    classes = check_classes(labels, test_labels)
    own = test_labels is not None
    fewer = _too_few(labels, classes, protocol, own)
    indices = torch.arange(len(labels)) if indices is None else indices
    if test_labels is None:
        test_indices = indices
    elif test_indices is None:
        test_indices = torch.arange(len(test_labels))
    order, test_order = indices.argsort(stable=True), test_indices.argsort(stable=True)
    splits = []
    for number in range(protocol.splits):
        generator = torch.Generator().manual_seed(protocol.seed * 1_000_003 + number)
        split = _draw(labels, order, classes, protocol, own_test=own, generator=generator)
        if test_labels is not None:
            split = replace(split, test=_draw_test(test_labels, test_order, classes, protocol, generator))
        splits.append(split)
    return Manifest(splits=tuple(splits), digest=digest_of(protocol, splits, indices, test_indices), fewer=fewer)


def digest_of(protocol: Protocol, splits: Sequence[Split], indices: Tensor, test_indices: Tensor) -> str:
    """Return what a manifest's `digest` says of splits: of places among these data-set indices."""
    told = {name: value for name, value in asdict(protocol).items() if name not in _NO_IMAGES}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for split in splits:
        for part in (indices[split.train], indices[split.held_out], test_indices[split.test]):
            part = part.sort().values
            digest.update(len(part).to_bytes(8, "little") + part.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def restricted(manifest: Manifest, *, own_test: bool) -> tuple[Manifest, Tensor, Tensor | None]:
    """Return a manifest over the images alone that its splits need, and which these are.

    Args:
        manifest: From `draw_splits`.
        own_test: Whether test images are of a set of their own.

    Returns:
        The manifest, its places counted among these images; their places among all, `(M,)` int64, ascending; and
        likewise those of the test set, where there is one.
    """
    tests = [split.test for split in manifest.splits]
    learned = torch.cat([split.train for split in manifest.splits] + ([] if own_test else tests)).unique()
    tested = torch.cat(tests).unique() if own_test else None
    asked = learned if tested is None else tested
    splits = tuple(
        Split(
            train=torch.searchsorted(learned, split.train),
            fit=torch.searchsorted(learned, split.fit),
            held_out=torch.searchsorted(learned, split.held_out),
            test=torch.searchsorted(asked, split.test),
        )
        for split in manifest.splits
    )
    return replace(manifest, splits=splits), learned, tested


def _draw(
    labels: Tensor,
    order: Tensor,
    classes: Sequence[int],
    protocol: Protocol,
    *,
    own_test: bool,
    generator: torch.Generator,
) -> Split:
    """Draw training images, and test images from what is left where there is no test set."""
    train, fit, held_out, test = [], [], [], []
    for number in classes:
        places = _shuffled(labels, order, number, generator)
        count = len(places) - (not own_test)
        if protocol.per_class is not None:
            count = min(protocol.per_class, count)
        elif not own_test or protocol.splits > 1:
            count = min(max(1, round(0.8 * len(places))), count)
        held = 0
        if protocol.chooses:
            held = min(protocol.val_per_class or max(1, count // 5), count - 1)
        train.append(places[:count])
        held_out.append(places[:held])
        fit.append(places[held:count])
        test.append(places[count:][: 0 if own_test else protocol.test_per_class])
    parts = {"train": train, "fit": fit, "held_out": held_out, "test": test}
    return Split(**{name: torch.cat(places).sort().values for name, places in parts.items()})


def _draw_test(
    labels: Tensor, order: Tensor, classes: Sequence[int], protocol: Protocol, generator: torch.Generator
) -> Tensor:
    drawn = [_shuffled(labels, order, number, generator)[: protocol.test_per_class] for number in classes]
    return torch.cat(drawn).sort().values


def _shuffled(labels: Tensor, order: Tensor, number: int, generator: torch.Generator) -> Tensor:
    places = order[labels[order] == number]
    return places[torch.randperm(len(places), generator=generator)]


def check_classes(labels: Tensor, test_labels: Tensor | None = None) -> list[int]:
    """Return the classes, ascending, of labels that a probe can learn from.

    Args:
        labels: `(N,)` int64.
        test_labels: `(T,)` int64 of a test set of its own.

    Raises:
        ValueError: They are no class numbers, of one class alone, or to be tested on a class that is not learned.

    Example:
        >>> check_classes(torch.tensor([4, 1, 4]))
        [1, 4]
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: splits are drawn class by class from one class "
            "number an image, (N,) int64"
        )
    classes: list[int] = labels.unique().tolist()
    if len(classes) < 2:
        raise ValueError(f"a probe tells classes apart, but all {len(labels)} images are of class {classes}")
    if test_labels is not None:
        if test_labels.ndim != 1 or test_labels.dtype != torch.int64:
            raise ValueError(
                f"test labels are {test_labels.dtype} of shape {tuple(test_labels.shape)}: give one class number an "
                "image, (T,) int64"
            )
        unknown = sorted(set(test_labels.unique().tolist()) - set(classes))
        if unknown:
            raise ValueError(
                f"the test set has classes {unknown[:10]} of which the training set has no image; it has {classes[:10]}"
            )
    return classes


def _too_few(labels: Tensor, classes: Sequence[int], protocol: Protocol, own_test: bool) -> tuple[int, ...]:
    """Classes that have fewer images than asked for; refuse them unless they are allowed."""
    counts = {number: int((labels == number).sum()) for number in classes}
    asked = protocol.per_class or 1
    spare = 0 if own_test else 1
    least = 1 + spare + (1 if protocol.chooses else 0)
    few = {number: count for number, count in counts.items() if count < asked + spare}
    hopeless = {number: count for number, count in counts.items() if count < least}
    if protocol.chooses and protocol.per_class == 1:
        raise WrongArgumentError(
            "one image of a class leaves no training image to choose C on: give one C, Protocol(Cs=(1.0,)), or more "
            "images of a class"
        )
    refused = few if protocol.per_class is not None and not protocol.allow_fewer else {}
    told = refused or hopeless
    if told:
        parts = {"to learn from": asked if refused else 1}
        if protocol.chooses and not refused:
            parts["to choose C on"] = 1
        if spare:
            parts["to test on"] = 1
        need = " and ".join(f"{number} {what}" for what, number in parts.items())
        shown = ", ".join(f"class {number}: {count}" for number, count in list(told.items())[:10])
        more = f" and {len(told) - 10} more" if len(told) > 10 else ""
        mend = (
            "give Protocol(allow_fewer=True, ...), or the monitor allow_fewer=True, or fewer images of a class"
            if refused
            else "leave these classes out, or give more images"
        )
        raise (WrongArgumentError if refused else ValueError)(
            f"protocol '{protocol.name}' needs {sum(parts.values())} or more images a class ({need}), but there are "
            f"only {shown}{more}: {mend}"
        )
    return tuple(few)
