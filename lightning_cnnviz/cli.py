"""The command line: `cnnviz demo`, `layers`, `fit`, `validate`, `test`, `predict` and `study`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

# Commands with a parser of their own, which takes seconds to load.
_TRAINING = {
    "fit": "fine-tune a network on a folder of images, as a YAML file says",
    "validate": "measure a trained network on the validation images",
    "test": "measure a trained network on the test images",
    "predict": "write what a trained network takes images for, as CSV",
}
_STUDY = "many trainings and one table: images a class, or layers removed"
_NEEDED = ("jsonargparse", "docstring_parser", "typeshed_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
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
    for name, help_text in {**_TRAINING, "study": _STUDY}.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if arguments and arguments[0] in _TRAINING:
        return _train(parser, arguments)
    if arguments and arguments[0] == "study":
        from lightning_cnnviz.studies.cli import study_main

        return study_main(arguments[1:])
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


def _train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(missing)
        parser.error(f'{arguments[0]} needs {packages}, not installed: pip install "lightning_cnnviz[cli]"')
    importlib.import_module("lightning_cnnviz.callbacks")  # so that monitors are known by their bare names
    from lightning_cnnviz.finetune.cli import finetune_main

    return finetune_main(arguments)


class _UsageError(Exception):
    """What was asked for on the command line cannot be had."""


def _layers(name: str, size: Sequence[int]) -> int:
    from lightning_cnnviz.core.arithmetic import layer_table
    from lightning_cnnviz.core.networks import make_network
    from lightning_cnnviz.render.layer_table import layer_table_text

    try:
        model = make_network(name, values=False)
        print(layer_table_text(layer_table(model, size)))
    except (ImportError, ValueError) as error:
        raise _UsageError(str(error)) from error
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
