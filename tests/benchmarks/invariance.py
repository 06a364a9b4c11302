"""Time of `measure_invariance`, against a plain forward pass over as many images.

    python tests/benchmarks/invariance.py --models squeezenet1_0 resnet18

Networks have random weights and images are noise, both from a fixed seed: nothing is downloaded or written. Five images
are swept over the paper's three transforms (78 copies each), and measured at the default layers. Beside it stand, by
turns in one run:

- the plain pass: the same number of images, made beforehand, through the network in eval mode without gradients, in
  batches as large as ours;
- with the transforms: the plain pass over copies that are transformed right before, as any script for the curves would.

Ratios are to the plain passes right before and after; the first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.images.invariance import DEFAULT_TRANSFORMS, measure_invariance
from lightning_cnnviz.core.images.transforms import resolve_transforms
from lightning_cnnviz.core.network.memory import images_at_once


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one piece of work, with what it has left to the device."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def plain(model: nn.Module, batches: list[Tensor]) -> None:
    """A forward pass over images."""
    for batch in batches:
        model(batch)


@torch.no_grad()
def transformed(model: nn.Module, images: Tensor, together: int) -> None:
    """A forward pass over copies that are made on the way."""
    fill = images.mean((0, 2, 3))
    waiting: list[Tensor] = []
    for transform in resolve_transforms(DEFAULT_TRANSFORMS, images, fill):
        for value in transform.values:
            waiting.append(transform.apply(images, value))
            if (len(waiting) + 1) * len(images) > together:
                model(torch.cat(waiting))
                waiting = []
    if waiting:
        model(torch.cat(waiting))


def measure(name: str, options: argparse.Namespace) -> None:
    """Print one line a contender."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval().to(device)
    images = torch.randn(options.images, 3, options.size, options.size, device=device)
    together = images_at_once(model, images[:1])
    share = max(1, together // len(images)) * len(images)
    values = sum(len(found.values) for found in resolve_transforms(DEFAULT_TRANSFORMS, images, images.mean((0, 2, 3))))
    count = values * len(images)
    noise = torch.randn(min(share, count), 3, options.size, options.size, device=device)
    batches = [noise[: min(share, count - at)] for at in range(0, count, share)]
    work: list[Callable[[], object]] = [
        lambda: plain(model, batches),
        lambda: measure_invariance(model, images),
        lambda: transformed(model, images, share),
        lambda: plain(model, batches),
    ]
    rounds = [[seconds(piece, device) for piece in work] for _ in range(options.repeats + 1)]
    counted = rounds[1:]
    print(f"\n{name}: {count} copies of {len(images)} images of {options.size} x {options.size}, batches of {share}")
    print(f"{'':28}{'s, median':>12}{'ratio: median':>16}{'lowest':>10}{'highest':>10}")
    for label, place in (("plain pass", 0), ("with the transforms", 2), ("measure_invariance", 1)):
        ratios = [found[place] / ((found[0] + found[3]) / 2) for found in counted]
        median = statistics.median(found[place] for found in counted)
        middle = statistics.median(ratios)
        print(f"{label:28}{median:12.2f}{middle:16.3f}{min(ratios):10.3f}{max(ratios):10.3f}", flush=True)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18"], metavar="NAME")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, seed {options.seed}")
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
