"""The types that a file may name: our own frozen dataclasses and named tuples, and which values fit their fields."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Kind", "kind_named", "kind_names", "kind_of"]

_OURS = "lightning_cnnviz"
# Where results and what they hold are; of packages, all files in them.
_PLACES = (
    *("core", "report", "record.identity", "studies.results"),
    *("render.deconvnet", "render.display", "render.normalization", "render.views"),
)

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


class Kind:
    """One type whose values can be kept.

    Attributes:
        make: The type.
        name: Its public name, which stands for one thing in the whole package.
        fields: The names of the fields that its constructor takes; not private ones.
        needed: Those that have no default.
    """

    def __init__(self, make: Any) -> None:
        self.make = make
        self.name: str = make.__name__
        if is_dataclass(make):
            given = [field for field in fields(make) if field.init and not field.name.startswith("_")]
            self.fields = [field.name for field in given]
            self.needed = [f.name for f in given if f.default is MISSING and f.default_factory is MISSING]
        else:
            self.fields = list(self.make._fields)
            self.needed = [name for name in self.fields if name not in self.make._field_defaults]

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """The fields' types."""
        return get_type_hints(self.make)

    def build(self, values: Mapping[str, Any]) -> Any:
        """Make a value of this type.

        Raises:
            ValueError: A field is missing or of a wrong type, or the type itself refuses the values.
        """
        missing = [name for name in self.needed if name not in values]
        if missing:
            raise ValueError(f"{self.name} lacks {', '.join(missing)}")
        for name, value in values.items():
            if not _fits(value, self.hints[name]):
                raise ValueError(f"{self.name}.{name} is a {type(value).__name__}, not {_spelled(self.hints[name])}")
        try:
            return self.make(**values)
        except Exception as error:  # its checks were written for values of our own functions
            raise ValueError(f"no {self.name}: {error}") from error


def kind_of(value: Any) -> Kind | None:
    """Return the type of a value if it can be kept; a tile that is drawn late is kept as a plain one."""
    kind = type(value)
    if _homes().get(kind.__name__) != kind.__module__:
        return None
    return next(filter(None, (kind_named(each.__name__) for each in kind.__mro__)), None)


def kind_named(name: str) -> Kind | None:
    """Return the type of a name; only our own files are ever looked at."""
    return _kind(name) if name in _homes() else None


def kind_names() -> list[str]:
    """Return the names of all types that can be kept."""
    return [name for name in _homes() if kind_named(name) is not None]


@functools.cache
def _kind(name: str) -> Kind | None:
    module = importlib.import_module(_homes()[name])
    make: Any = getattr(module, name)
    if name not in module.__all__:
        return None
    own = vars(make).get("__dataclass_params__")
    frozen = own is not None and own.frozen
    return Kind(make) if frozen or (issubclass(make, tuple) and hasattr(make, "_fields")) else None


@functools.cache
def _homes() -> dict[str, str]:
    """The files of all classes. They are read, not imported: who loads one result needs no more than its file."""
    found = {}
    for module in _modules():
        spec = importlib.util.find_spec(module)
        assert spec is not None
        source = spec.loader.get_source(module)  # type: ignore[union-attr]
        found.update(dict.fromkeys(_CLASS.findall(source or ""), module))
    return found


def _modules() -> Iterator[str]:
    for place in _PLACES:
        name = f"{_OURS}.{place}"
        folders = importlib.util.find_spec(name).submodule_search_locations  # type: ignore[union-attr]
        if folders is None:
            yield name
        for module in pkgutil.walk_packages(folders or [], f"{name}."):
            if not module.name.rpartition(".")[2].startswith("_"):
                yield module.name


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as data can be wrong: a list may stand for a tuple."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return type(value) in {type(part) for part in parts}
    if origin is not None and issubclass(origin, Mapping):
        key, held = parts
        return isinstance(value, dict) and all(_fits(k, key) and _fits(v, held) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, (tuple, list)) and _each_fits(value, parts)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _each_fits(values: Sequence[Any], parts: tuple[Any, ...]) -> bool:
    if len(parts) == 1 or parts[-1] is Ellipsis:
        return all(_fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(map(_fits, values, parts))


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
