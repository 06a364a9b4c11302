"""Any argument described in plain JSON, so that a record can say what a monitor was asked for."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cnnviz.record._tensors import stored_tensor, tensor_name

__all__ = ["plain"]

_DEEPEST = 8
_MOST = 5000  # parts of all that is described
_TEXT = 2000  # characters of a string
_REPR = 200  # characters of a representation
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_CUT = "..."


def plain(value: Any) -> Any:
    """Describe any value in what `json.dumps` takes, the same in every process; this never raises.

    Plain values stand for themselves; tensors and arrays are given by dtype, shape and a hash of their content,
    functions, classes and modules by their qualified names, dataclasses by their fields, everything else by a short
    `repr` without addresses. What is long or deep is cut.

    Example:
        >>> plain({"k": 9, "layers": ("conv1", torch.nn.ReLU()), "output_fn": torch.nn.functional.relu})
        {'k': 9, 'layers': ['conv1', 'torch.nn.modules.activation.ReLU'], 'output_fn': 'torch.nn.functional.relu'}
    """
    return _Description().of(value, 0)


class _Description:
    def __init__(self) -> None:
        self._left = _MOST

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return _CUT
        try:
            if isinstance(value, np.generic):
                value = value.item()
            if value is None or isinstance(value, (bool, int, float, str)):
                return _scalar(value)
            return self._structure(value, depth)
        except Exception:  # anything may be an argument, and may do anything when it is looked at
            return f"<{_name(type(value))}>"

    def _structure(self, value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray):
            return _array(value)
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if isinstance(value, (tuple, list)):
            return self._each(value, depth)
        if isinstance(value, Set):
            return sorted(self._each(value, depth), key=json.dumps)
        if isinstance(value, os.PathLike):
            return _scalar(os.fsdecode(value))
        if isinstance(value, functools.partial):
            parts = {"function": value.func, "arguments": value.args, "keywords": value.keywords}
            return self._mapping(parts.items(), depth)
        if isinstance(value, nn.Module):
            return _name(type(value))
        if isinstance(value, (type, Callable, types.ModuleType)) and hasattr(value, "__name__"):  # type: ignore[arg-type]
            return _name(value)
        if is_dataclass(value):
            held = [(field.name, getattr(value, field.name, None)) for field in fields(value)]
            return {"type": _name(type(value))} | self._mapping(held, depth)
        text = _ADDRESS.sub("", repr(value))
        return text if len(text) <= _REPR else text[:_REPR] + _CUT

    def _each(self, values: Iterable[Any], depth: int) -> list[Any]:
        # One more than there is room for, so that the cut is seen.
        return [self.of(value, depth + 1) for value in islice(values, max(0, self._left) + 1)]

    def _mapping(self, pairs: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        kept = islice(pairs, max(0, self._left) + 1)
        return {key if isinstance(key, str) else str(plain(key)): self.of(value, depth + 1) for key, value in kept}


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return str(value) if len(value) <= _TEXT else value[:_TEXT] + _CUT
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else hex(value)[:_TEXT]
    return float(value) if math.isfinite(value) else str(float(value))


def _tensor(tensor: Tensor) -> dict[str, Any]:
    described = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    try:
        return described | {"hash": tensor_name(stored_tensor(tensor)[0])}
    except Exception:  # it has no values of its own
        return described


def _array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    try:
        return _tensor(torch.from_numpy(np.ascontiguousarray(array)))
    except TypeError:  # strings, objects
        return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _name(thing: Any) -> str:
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None) or thing.__name__
    return f"{module}.{name}" if module else str(name)
