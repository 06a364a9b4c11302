"""From a name to a network: torchvision's, timm's, or anything that can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_cnnviz.core.network.suggestions import suggestion

__all__ = ["make_network", "weights_enum"]

_TIMM = "timm/"
# Both draw their first weights slowly, and warn of it.
_SLOW = ("googlenet", "inception_v3")


def make_network(name: str, *, values: bool = True) -> nn.Module:
    """Make the network that a name means, from scratch.

    Args:
        name: A torchvision classification model, `timm/NAME`, or `package.module:factory`, which is imported and
            called: from where Python finds packages, else from the current folder. Pass on no name that a file says.
        values: False for a network on the `meta` device, where that can be: shapes without values.

    Raises:
        ImportError: timm, or the package that is named, is not installed.
        ValueError: There is no network of this name.

    Example:
        >>> type(make_network("squeezenet1_1", values=False)).__name__
        'SqueezeNet'
    """
    if ":" in name:
        return _imported(name)
    make, options = _maker(name)
    if values:
        made: nn.Module = make(**options)
        return made
    with _Shapes():
        made = make(**options)
    return made.to("meta")


def weights_enum(name: str, weights: str) -> Any:
    """Return the entry of torchvision's enum of a network's weights.

    Raises:
        ValueError: There is no such entry.
    """
    models = importlib.import_module("torchvision.models")
    entries = models.get_model_weights(name)
    wanted = weights.rsplit(".", 1)[-1]
    if wanted not in entries.__members__:
        there = ", ".join(f'"{entry}"' for entry in ["DEFAULT", *(entry.name for entry in entries)])
        raise ValueError(
            f"weights={weights!r}: there is no such file, and the weights of {name} are called {there}."
            f"{suggestion(wanted, list(entries.__members__), ' ')} A local file: weights=FILE; None trains from scratch"
        )
    return entries[wanted]


def _maker(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    options: dict[str, Any]
    if name.startswith(_TIMM):
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise ImportError(f"'{name}' needs timm, which is not installed: pip install timm") from error
        short = name.removeprefix(_TIMM)
        _check(name, short.split(".")[0], timm.list_models())
        return timm.create_model, {"model_name": short, "pretrained": False}
    models = importlib.import_module("torchvision.models")
    if name in models.list_models(module=models.video):
        raise ValueError(f"'{name}' takes clips (N, C, T, H, W): views and training here are of images (N, C, H, W)")
    _check(name, name, models.list_models(module=models))
    options = {"name": name, "weights": None}
    return models.get_model, options | ({"init_weights": False} if name in _SLOW else {})


def _check(name: str, short: str, names: Sequence[str]) -> None:
    if short not in names:
        other = "Other networks: timm/NAME, or package.module:factory"
        raise ValueError(f"no network is called '{name}'. {suggestion(short, names) or other}")


class _Shapes(TorchFunctionMode):
    """Layers' parameters are made without values; small tensors, which some look at while they are built, with them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def _is_there(path: str) -> bool:
    try:
        return importlib.util.find_spec(path.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _imported(name: str) -> nn.Module:
    path, _, attribute = name.partition(":")
    if not _is_there(path) and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # behind all others: a file that lies here replaces no package
    try:
        imported: Any = importlib.import_module(path)
    except ImportError as error:
        raise ImportError(f"'{name}': cannot import '{path}' ({error})") from error
    for part in attribute.split("."):
        if not hasattr(imported, part):
            raise ValueError(f"'{name}': '{path}' has no '{part}'.{suggestion(part, dir(imported), ' ')}")
        imported = getattr(imported, part)
    made = imported if isinstance(imported, nn.Module) else imported() if callable(imported) else imported
    if not isinstance(made, nn.Module):
        raise ValueError(f"'{name}' gives {type(made).__name__}, which is no torch.nn.Module")
    return made
