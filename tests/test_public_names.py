"""One public name stands for one thing in the whole package, and what a public function takes or returns is public."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import lightning_cnnviz

OURS = lightning_cnnviz.__name__
# Names that still stand for two things; this set may only shrink.
CLASHES: set[str] = set()
# Types of public functions that are not public yet; this set may only shrink.
HIDDEN: set[str] = set()


def modules() -> Iterator[types.ModuleType]:
    """All but those of files that begin with an underscore, which are private to their folder."""
    for module in pkgutil.walk_packages(lightning_cnnviz.__path__, f"{OURS}."):
        if not module.ispkg and not module.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(module.name)


def names_of_two_things(walked: list[types.ModuleType]) -> dict[str, list[str]]:
    homes: dict[str, dict[int, str]] = {}
    for module in walked:
        for name in getattr(module, "__all__", ()):
            homes.setdefault(name, {})[id(getattr(module, name))] = module.__name__
    return {name: sorted(places.values()) for name, places in homes.items() if len(places) > 1}


def hidden_types(name: str, public: set[Any]) -> set[str]:
    """Our classes that a public function takes or returns, or a public class is made with, and that are not public.

    Not those that list keyword arguments (`**options: Unpack[...]`).
    """
    thing = getattr(lightning_cnnviz, name)
    function = thing.__init__ if inspect.isclass(thing) else thing
    if not inspect.isfunction(function):
        return set()
    hints = typing.get_type_hints(function)
    return {kind.__name__ for hint in hints.values() for kind in classes_in(hint) if kind not in public}


def classes_in(hint: Any) -> Iterator[type]:
    for part in typing.get_args(hint):
        yield from classes_in(part)
    if inspect.isclass(hint) and hint.__module__.startswith(f"{OURS}.") and not typing.is_typeddict(hint):
        yield hint


def test_every_module_names_what_is_public() -> None:
    without = [module.__name__ for module in modules() if not hasattr(module, "__all__")]
    assert without == []


def test_a_public_name_stands_for_one_thing() -> None:
    assert set(names_of_two_things(list(modules()))) == CLASHES


def test_two_things_of_one_name_are_noticed() -> None:
    one, other, again = (types.ModuleType(name) for name in ("one", "other", "again"))
    one.Unit, other.Unit, again.Unit = type("Unit", (), {}), type("Unit", (), {}), None  # type: ignore[attr-defined]
    again.Unit = one.Unit  # type: ignore[attr-defined]
    for module in (one, other, again):
        module.__all__ = ["Unit"]  # type: ignore[attr-defined]
    assert names_of_two_things([one, other]) == {"Unit": ["one", "other"]}
    assert names_of_two_things([one, again]) == {}


def test_what_public_functions_take_and_return_is_public() -> None:
    public = {getattr(lightning_cnnviz, name) for name in lightning_cnnviz.__all__}
    assert set().union(*(hidden_types(name, public) for name in lightning_cnnviz.__all__)) == HIDDEN


@pytest.mark.parametrize(
    "hint", [lightning_cnnviz.Sink, list[lightning_cnnviz.Sink] | None, dict[str, list[lightning_cnnviz.Sink]]]
)
def test_types_are_found_wherever_they_stand(hint: Any) -> None:
    assert set(classes_in(hint)) == {lightning_cnnviz.Sink}
