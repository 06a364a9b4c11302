"""What a FineTuner's checkpoint says of its network: plain settings, and never code that would be imported and run."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["check_module", "read_checkpoint", "stored_settings"]

_NEVER_STORED = ("weights", "sinks")  # a checkpoint has its own weights, and shows nothing
_HEADS = ("linear", "mlp")
_MORE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def read_checkpoint(file: Any, **options: Any) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is run.

    Args:
        file: Its path, or an open file, which is then where it was.
        options: Further ones of `torch.load`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or holds more than tensors and plain values.
    """
    options = {"map_location": "cpu", "weights_only": True, **options}
    try:
        if hasattr(file, "read"):
            begin = file.tell()
            content = torch.load(file, **options)
            file.seek(begin)
        else:
            content = torch.load(Path(file), **options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a file that is no checkpoint, torch's reader raises whatever it comes upon
        told = isinstance(error, (pickle.UnpicklingError, RuntimeError, ValueError)) and str(error)
        reason = str(error).splitlines()[0] if told else "it holds no data, or ends too early"
        raise ValueError(f"{_name(file)} cannot be read as a checkpoint ({reason})") from error
    return content if isinstance(content, dict) else {}


def check_module(
    checkpoint: Mapping[str, Any], file: Any, parameters: Mapping[str, inspect.Parameter], *, typed: Collection[str]
) -> None:
    """Check that a checkpoint has what a FineTuner is made of.

    Args:
        checkpoint: Its content.
        file: Its name, for messages.
        parameters: All settings, by name.
        typed: Names of those that the user has given.

    Raises:
        ValueError: It has no weights, or neither it nor the user has a setting that has no default.
    """
    weights, settings = checkpoint.get("state_dict"), checkpoint.get("hyper_parameters", {})
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{_name(file)} is no checkpoint of Lightning: it has no weights under 'state_dict'")
    if not isinstance(settings, Mapping):
        raise ValueError(f"{_name(file)} is no checkpoint of FineTuner: its 'hyper_parameters' are no settings by name")
    needed = [name for name, each in parameters.items() if each.default is each.empty and each.kind not in _MORE]
    missing = [name for name in needed if name not in settings and name not in typed]
    if missing and "hparams_file" not in typed:
        given = " and ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{_name(file)} does not have all settings of its network: give {given}")


def stored_settings(
    checkpoint: Mapping[str, Any],
    file: Any,
    known: Collection[str],
    *,
    typed: Collection[str] = (),
    how: str = "{}=...",
) -> dict[str, Any]:
    """Return the settings of FineTuner that a checkpoint holds, by name.

    A network, an optimizer or a schedule that would have to be imported is taken from the user alone: whoever sends a
    checkpoint is not to decide what runs here.

    Args:
        checkpoint: Its content.
        file: Its name, for messages.
        known: Names of all settings.
        typed: Those that the user has given; what the checkpoint says of them does not count.
        how: How a setting is given, for messages.

    Raises:
        ValueError: A setting names code, or there is no such setting.
    """
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, Mapping):
        return {}
    stored = {name: value for name, value in settings.items() if name not in {*_NEVER_STORED, *typed}}
    for name, value in stored.items():
        if name not in known:
            raise ValueError(f"{_name(file)} has the setting {str(name)[:80]!r}, which FineTuner does not have")
        if _names_code(name, value):
            given = how.format(name)
            raise ValueError(
                f"{_name(file)} says {name}={str(value)[:80]!r}, which would have to be imported. No code is run that "
                f"a file names: where you trust it, give it yourself ({given})"
            )
    return stored


def _names_code(name: str, value: Any) -> bool:
    if name == "backbone":
        return not isinstance(value, str) or ":" in value
    if name in ("optimizer", "scheduler"):
        return not (value is None or (isinstance(value, str) and value.isidentifier()))
    if name == "head":
        return value not in _HEADS
    return _holds_class(value)


def _holds_class(value: Any) -> bool:
    """Whether a command line would make an object of it."""
    if isinstance(value, Mapping):
        return any(key in ("class_path", "_class_path") or _holds_class(part) for key, part in value.items())
    return isinstance(value, (list, tuple)) and any(map(_holds_class, value))


def _name(file: Any) -> str:
    return str(file) if isinstance(file, (str, os.PathLike)) else "the checkpoint"
