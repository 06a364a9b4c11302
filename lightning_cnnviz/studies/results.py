"""What studies have measured, as data: written as JSON, read again, drawn by `render.studies`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["VARIANTS", "AblationStudy", "AblationVariant", "SampleEfficiency", "StudyResult", "load_study"]

VARIANTS = ("pretrained-head", "pretrained-full", "scratch")
"""What a study of sample efficiency compares: pretrained weights, the head alone or all of them trained; none."""

_Result = TypeVar("_Result", bound="StudyResult")


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResult:
    """What the result of every study says.

    Attributes:
        data: What the data set is called.
        backbone: What the network is called.
        seeds: The seeds.
        classes: Number of classes.
        test_images: Number of test images.
        budget: How long each training was, in words.
        notes: What else a reader should know.
    """

    file: ClassVar[str]
    """Name of the file that it is kept in, in the study's folder."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    classes: int
    test_images: int
    budget: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all fields in plain types, tensors as lists."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls: type[_Result], values: Mapping[str, Any]) -> _Result:
        """Return the result of which `to_json` has made these values."""
        tensors = {each.name for each in fields(cls) if each.type == "Tensor"}
        restored: dict[str, Any] = {
            name: torch.from_numpy(np.array(value)) if name in tensors else _tuples(value)
            for name, value in values.items()
        }
        return cls(**restored)


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleEfficiency(StudyResult):
    """Test accuracies of trainings on few images a class.

    Attributes:
        variants: Of `VARIANTS`.
        per_class: Numbers of training images a class.
        class_mean: Mean of the classes' accuracies, 0 to 1; `(variants, per_class, seeds)` float64.
        top1: Fraction of the test images that are recognized, 0 to 1; `(variants, per_class, seeds)` float64.
        steps: Numbers of optimizer steps; `(variants, per_class)` int64.
    """

    file = "sample_efficiency.json"

    variants: tuple[str, ...]
    per_class: tuple[int, ...]
    class_mean: Tensor
    top1: Tensor
    steps: Tensor

    def __post_init__(self) -> None:
        shape = (len(self.variants), len(self.per_class), len(self.seeds))
        if self.class_mean.shape != shape or self.top1.shape != shape or self.steps.shape != shape[:2]:
            raise ValueError(
                f"class_mean {tuple(self.class_mean.shape)}, top1 {tuple(self.top1.shape)} and steps "
                f"{tuple(self.steps.shape)} must be of {shape} variants, numbers of images and seeds"
            )

    def accuracies(self, variant: str, per_class: int) -> Tensor:
        """Return the class means `(seeds,)` of one variant with so many images of each class."""
        return self.class_mean[self.variants.index(variant), self.per_class.index(per_class)]


@dataclass(frozen=True, kw_only=True)
class AblationVariant:
    """One form of the network.

    Attributes:
        name: What it is called in a report.
        remove: The layers that were left out.
        resize: Layers' new widths.
        parameters: Number of parameters.
        changes: What has become of the layers, in words.
        paper: The error in % that a paper printed for it.
    """

    name: str
    remove: tuple[str, ...] = ()
    resize: Mapping[str, int] = field(default_factory=dict)
    parameters: int
    changes: tuple[str, ...] = ()
    paper: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationStudy(StudyResult):
    """Test errors of a network's variants; the first is the whole network.

    Attributes:
        variants: The variants.
        error: Fraction of the test images that are not recognized, 0 to 1; `(variants, seeds)` float64.
        class_error: Mean of the classes' errors, 0 to 1; `(variants, seeds)` float64.
        source: Where the paper's figures are from.
    """

    file = "ablation.json"

    variants: tuple[AblationVariant, ...]
    error: Tensor
    class_error: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.variants), len(self.seeds))
        if self.error.shape != shape or self.class_error.shape != shape:
            raise ValueError(
                f"error {tuple(self.error.shape)} and class_error {tuple(self.class_error.shape)} must be of {shape} "
                "variants and seeds"
            )

    @property
    def rise(self) -> Tensor:
        """How much larger the error is than the whole network's of the same seed; `(variants, seeds)`."""
        return self.error - self.error[:1]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AblationStudy:
        """Return the result of which `to_json` has made these values."""
        variants = [
            AblationVariant(**{name: _tuples(value) for name, value in variant.items()})
            for variant in values["variants"]
        ]
        return super().from_json({**values, "variants": variants})


def load_study(kind: type[_Result], folder: str | Path, *, key: str | None = None) -> _Result:
    """Return the result of a study of a kind that was made in a folder.

    Args:
        kind: `SampleEfficiency` or `AblationStudy`.
        folder: The study's.
        key: Of several studies in one folder, the one that is kept in `ablation-KEY.json`; by default the newest.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There is none of this key; it says which there are, and what they are of.
    """
    kept = Path(folder) / kind.file
    if key is not None:
        stem, newest = kept.stem, kept
        kept = kept.with_name(f"{stem}-{key}.json")
        if not kept.is_file():
            keys = sorted(path.stem[len(stem) + 1 :] for path in newest.parent.glob(f"{stem}-*.json"))
            there = "; ".join(f"{each}: {_told(load_study(kind, folder, key=each))}" for each in keys)
            raise ValueError(f"key='{key}': {folder} has no such study. It has {there or 'none'}")
    return kind.from_json(json.loads(kept.read_text(encoding="utf-8")))


def _told(result: StudyResult) -> str:
    """What tells a study from others."""
    return ", ".join([result.backbone, result.data, result.budget, f"{len(result.seeds)} seeds", *result.notes])


def _tuples(value: Any) -> Any:
    """JSON has lists alone."""
    return tuple(value) if isinstance(value, list) else value
