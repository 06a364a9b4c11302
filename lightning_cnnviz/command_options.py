"""What commands on images of yours ask alike: which images, and how they are read. Loads fast, for `--help`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_image_options", "image_options", "positive"]


def add_image_options(parser: argparse.ArgumentParser, *, input_of: str = "the network's input") -> None:
    """Add `--data`, `--root`, `--download`, `--input`, `--images`, `--mean` and `--std`."""
    parser.add_argument(
        "--data", required=True, help="a folder of images (or one for each class), or a data set's name"
    )
    parser.add_argument(
        "--root", default="data", metavar="DIR", help="where a data set by name is; default: %(default)s"
    )
    parser.add_argument("--download", action="store_true", help="fetch a data set by name that is not there")
    parser.add_argument(
        "--input", type=positive, nargs=3, default=[3, 224, 224], metavar=("C", "H", "W"), help="default: 3 224 224"
    )
    parser.add_argument("--images", type=positive, metavar="N", help="at most so many; default: all")
    parser.add_argument("--mean", type=float, nargs="+", help=f"of {input_of}; default: ImageNet's")
    parser.add_argument("--std", type=float, nargs="+", help="default: ImageNet's")


def image_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was chosen, as arguments of `find_exploration_images`."""
    return {
        "data": options.data,
        "root": options.root,
        "download": options.download,
        "input_size": options.input,
        "mean": options.mean,
        "std": options.std,
        "most": options.images,
    }


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
