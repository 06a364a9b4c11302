"""Values as a tree of JSON and tensors beside it, and back.

JSON's own kinds stand for themselves: null, booleans, strings, finite numbers, lists. Everything else is an object with
one key that says what it is, for example `{"tuple": [...]}`, `{"tensor": "0f3a..."}`, or
`{"type": "TopPatches", "fields": {...}}`.
"""

from __future__ import annotations

import math
import re
import reprlib
import struct
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.record._kinds import Kind, kind_named, kind_of
from lightning_cnnviz.record._tensors import restored_tensor, stored_tensor, tensor_name

__all__ = ["SCHEMA", "from_tree", "to_tree"]

SCHEMA = 2
"""The version of the form in which values are written. A reader of this version reads all older ones."""

_DEEPEST = 64  # values within values; results have about ten
_EXACT = 2**53  # other readers of JSON hold no larger integers than that
# By their bits; other NaNs, which numbers of other programs may be, are written as bits.
_NONFINITE = {struct.pack(">d", float(text)).hex(): text for text in ("nan", "-nan", "inf", "-inf")}
_NAME = re.compile(r"[0-9a-f]{20}")
_SPLIT = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # JSON would read these two as one


def to_tree(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Turn a result, or plain values that hold some, into JSON and tensors.

    Results are our frozen dataclasses. Plain are None, bool, int, float, complex, Fraction, str, tuples, lists,
    mappings, `torch.Size` and `torch.dtype`; numpy's scalars count as Python's.

    Returns:
        What `json.dumps` takes, and the tensors, each once: detached, contiguous, on the CPU, under a name of 20
        hexadecimal digits that is a hash of dtype, shape and bytes.

    Raises:
        TypeError: Something in it is none of these; it is named.
        ValueError: A tensor has no values of its own (sparse, meta), features lie in a file, or values are nested
            more than 64 deep.

    Example:
        >>> tree, tensors = to_tree({"loss": (0.5, float("nan"))})
        >>> tree
        {'dict': [['loss', {'tuple': [0.5, {'float': 'nan'}]}]]}
        >>> from_tree(tree, tensors.__getitem__)
        {'loss': (0.5, nan)}
    """
    writer = _Writer()
    return writer.written(value, "value", 0), writer.tensors


def from_tree(tree: Any, tensor: Callable[[str], Tensor], *, schema: int = SCHEMA) -> Any:
    """Return the values of which `to_tree` has made a tree.

    Fields that a type has got since take their defaults; fields that it no longer has are left out of an older tree.

    Args:
        tree: As `json.loads` gives it.
        tensor: Gives the tensor of a name, or raises KeyError.
        schema: The version of `SCHEMA` that the tree was written with.

    Raises:
        ValueError: It is no such tree: an unknown type, a wrong or missing field, a tensor that is not there.
    """
    return _Reader(tensor, older=schema < SCHEMA).read(tree, 0)


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def written(self, value: Any, where: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"values are nested more than {_DEEPEST} deep: they cannot be kept")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, complex, Fraction, str)):
            return _written_scalar(value)
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        kind = kind_of(value)
        if kind is not None:
            return self._fields(kind, value, where, depth)
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Mapping):
            return {"dict": [self._pair(key, held, where, depth + 1) for key, held in value.items()]}
        if type(value) is tuple:
            return {"tuple": self._each(value, where, depth)}
        if isinstance(value, list):
            return self._each(value, where, depth)
        kind_name = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {kind_name}: only results, tensors and plain values can be kept as data")

    def _each(self, values: Iterable[Any], where: str, depth: int) -> list[Any]:
        return [self.written(value, f"{where}[{place}]", depth + 1) for place, value in enumerate(values)]

    def _pair(self, key: Any, held: Any, where: str, depth: int) -> list[Any]:
        return [self.written(key, f"a key of {where}", depth), self.written(held, f"{where}[{_short(key)}]", depth)]

    def _tensor(self, value: Tensor, where: str) -> dict[str, str]:
        try:
            stored, noted = stored_tensor(value)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ValueError(f"{where} is a tensor whose values cannot be read: {error}") from error
        name = tensor_name(stored)
        self.tensors.setdefault(name, stored)
        return {"tensor": name} | ({"as": noted} if noted else {})

    def _fields(self, kind: Kind, value: Any, where: str, depth: int) -> dict[str, Any]:
        if kind.name == "LayerFeatures" and value.file is not None:
            raise ValueError(
                f"{where}: the features of layer '{value.layer}' lie in a file, since they are too many for the "
                "memory, and a copy would be as large: keep those of some images, features.among(indices)"
            )
        name = where if depth else kind.name
        values = {field: getattr(value, field) for field in kind.fields}
        written = {field: self.written(held, f"{name}.{field}", depth + 1) for field, held in values.items()}
        return {"type": kind.name, "fields": written}


class _Reader:
    def __init__(self, tensor: Callable[[str], Tensor], older: bool) -> None:
        self._given = tensor
        self._older = older
        self._tensors: dict[str, Tensor] = {}

    def read(self, tree: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"its values are nested more than {_DEEPEST} deep")
        if tree is None or isinstance(tree, (bool, int, float, str)):
            return tree
        if isinstance(tree, list):
            return [self.read(part, depth + 1) for part in tree]
        tags = [tag for tag in _TAGS if tag in tree] if isinstance(tree, dict) else []
        if len(tags) != 1:
            raise ValueError(f"it holds {_short(tree)}, which stands for no value")
        inner = tree[tags[0]]
        if tags[0] == "tensor":
            return self._tensor(inner, tree.get("as"))
        if tags[0] == "type":
            return self._fields(inner, tree.get("fields"), depth)
        if tags[0] == "tuple" and isinstance(inner, list):
            return tuple(self.read(inner, depth))
        if tags[0] == "dict" and isinstance(inner, list):
            return self._mapping(inner, depth)
        return _read_scalar(tags[0], inner)

    def _mapping(self, pairs: list[Any], depth: int) -> dict[Any, Any]:
        wrong = next((pair for pair in pairs if not isinstance(pair, list) or len(pair) != 2), None)
        if wrong is not None:
            raise ValueError(f"it holds a mapping with {_short(wrong)} for a key and a value")
        try:
            return {self.read(key, depth + 1): self.read(value, depth + 1) for key, value in pairs}
        except TypeError as error:
            raise ValueError(f"it holds a mapping with a key that is none: {error}") from error

    def _tensor(self, name: Any, noted: Any) -> Tensor:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{_short(name)} is no name of a tensor")
        if name not in self._tensors:
            try:
                self._tensors[name] = self._given(name)
            except KeyError as error:
                raise ValueError(f"tensor {name} is not there") from error
        try:
            return restored_tensor(self._tensors[name], noted)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"tensor {name} cannot be read as {_short(noted)}") from error

    def _fields(self, name: Any, values: Any, depth: int) -> Any:
        kind = kind_named(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"it names the type {_short(name)}, which is no result of lightning_cnnviz")
        if not isinstance(values, dict):
            raise ValueError(f"a {name} has no fields")
        unknown = [field for field in values if field not in kind.fields]
        if unknown and not self._older:
            raise ValueError(f"a {name} has no field {_short(unknown[0])}")
        if name == "LayerFeatures" and values.get("file") is not None:
            raise ValueError("features name a file of their own")
        return kind.build({field: self.read(values[field], depth + 1) for field in kind.fields if field in values})


def _written_scalar(value: Any) -> Any:
    if isinstance(value, str):
        return {"str": [ord(letter) for letter in value]} if _SPLIT.search(value) else str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _EXACT else {"int": hex(value)}
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        bits = struct.pack(">d", value).hex()
        return {"float": _NONFINITE.get(bits, bits)}
    if isinstance(value, complex):
        return {"complex": [_written_scalar(value.real), _written_scalar(value.imag)]}
    return {"fraction": [_written_scalar(value.numerator), _written_scalar(value.denominator)]}


def _read_scalar(tag: str, inner: Any) -> Any:
    try:
        return _TAGS[tag](inner)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, struct.error) as error:
        raise ValueError(f"it holds {_short({tag: inner})}, which stands for no value") from error


def _number(tree: Any) -> Any:
    if isinstance(tree, dict):
        ((tag, inner),) = tree.items()
        return {"int": _integer, "float": _nonfinite}[tag](inner)
    if isinstance(tree, bool) or not isinstance(tree, (int, float)):
        raise TypeError("no number")
    return tree


def _integer(text: str) -> int:
    return int(text, 16)


def _nonfinite(text: str) -> float:
    if text in _NONFINITE.values():
        return float(text)
    (value,) = struct.unpack(">d", bytes.fromhex(text))
    if math.isfinite(value):
        raise ValueError(text)
    return float(value)


def _complex(parts: Any) -> complex:
    real, imaginary = map(_number, parts)
    return complex(real, imaginary)


def _fraction(parts: Any) -> Fraction:
    numerator, denominator = map(_number, parts)
    return Fraction(numerator, denominator)


def _text(letters: Any) -> str:
    return "".join(map(chr, letters))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(name)
    return dtype


def _unread(inner: Any) -> Any:
    raise TypeError(inner)


_TAGS: dict[str, Callable[[Any], Any]] = {
    "tensor": _unread,
    "type": _unread,
    "tuple": _unread,
    "dict": _unread,
    "float": _nonfinite,
    "int": _integer,
    "complex": _complex,
    "fraction": _fraction,
    "str": _text,
    "size": torch.Size,
    "dtype": _dtype,
}


def _short(value: Any) -> str:
    """Enough of a foreign value to recognize it."""
    return reprlib.repr(value)[:120]
