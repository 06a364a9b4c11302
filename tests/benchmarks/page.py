"""Time and disk of a page's looks: does the 60th cost more than the 2nd?

    python tests/benchmarks/page.py

Each look is a gallery of `--layers` layers with `--features` feature maps of nine patches, cut from `--images` images
of 224 pixels a side; from look to look `--changing` of the patches are others, and all scalars. Images are smooth noise
from a fixed seed. Patches are written as pictures of their own and, in a second page, as crops of their images. A
look's time is that of `PageSink.write` alone; the page is written into a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz import __version__
from lightning_cnnviz.report import Gallery, ImageCrop, Report, Row, Scalar, Step, Tile
from lightning_cnnviz.sinks.page import PageSink

SIDE = 224
FIELDS = (11, 35, 67, 131, 195)  # receptive fields; deeper layers have the last one
K = 9


def make_images(count: int) -> Tensor:
    """Noise at several scales, about as hard to encode as a photograph."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, SIDE, SIDE)
    for scale in (4, 16, 64, SIDE):
        noise = torch.rand(count, 3, scale, scale, generator=generator) - 0.5
        total += F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear") * (0.9 if scale < SIDE else 0.1)
    return ((total + 0.5).clamp(0, 1) * 255).to(torch.uint8)


class Looks:
    """Reports of a network that learns: in each, some patches are others than before."""

    def __init__(self, images: Tensor, options: argparse.Namespace) -> None:
        self.images, self.options, self.random = list(images), options, random.Random(0)
        self.tiles = [
            [[self._tile(layer) for _ in range(K)] for _ in range(options.features)] for layer in self._layers
        ]

    @property
    def _layers(self) -> range:
        return range(self.options.layers)

    def next(self, *, crops: bool) -> Report:
        """Return the report of this look."""
        items = []
        for layer, features in zip(self._layers, self.tiles, strict=True):
            rows = tuple(
                Row(
                    f"feature {n}",
                    tuple(tile if crops else Tile(tile.pixels, tile.caption, tile.numbers) for tile in row),
                )
                for n, row in enumerate(features)
            )
            items.append(Gallery(f"features.{layer}", rows))
        numbers = [Scalar(f"features.{layer}/{n}", self.random.random()) for layer in self._layers for n in range(4)]
        return Report("top_patches", title="Top-9 patches", items=(*items, *numbers))

    def learn(self) -> None:
        """Exchange some patches."""
        for layer, features in zip(self._layers, self.tiles, strict=True):
            for row in features:
                for k in range(K):
                    if self.random.random() < self.options.changing:
                        row[k] = self._tile(layer)

    def _tile(self, layer: int) -> Tile:
        index, field = self.random.randrange(len(self.images)), FIELDS[min(layer, len(FIELDS) - 1)]
        top, left = self.random.randint(0, SIDE - field), self.random.randint(0, SIDE - field)
        image, box = self.images[index], (top, left, top + field, left + field)
        numbers = {"activation": self.random.random(), "dataset index": index, "row": top, "column": left}
        source = ImageCrop(pixels=image, box=box, index=index)
        return Tile(image[:, top : top + field, left : left + field], "class", numbers, source=source)


def measure(options: argparse.Namespace, images: Tensor, *, crops: bool) -> None:
    """Write all looks, and print what the 2nd and the last ones cost."""
    looks, seconds, sizes = Looks(images, options), [], [0]
    with tempfile.TemporaryDirectory() as folder:
        sink = PageSink(folder)
        for number in range(1, options.looks + 1):
            report = looks.next(crops=crops)
            began = time.perf_counter()
            sink.write(report, Step(epoch=number, global_step=number))
            seconds.append(time.perf_counter() - began)
            sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
            looks.learn()
        listed = (Path(folder) / "looks.js").stat().st_size
    grown = [(after - before) / 1e6 for before, after in itertools.pairwise(sizes)]
    print(f"\n{'crops of images' if crops else 'pictures of their own'}")
    print(f"  look 1: {seconds[0]:.2f} s, {grown[0]:.2f} MB;  look 2: {seconds[1]:.2f} s, {grown[1]:.2f} MB")
    for first in range(0, options.looks, 10):
        part = slice(first, first + 10)
        median = statistics.median(seconds[part])
        print(
            f"  looks {first + 1:>2} to {first + len(seconds[part]):>2}: median {median:.2f} s, "
            f"{min(seconds[part]):.2f} to {max(seconds[part]):.2f}; {statistics.median(grown[part]):.2f} MB a look"
        )
    print(f"  all {options.looks}: {sizes[-1] / 1e6:.1f} MB; the list has {listed} bytes")


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=60)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--changing", type=float, default=0.3)
    options = parser.parse_args()
    print(
        f"lightning_cnnviz {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, seed 0"
    )
    print(
        f"{options.looks} looks x {options.layers} layers x {options.features} features x {K} patches, "
        f"{options.changing:.0%} others from look to look, of {options.images} images"
    )
    images = make_images(options.images)
    for crops in (False, True):
        measure(options, images, crops=crops)


if __name__ == "__main__":
    main()
