"""The command line: `cnnviz demo`, `layers`, `explore`, `compare`, `fit` and its kin, `study`, and those of records."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_cnnviz import __version__
from lightning_cnnviz.command_options import add_image_options, image_options, positive

__all__ = ["main"]

# Commands with a parser of their own, which takes seconds to load.
_TRAINING = {
    "fit": "fine-tune a network on a folder of images, as a YAML file says",
    "validate": "measure a trained network on the validation images",
    "test": "measure a trained network on the test images",
    "predict": "write what a trained network takes images for, as CSV",
}
# Commands on a record, with a parser of their own, too.
_RECORD = {
    "record": "list what is in a record of looks, and check it",
    "sync": "send to a W&B run what a record has and the run has not",
    "export": "write a look of a record as a figure (.pdf, .svg, .png), a page (.html) or numbers (.csv)",
    "view": "make or refresh a page of the looks of one record, or of several side by side",
    "bundle": "write some looks of a record as a page that is one file, to send",
}
# What a W&B project shows, with parsers of their own.
_PROJECT = {
    "workspace": "save a workspace in a W&B project that shows its runs in reading order",
    "report": "save a W&B report to copy: the panels, and how to read each view",
}
_COMPARE = "lay two networks side by side, unit by unit, on the same images"
_STUDY = "many trainings and one table: images a class, or layers removed"
_NEEDED = ("jsonargparse", "docstring_parser", "typeshed_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no text
    parser = argparse.ArgumentParser(prog="cnnviz", description="See what a convnet learns, while it trains.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small convnet on handwritten digits and look into it (about a minute)",
        description="Train a small convnet on scikit-learn's handwritten digits with the monitors attached: logs to "
        "Weights & Biases (offline, no account needed) and writes a local page. Downloads nothing.",
    )
    demo.add_argument("--out", type=Path, default=Path("cnnviz_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--epochs", type=positive, default=8, metavar="N", help="default: %(default)s")
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
        "--input",
        type=positive,
        nargs="+",
        default=[3, 224, 224],
        metavar="N",
        help="channels, height and width of an image, channels and length of a signal, or channels, depth, height and "
        "width of a volume; default: 3 224 224",
    )
    explore = commands.add_parser(
        "explore",
        help="look at a trained network from every side, on one page",
        description="Look at a trained network with images of your own: its layers and filters, what drives its "
        "feature maps, projections, probes, invariance, occlusion, attributions, inputs of its own making. Writes a "
        "local page.",
    )
    explore.add_argument(
        "model",
        metavar="MODEL",
        help="a torchvision classifier, timm/NAME, package.module:factory, or a checkpoint of fit",
    )
    add_image_options(explore)
    explore.add_argument(
        "--backbone",
        metavar="NAME",
        help="of a checkpoint of a network of your own: its package.module:factory, which is imported and called",
    )
    explore.add_argument("--weights", help="a file, or DEFAULT; by default what the network is made with")
    explore.add_argument("--views", nargs="+", metavar="VIEW", help="layer_table, top_patches, ...; default: all")
    explore.add_argument("--layers", nargs="+", metavar="LAYER", help="names or globs; default: each view's own choice")
    explore.add_argument(
        "--features", type=_features, metavar="N", help="feature maps of each layer, or all; default: 16 and 8"
    )
    explore.add_argument("--out", type=Path, default=Path("cnnviz_explore"), metavar="DIR", help="default: %(default)s")
    explore.add_argument("--wandb", metavar="PROJECT", help="log an offline W&B run, too")
    for name, help_text in {"compare": _COMPARE, **_TRAINING, "study": _STUDY, **_RECORD, **_PROJECT}.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if arguments and arguments[0] in _TRAINING:
        return _train(parser, arguments)
    if arguments and arguments[0] == "study":
        from lightning_cnnviz.studies.cli import study_main

        return study_main(arguments[1:])
    if arguments and arguments[0] == "compare":
        from lightning_cnnviz.compare import compare_main

        return compare_main(arguments[1:])
    if arguments and arguments[0] in ("view", "bundle"):
        from lightning_cnnviz.view import bundle_main, view_main

        return (view_main if arguments[0] == "view" else bundle_main)(arguments[1:])
    if arguments and arguments[0] == "sync":
        from lightning_cnnviz.sync import sync_main

        return sync_main(arguments[1:])
    if arguments and arguments[0] in _PROJECT:
        from lightning_cnnviz.workspace.cli import report_main, workspace_main

        return (workspace_main if arguments[0] == "workspace" else report_main)(arguments[1:])
    if arguments and arguments[0] in _RECORD:
        from lightning_cnnviz.record.cli import export_main, record_main

        return (record_main if arguments[0] == "record" else export_main)(arguments[1:])
    options = parser.parse_args(arguments)
    if options.command == "layers":
        try:
            return _layers(options.model, options.input)
        except _UsageError as error:
            layers.error(str(error))
    if options.out.exists() and not options.out.is_dir():
        (demo if options.command == "demo" else explore).error(f"--out {options.out} is a file; give a folder")
    if options.command == "explore":
        try:
            return _explore(options)
        except _UsageError as error:
            explore.error(str(error))
    return _demo(options.out, options.epochs, options.online)


def _features(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or all") from error


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
    from lightning_cnnviz.training_help import asked_for, training_help

    what = asked_for(arguments)
    if what not in (None, "all"):
        try:
            print(training_help(arguments[0], _TRAINING[arguments[0]], str(what)))
        except ValueError as error:
            parser.error(str(error))
        return 0
    arguments = ["--help" if argument == "--help.all" else argument for argument in arguments]
    return finetune_main(arguments)


class _UsageError(Exception):
    """What was asked for on the command line cannot be had."""


def _layers(name: str, size: Sequence[int]) -> int:
    from lightning_cnnviz.core.layer_table.table import layer_table
    from lightning_cnnviz.finetune.networks import make_network
    from lightning_cnnviz.render.layer_table import layer_table_text

    try:
        model = make_network(name, values=False)
        print(layer_table_text(layer_table(model, size)))
    except (ImportError, ValueError) as error:
        raise _UsageError(str(error)) from error
    return 0


def _explore(options: argparse.Namespace) -> int:
    from lightning_cnnviz.explore import RANDOM, explore, find_exploration_images, has_random_weights, load_network

    random = has_random_weights(options.model, options.weights)
    try:
        images = find_exploration_images(**image_options(options))
        network = load_network(options.model, options.weights, options.input, backbone=options.backbone)
        if random:
            print(
                f"{options.model} HAS RANDOM WEIGHTS: the page shows a network that was not trained. Give --weights "
                "DEFAULT, or a file",
                file=sys.stderr,
            )
        made = explore(
            network,
            images,
            options.out,
            views=options.views,
            layers=options.layers,
            features=options.features,
            wandb=options.wandb,
            weights=RANDOM if random else "",
        )
    except (ImportError, OSError, ValueError) as error:
        raise _UsageError(str(error)) from error
    for view, reason in made.left_out.items():
        print(f"Without {view}: {reason}")
    if made.reused:
        print(f"As before, since weights, images and arguments are: {', '.join(made.reused)}")
    print(f"Page, to open in a browser: {made.page}")
    return 0
