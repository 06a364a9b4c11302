"""Options behind `**options`, named one by one where people and command lines look for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from typing_extensions import Unpack

from lightning_cnnviz.docstrings import argument_texts

__all__ = ["name_for_loader", "name_options", "space_out"]


def name_for_loader(options: Any, dataloader_idx: int, data: Any = None) -> None:
    """Let options of a monitor name its series after the second, third, ... of the trainer's loaders.

    Args:
        options: Changed, where they have no name.
        dataloader_idx: Which loader.
        data: A loader of the monitor's own, instead.

    Example:
        >>> options = {}
        >>> name_for_loader(options, 1)
        >>> options
        {'name': 'loader_1'}
    """
    if dataloader_idx > 0 and data is None and not options.get("name"):
        options["name"] = f"loader_{dataloader_idx}"


def space_out(options: Any) -> None:
    """Let options of a monitor that costs much say every fifth epoch, where they say nothing of when.

    Example:
        >>> options = {}
        >>> space_out(options)
        >>> options
        {'every_n_epochs': 5}
    """
    if all(options.get(name) is None for name in ("every_n_epochs", "every_n_steps", "epochs")):
        options["every_n_epochs"] = 5


def name_options(kind: type, homes: Sequence[type]) -> None:
    """Let a class's signature name what its `**options: Unpack[...]` stands for, with types, defaults and texts.

    `inspect.signature`, notebooks and LightningCLI (help, `--print_config`) then show each of them.

    Args:
        kind: The class; one whose `__init__` takes no such options stays as it is.
        homes: Classes whose own `__init__` and docstring tell of these options; the first that does counts.
    """
    init: Any = vars(kind).get("__init__")
    if init is None:
        return
    signature = inspect.signature(init)
    names = _names_behind(init, signature)
    added = []
    for name in names:
        home = next((home for home in homes if name in _explicit(home)), None)
        if home is None:  # somebody else's options
            return
        parameter = _explicit(home)[name]
        if isinstance(parameter.annotation, str):
            parameter = parameter.replace(annotation=get_type_hints(home.__init__)[name])  # type: ignore[misc]
        added.append(parameter)
    if added:
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        init.__signature__ = signature.replace(parameters=[*own, *added])
        init.__doc__ = _documented(kind, names, homes)


def _names_behind(init: Callable[..., Any], signature: inspect.Signature) -> list[str]:
    """The names of what `**options` takes, but for those that are arguments of their own."""
    options = next((each for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD), None)
    if options is None:
        return []
    annotation = options.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, init.__globals__)  # as `get_type_hints` does, of this one alone
        except NameError:  # it is there for type checkers only
            return []
    if get_origin(annotation) is not Unpack:
        return []
    return [name for name in get_args(annotation)[0].__annotations__ if name not in signature.parameters]


def _explicit(home: type) -> dict[str, inspect.Parameter]:
    init = vars(home).get("__init__")
    return {} if init is None else {**inspect.signature(init).parameters}


def _documented(kind: type, names: Sequence[str], homes: Sequence[type]) -> str:
    texts = [
        (name, argument_texts(home.__doc__).get(name)) for name in names for home in homes if name in _explicit(home)
    ]
    known = {name: text for name, text in reversed(texts) if text}
    lines = [f"    {name}: {known[name]}" for name in names if name in known]
    return "\n".join([f"Make a {kind.__name__}.", "", "Args:", *lines])
