"""The command line: `cnnviz demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    options = parser.parse_args(arguments)
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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
