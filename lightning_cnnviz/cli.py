"""The command line: `cnnviz demo`, `cnnviz layers`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = argparse.ArgumentParser(prog="cnnviz", description="See what a convnet learns, while it trains.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small convnet on handwritten digits and look into it (about a minute)",
        description="Train a small convnet on scikit-learn's handwritten digits with the monitors attached: logs to "
        "Weights & Biases (offline, no account needed) and writes a local page. Downloads nothing.",
    )
    demo.add_argument("--out", type=Path, default=Path("cnnviz_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--epochs", type=_positive, default=8, metavar="N", help="default: %(default)s")
    demo.add_argument("--online", action="store_true", help="upload the run while it is made (needs a W&B account)")
    layers = commands.add_parser(
        "layers",
        help="print a network's layers: sizes, parameters, multiply-adds, receptive fields",
        description="Print what a network does with one image, layer by layer: output sizes, parameters, "
        "multiply-adds, memory, receptive fields, and what does not fit. Downloads nothing: weights do not matter.",
    )
    layers.add_argument(
        "model", metavar="MODEL", help="a torchvision classifier (resnet18), timm/NAME, or package.module:factory"
    )
    layers.add_argument(
        "--input", type=_positive, nargs=3, default=[3, 224, 224], metavar=("C", "H", "W"), help="default: 3 224 224"
    )
    options = parser.parse_args(arguments)
    if options.command == "layers":
        try:
            return _layers(options.model, options.input)
        except _UsageError as error:
            layers.error(str(error))
    if options.out.exists() and not options.out.is_dir():
        demo.error(f"--out {options.out} is a file; give a folder")
    return _demo(options.out, options.epochs, options.online)


def _demo(out: Path, epochs: int, online: bool) -> int:
    from lightning_cnnviz.demo import run_demo  # loads torch and Lightning: not for --help

    result = run_demo(out, epochs=epochs, online=online)
    print(f"\nTest accuracy: {result.accuracy:.1%}")
    print(f"Page, to open in a browser: {result.page}")
    if online:
        print(f"The run is online; its files are in {result.run}")
    else:
        print(f"To upload the run:          wandb sync {result.run}")
    print(f"To see it in the terminal:  wandb leet {result.run}")
    return 0


class _UsageError(Exception):
    """What was asked for on the command line cannot be had."""


def _layers(name: str, size: Sequence[int]) -> int:
    from lightning_cnnviz.core.arithmetic import layer_table
    from lightning_cnnviz.render.layer_table import layer_table_text

    model = _model(name)
    try:
        print(layer_table_text(layer_table(model, size)))
    except ValueError as error:
        raise _UsageError(str(error)) from error
    return 0


def _model(name: str) -> nn.Module:
    """Make the network that a name means, without its weights' values where that can be."""
    if ":" in name:
        return _imported(name)
    if name.startswith("timm/"):
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise _UsageError(f"'{name}' needs timm, which is not installed: pip install timm") from error
        name = name.removeprefix("timm/")
        known, make = timm.list_models(), timm.create_model
        options: dict[str, Any] = {"pretrained": False}
    else:
        models = importlib.import_module("torchvision.models")
        known, make = models.list_models(module=models), models.get_model
        # Their own initialization draws slowly, and warns of it.
        options = {"weights": None} | ({"init_weights": False} if name in ("googlenet", "inception_v3") else {})
    if name.split(".")[0] not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = "Did you mean " + " or ".join(f"'{word}'" for word in close) + "?" if close else ""
        other = "Other networks: timm/NAME, or package.module:factory"
        raise _UsageError(f"no network is called '{name}'. {hint or other}")
    import torch

    try:
        with torch.device("meta"):
            made: nn.Module = make(name, **options)
    except (NotImplementedError, RuntimeError):  # some look at values while they are built
        made = make(name, **options)
    return made


def _imported(name: str) -> nn.Module:
    """Return what `package.module:factory` is, or what it returns."""
    from torch import nn

    path, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(path)
    except ImportError as error:
        raise _UsageError(f"'{name}': cannot import '{path}' ({error})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3, cutoff=0.5)
            hint = " Did you mean " + " or ".join(f"'{word}'" for word in close) + "?" if close else ""
            raise _UsageError(f"'{name}': '{path}' has no '{part}'.{hint}")
        found = getattr(found, part)
    made = found if isinstance(found, nn.Module) else found() if callable(found) else found
    if not isinstance(made, nn.Module):
        raise _UsageError(f"'{name}' gives {type(made).__name__}, which is no torch.nn.Module")
    return made


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
