"""What projections and occlusion cost on networks of many small operations, in times of a plain pass.

    python tests/benchmarks/cost.py
    python tests/benchmarks/cost.py --models legacy_xception --methods gradient

Of a convolution in the middle of each network and of the last one: the first call of `project` with one unit, which
learns the network on the way (one pass that finds receptive fields, one that is recorded); each of `--units` units of a
second call with as many images; and each unit after the first of one image, beside what autograd's way back alone takes
for one. Of `occlude` with its default square: the whole, the floor (as many images in batches of the same size, and
nothing else) and what it takes beyond. One image, one thread, time of the processor, so that other programs disturb it
less. Networks have random weights: it is said where what a layer returns is not finite, or so small that processors
compute with it slowly.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Projector, Unit
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.network.memory import images_at_once


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """The processor's time of the fastest of some repetitions."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def layers_of(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What each convolution returns, of those that run once, with one entry for the image and more than one place."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, output: Tensor) -> None:
        found.setdefault(name, []).append(output.clone())

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    once = {name: own[0] for name, own in found.items() if len(own) == 1}
    return {name: maps for name, maps in once.items() if len(maps) == 1 and maps[0, 0].numel() > 1}


def remark(maps: Tensor) -> str:
    """What makes times of this layer's units strange."""
    if not bool(maps.isfinite().all()):
        return "not finite: the network's own values, from random weights"
    largest = float(maps.abs().max())
    return f"largest activation {largest:.0e}" if largest < 1e-20 else ""


def further_units(layer: str, maps: Tensor) -> list[Unit]:
    """A unit, and eight further ones on the same image."""
    return [Unit(0, layer, number % maps.shape[1]) for number in range(9)]


def way_back(model: nn.Module, image: Tensor, layer: str) -> float:
    """Seconds of autograd's way back from a unit, without the pass."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output * 1))
    image = image.clone().requires_grad_()
    model(image)
    handle.remove()
    value = seen[0].flatten()[0]
    return seconds(lambda: torch.autograd.grad(value, image, retain_graph=True), 3)


@torch.no_grad()
def floor(model: nn.Module, image: Tensor, positions: int) -> float:
    """Seconds of as many images as there are positions, in batches as `occlude` makes them."""
    together = images_at_once(model, image)
    sizes = [min(together, positions - at) for at in range(0, positions, together)]
    return seconds(lambda: [model(image.repeat(size, 1, 1, 1)) for size in sizes], 2)


def measure(name: str, options: argparse.Namespace) -> None:
    """Print a network's figures."""
    torch.manual_seed(options.seed)
    known = name in torchvision.models.list_models()
    model = torchvision.models.get_model(name, weights=None) if known else timm.create_model(name, pretrained=False)
    model = model.eval()
    size = options.size or getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    images = torch.randn(options.units, 3, size, size)
    with torch.no_grad():
        plain = seconds(lambda: model(images[:1]), 5)
    print(f"\n{name}, {size} x {size}: a pass takes {plain * 1e3:.1f} ms")
    maps = layers_of(model, images[:1])
    names = [*maps]
    for method in options.methods:
        for layer in (names[len(names) // 2], names[-1]):
            projector = Projector(model, select_layers(model, [layer]), method)
            first = seconds(lambda p=projector, at=layer: p.project(images, [Unit(0, at, 0)])) / plain
            units = [Unit(number, layer, number % maps[layer].shape[1]) for number in range(options.units)]
            each = seconds(lambda p=projector, own=units: p.project(images, own), 2) / plain / len(units)
            further = seconds(lambda p=projector, at=layer: p.project(images, further_units(at, maps[at])), 2) / plain
            further = (
                further - seconds(lambda p=projector, at=layer: p.project(images, [Unit(0, at, 0)]), 2) / plain
            ) / 8
            back = way_back(model, images[:1], layer) / plain
            figures = f"first call {first:6.1f}  a unit {each:5.1f}  further {further:5.2f} (autograd {back:.2f})"
            figures += f"  {remark(maps[layer])}"
            print(f"{method:10}{layer:44}{figures}", flush=True)
    if not options.no_occlusion:
        positions = occlude(model, images[:1]).probabilities.numel()
        whole = seconds(lambda: occlude(model, images[:1]), 2) / plain
        least = floor(model, images[:1], positions) / plain
        print(
            f"{'occlude':54}whole {whole:11.1f}  floor {least:.1f} ({positions} positions)  beyond {whole - least:.1f}",
            flush=True,
        )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "efficientvit_m0", "legacy_xception"])
    parser.add_argument("--methods", nargs="+", default=["deconvnet", "gradient"])
    parser.add_argument("--size", type=int, default=0, help="of the images; by default the network's own")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--no-occlusion", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, 1 thread, float32, seed {options.seed}")
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
