"""Results of core are given by name: two tensors of one type that change places would be no error otherwise."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from torch import Tensor

import lightning_cnnviz.core

ROOMS = sorted(
    room.name for room in pkgutil.iter_modules(lightning_cnnviz.core.__path__, "lightning_cnnviz.core.") if room.ispkg
)
# No results: objectives that a user writes, settings, and a pair whose two parts are of different types.
NO_RESULTS = {"ChannelActivation", "Parametrization", "Signal", "UnitActivation"}


def holds_tensors(kind: Any) -> bool:
    """Whether a type is a tensor, or a tuple, list, mapping or dataclass of some."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return any(holds_tensors(hints[field.name]) for field in fields(kind))
    if get_origin(kind) is Callable:
        return False
    return kind is Tensor or any(holds_tensors(part) for part in get_args(kind))


def results_of(room: str) -> Iterator[type]:
    """The public frozen dataclasses of a room's public files that hold tensors."""
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            here = isinstance(kind, type) and kind.__module__ == module.name and not kind.__name__.startswith("_")
            if here and is_dataclass(kind) and kind.__dataclass_params__.frozen and holds_tensors(kind):  # type: ignore[attr-defined]
                yield kind


def problems(kind: type) -> list[str]:
    """What makes a dataclass unfit to be a result."""
    by_place = [field.name for field in fields(kind) if field.init and not field.kw_only]  # type: ignore[arg-type]
    found = [f"{kind.__qualname__} takes {', '.join(by_place)} by place: kw_only=True"] if by_place else []
    if kind.__dataclass_params__.eq:  # type: ignore[attr-defined]
        found.append(f"{kind.__qualname__} compares tensors with ==, which raises: eq=False")
    return found


def test_there_are_results_to_check() -> None:
    names = {kind.__name__ for kind in results_of("lightning_cnnviz.core.top_patches")}
    assert {"LayerTopPatches", "TopPatches"} <= names


@pytest.mark.parametrize("room", ROOMS)
def test_results_are_given_by_name(room: str) -> None:
    results = [kind for kind in results_of(room) if kind.__name__ not in NO_RESULTS]
    assert [problem for kind in results for problem in problems(kind)] == []


@dataclass(frozen=True)
class ByPlace:
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Nested:
    parts: dict[str, tuple[ByPlace, ...]] | None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def test_the_rule_can_fail() -> None:
    assert [problem.rpartition(": ")[2] for problem in problems(ByPlace)] == ["kw_only=True", "eq=False"]
    assert holds_tensors(ByPlace)
    assert holds_tensors(Nested)
    assert problems(Nested) == []
    assert not is_dataclass(Pair)
    assert not holds_tensors(Callable[[Tensor], Tensor])
