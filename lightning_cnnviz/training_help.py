"""The help of `cnnviz fit` and its kin: one page, and one a class."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks, loggers

from lightning_cnnviz.docstrings import argument_texts, first_sentence
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.sinks.base import Sink

__all__ = ["asked_for", "training_help"]

_OURS = __name__.partition(".")[0]
_WIDTH = 110
_LINKED = {"num_classes", "class_names", "image_size"}  # of the model: what the data says
_GROUPS: dict[str, type] = {"model": FineTuner, "data": ImageFolderDataModule, "trainer": pl.Trainer}


def asked_for(arguments: Sequence[str]) -> str | None:
    """Return what help some arguments ask for: "" for the page, a class or group, or None for no help of ours."""
    for argument in arguments:
        if argument in ("-h", "--help"):
            return ""
        if argument.startswith("--help."):
            return argument.removeprefix("--help.")
    return None


def training_help(command: str, purpose: str, what: str) -> str:
    """Return the help of a command.

    Args:
        command: `"fit"`, `"validate"`, `"test"` or `"predict"`.
        purpose: What it does, in a few words.
        what: "" for a page of all groups; `"model"`, `"data"`, `"trainer"`, or the name of a class, for its options.

    Raises:
        ValueError: There is no such class; names the closest.
    """
    if what == "":
        return "\n".join(_page(command, purpose))
    known = _classes()
    if what.rpartition(".")[2] not in known:
        close = difflib.get_close_matches(what, known, n=3)
        there = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"--help.{what}: no class is called so; {there}")
    return "\n".join(_options(what, known[what.rpartition(".")[2]]))


def _page(command: str, purpose: str) -> Iterator[str]:
    yield f"cnnviz {command}: {purpose}"
    yield ""
    yield f"  cnnviz {command} --config FILE.yaml [--data.data FOLDER] [--model.OPTION VALUE] [--trainer.OPTION VALUE]"
    yield ""
    yield "What is given later wins. --print_config prints all settings as a file to begin with; --ckpt_path takes a"
    yield "checkpoint, --seed_everything a seed."
    for group, title, linked in (("model", "The network", _LINKED), ("data", "The images", set[str]())):
        yield f"\n{title}: --{group}.OPTION (in full: --help.{group})"
        texts = _texts(_GROUPS[group])
        yield from _lines((name, texts.get(name, "")) for name in _parameters(_GROUPS[group]) if name not in linked)
    yield "\nThe training: --trainer.OPTION, as lightning's Trainer has them (--help.trainer)"
    names = ", ".join(_parameters(pl.Trainer))
    yield textwrap.fill(names, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    public = {name: kind for name, kind in _ours().items() if name not in ("FineTuner", "ImageFolderDataModule")}
    sinks = [name for name, kind in public.items() if issubclass(kind, Sink)]
    yield "\nMonitors, entries of trainer.callbacks with class_path: lightning_cnnviz.NAME (--help.NAME)"
    yield from _lines((name, kind.__doc__) for name, kind in public.items() if name not in sinks)
    yield "\nSinks, entries of a monitor's sinks, where other places than the default ones are wanted (--help.NAME)"
    yield from _lines((name, public[name].__doc__) for name in sinks)
    yield "\nLightning's callbacks and loggers likewise: --help.EarlyStopping, --help.CSVLogger, ..."


def _lines(entries: Any) -> Iterator[str]:
    entries = [(name, first_sentence(text)) for name, text in entries]
    width = max(len(name) for name, _ in entries) + 2
    for name, text in entries:
        yield f"  {name:<{width}}{textwrap.shorten(text, _WIDTH - width - 2, placeholder=' ...')}"


def _options(asked: str, kind: type) -> Iterator[str]:
    place = f"{kind.__module__}.{kind.__name__}"
    if asked in _GROUPS:
        place = f"--{asked}.OPTION"
    elif kind.__name__ in _ours():
        place = f"class_path: {_OURS}.{kind.__name__}"
    yield f"{kind.__name__} ({place})"
    yield ""
    about = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:")[0].strip()
    yield about if kind.__module__.startswith(f"{_OURS}.") else about.split("\n\n")[0]
    yield ""
    texts = _texts(kind)
    for name, parameter in _parameters(kind).items():
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"  {name}: {_type_text(parameter)}{default}"
        yield textwrap.fill(texts.get(name, ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _type_text(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "any"
    text = inspect.formatannotation(parameter.annotation).strip("'")
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)  # without the modules that types are from


def _classes() -> dict[str, type]:
    """What help can be asked for, by name: the three groups, and all classes of ours and of Lightning's."""
    theirs = {
        name: kind for place in (callbacks, loggers) for name, kind in vars(place).items() if isinstance(kind, type)
    }
    return theirs | {"Trainer": pl.Trainer} | _ours() | _GROUPS


def _ours() -> dict[str, type]:
    package = importlib.import_module(_OURS)
    public = {name: getattr(package, name) for name in package.__all__}
    kinds = (pl.Callback, Sink, pl.LightningModule, pl.LightningDataModule)
    return {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, kinds) and not inspect.isabstract(kind)
    }


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    found = inspect.signature(kind).parameters
    return {name: each for name, each in found.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}


def _texts(kind: type) -> dict[str, str]:
    """What is said of each option, by the class itself or by those that it is made of."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        texts |= argument_texts(vars(each)["__init__"].__doc__ if "__init__" in vars(each) else None)
        texts |= argument_texts(each.__doc__)
    return texts
