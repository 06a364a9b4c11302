"""How the numbers of a look are named, for every logger: one key a number, the same at every look.

A key is `<view>/<what>`, or `<view>/<layer>/<what>` for a layer's number, of letters, digits, `_` and `/` alone: other
names lose settings in some products, and cannot be sorted or filtered by in others. The monitor's name stands after
the view where it has one, and outside of fit the stage before it: `validate/top_patches/flowers/dead_features`. What a
key stands for is in the fields beside it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_cnnviz.report import Scalar

__all__ = ["NUMBER_NAMES", "Measured", "Summary", "distinct", "key_part", "measured", "prefix_of", "summary_of"]

Summary = Literal["max", "last"]

NUMBER_NAMES: Mapping[str, tuple[str, ...]] = {
    "correlation": ("constant", "redundant"),
    "filters": ("dominant_fraction", "max_rms", "median_rms", "near_zero_fraction"),
    "invariance": ("area", "area_raw", "area_relative", "area_unit", "change", "half_width"),
    "layer_probe": ("svm", "softmax", "knn", "logistic", "ridge"),
    "layer_table": ("activation_bytes", "multiply_adds", "parameters"),
    "maximization": ("activation", "of_strongest_real", "spread_of_starts"),
    "occlusion": ("largest_change", "largest_drop", "most_probable_share"),
    "online_probe": ("accuracy", "mean_average_precision", "R2"),
    "top_patches": ("dead_features", "dead_fraction", "label_purity", "stability"),
}
"""Of the views that monitors have, how their numbers' keys may end."""

_TOTALS = {"dead_features"}  # counts: their sum over the layers says something; of all others, the mean
_BEST_IS_LARGEST = {"svm", "softmax", "knn", "accuracy", "mean_class_accuracy"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number of a look, with its key.

    Attributes:
        key: Its name in a logger.
        value: Finite, or infinite; never NaN.
        name: What it is, in the report's words and without its layer: `"dead_features"`.
        layer: The layer's own name; "" for a number of the whole network.
        summary: Which of its values stands for a run: the best one, where one is best, else the newest.
    """

    key: str
    value: float
    name: str
    layer: str
    summary: Summary


def measured(
    scalars: Iterable[Scalar], *, view: str, name: str = "", stage: str = "fit", layers: bool = True
) -> tuple[Measured, ...]:
    """Name the numbers of one look; those that could not be measured are left out.

    Of what is measured layer by layer there is one number of the network besides: a sum of counts, else the mean over
    the layers where it could be measured.

    Args:
        scalars: The look's, as they stand in its report.
        view: The report's view.
        name: The monitor's name, where it has one.
        stage: `"fit"`, `"validate"` or `"test"`.
        layers: Whether the numbers of each layer are wanted, or those of the whole network alone.

    Example:
        >>> dead = [Scalar(f"features.{at}/dead_features", at, layer=f"features.{at}") for at in (0, 3)]
        >>> {each.key: each.value for each in measured(dead, view="top_patches")}
        {'top_patches/features_0/dead_features': 0, 'top_patches/features_3/dead_features': 3, \
'top_patches/dead_features': 3.0}
    """
    prefix = prefix_of(view, name=name, stage=stage)
    scalars = list(scalars)
    parts = distinct(dict.fromkeys(scalar.layer for scalar in scalars if scalar.layer))
    found = []
    by_name: dict[str, list[float]] = {}
    for scalar in scalars:
        own = name_without_layer(scalar)
        path = "/".join(key_part(part) for part in own.split("/"))
        key = f"{prefix}/{parts[scalar.layer]}/{path}" if scalar.layer else f"{prefix}/{path}"
        if scalar.layer and scalar.measured:
            by_name.setdefault(own, []).append(scalar.value)
        if scalar.measured and (layers or not scalar.layer):
            found.append(Measured(key=key, value=scalar.value, name=own, layer=scalar.layer, summary=summary_of(own)))
    taken = {each.key for each in found}
    for own, values in by_name.items():
        key = f"{prefix}/" + "/".join(key_part(part) for part in own.split("/"))
        total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
        value = total if own in _TOTALS else total / len(values)
        if key not in taken and not math.isnan(value):
            found.append(Measured(key=key, value=value, name=own, layer="", summary=summary_of(own)))
    return tuple(found)


def prefix_of(view: str, *, name: str = "", stage: str = "fit") -> str:
    """Return what all keys of one monitor begin with.

    Example:
        >>> prefix_of("top_patches", name="ten classes", stage="test")
        'test/top_patches/ten_classes'
    """
    parts = [key_part(stage)] if stage != "fit" else []
    return "/".join([*parts, key_part(view), *([key_part(name)] if name else [])])


def key_part(name: str) -> str:
    """Return a name as one part of a key: what is no letter of A to Z, digit or `_` becomes `_`; "_" for nothing."""
    return re.sub(r"[^_a-zA-Z0-9]", "_", name) or "_"


def distinct(names: Iterable[str]) -> Mapping[str, str]:
    """Return the part of a key that stands for each of several names: two that would be one keep apart.

    Example:
        >>> distinct(["features.0", "features_0"])
        {'features.0': 'features_0', 'features_0': 'features_0_5171'}
    """
    parts: dict[str, str] = {}
    for name in names:
        part = key_part(name)
        if part in parts.values():
            part = f"{part}_{hashlib.blake2b(name.encode(errors='replace'), digest_size=2).hexdigest()}"
        parts[name] = part
    return parts


def name_without_layer(scalar: Scalar) -> str:
    """Return what a number is, without the layer that it is of."""
    parts = f"/{scalar.name}/".split(f"/{scalar.layer}/", 1) if scalar.layer else [scalar.name]
    own = "/".join(part for part in (each.strip("/") for each in parts) if part)
    return own or scalar.name


def summary_of(name: str) -> Summary:
    """Return which of a number's values stands for a run.

    Example:
        >>> summary_of("svm"), summary_of("dead_features")
        ('max', 'last')
    """
    return "max" if name.rpartition("/")[2] in _BEST_IS_LARGEST else "last"
