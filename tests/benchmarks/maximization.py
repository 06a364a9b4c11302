"""Time of `maximize` for all features of a layer, against one at a time, as lucent does it.

    python tests/benchmarks/maximization.py --models squeezenet1_0 --features 8 --steps 8

Networks have random weights from a fixed seed: nothing is downloaded, and nothing but standard output is written.

The same number of steps of Adam, on a Fourier parametrization with correlated colors, under random shifts, turns and
changes of size, is made for each of the first features of some layers, by:

- ours, as the monitor calls it: all features in batches, on an image as large as the units' receptive field, in passes
  that stop at the layer;
- ours, on images of the peer's size: what batches, stopping and leaving out the weights' gradients give by themselves;
- ours, one feature at a time on images of the peer's size: the same without batches;
- lucent 0.1.8, where it is installed (with a kornia of its time), with its defaults: one feature at a time, 128 x 128
  pixels enlarged to 224 x 224 for the network, whole forward passes, and gradients of all weights on the way;
- the same written again, for where lucent is not installed: whole passes on 224 x 224 pixels, `backward()`, and ours
  for the rest.

Every contender runs by turns, each time from the beginning, with its set-up; the table gives the median of the time a
feature and a step, and its ratio to ours. Set-up (finding the receptive field) is counted, so that few steps make ours
look worse than it is at the usual 64 to 512.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.maximize import maximize, unit_input_size
from lightning_cnnviz.core.maximization.objectives import UnitActivation
from lightning_cnnviz.core.maximization.parametrization import Parametrization
from lightning_cnnviz.core.maximization.regularization import robust
from lightning_cnnviz.core.network.hooks import Site, hooked

SIZE, PEER_SIZE = 224, 128
LAYERS = 4

Contender = Callable[[], None]


def ours(model: nn.Module, layer: str, features: Sequence[int], steps: int, size: int | None) -> None:
    """All features in batches; on the receptive field, or on images of a given size."""
    shape = unit_input_size(model, layer, (3, SIZE, SIZE), features) if size is None else (3, size, size)
    maximize(model, [UnitActivation(layer, feature) for feature in features], shape, starts=1, steps=steps)


def ours_by_one(model: nn.Module, layer: str, features: Sequence[int], steps: int) -> None:
    """One feature after the other."""
    for feature in features:
        maximize(model, UnitActivation(layer, feature), (3, PEER_SIZE, PEER_SIZE), starts=1, steps=steps)


def lucent(model: nn.Module, layer: str, features: Sequence[int], steps: int) -> None:
    """The peer itself, with its defaults; its names have underscores."""
    from lucent.optvis import objectives, render

    for feature in features:
        objective = objectives.neuron(layer.replace(".", "_"), feature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            render.render_vis(model, objective, thresholds=(steps,), show_image=False, progress=False)


def by_the_book(model: nn.Module, layer: str, features: Sequence[int], steps: int) -> None:
    """What lucent computes, written again."""
    made, transforms, site = Parametrization(), robust(PEER_SIZE), Site(model.get_submodule(layer))
    for feature in features:
        numbers = made.start([0], (3, PEER_SIZE, PEER_SIZE), torch.float32, torch.device("cpu")).requires_grad_()
        optimizer = torch.optim.Adam([numbers], lr=0.05)
        generator = torch.Generator().manual_seed(0)
        maps: dict[str, Tensor] = {}
        with hooked({"maps": site}, maps.__setitem__):
            for _ in range(steps):
                optimizer.zero_grad()
                images = transforms.apply(made.images(numbers, PEER_SIZE, PEER_SIZE), generator)
                model(F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=True))
                rows, columns = maps["maps"].shape[2:]
                (-maps["maps"][0, feature, rows // 2, columns // 2]).backward()
                optimizer.step()


def layers_of(model: nn.Module, count: int) -> list[tuple[str, int]]:
    """Some convolutions, from the first to the last, with their numbers of features."""
    convs = [(name, each.out_channels) for name, each in model.named_modules() if isinstance(each, nn.Conv2d)]
    return [convs[round(place * (len(convs) - 1) / max(1, count - 1))] for place in range(min(count, len(convs)))]


def compare(contenders: Mapping[str, Contender], repeats: int) -> dict[str, list[float]]:
    """Run all of them by turns, after a first turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_layer(model: nn.Module, layer: str, channels: int, options: argparse.Namespace) -> None:
    features = range(min(options.features, channels))
    contenders: dict[str, Contender] = {
        "ours": partial(ours, model, layer, features, options.steps, None),
        f"ours at {PEER_SIZE} px": partial(ours, model, layer, features, options.steps, PEER_SIZE),
        f"ours at {PEER_SIZE} px, one at a time": partial(ours_by_one, model, layer, features, options.steps),
        "by the book, one at a time": partial(by_the_book, model, layer, features, options.steps),
    }
    if not missing("torch-lucent"):
        contenders["lucent, one at a time"] = partial(lucent, model, layer, features, options.steps)
    side = unit_input_size(model, layer, (3, SIZE, SIZE), features)[1]
    print(f"\n{layer}: {len(features)} of {channels} features, {options.steps} steps; ours on {side} x {side} px")
    seconds = compare(contenders, options.repeats)
    reference = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        each = [1000 * value / (len(features) * options.steps) for value in values]
        ratio = statistics.median(values) / reference
        spread = f"{statistics.median(each):8.2f} ms ({min(each):.2f} to {max(each):.2f})"
        print(f"  {name:<34}{spread:<32}{ratio:6.1f}x")


def missing(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of maximize, all features of a layer.")
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18"], help="names in torchvision")
    parser.add_argument("--layers", nargs="+", default=None, help="names of layers; by default four convolutions")
    parser.add_argument("--features", type=int, default=8, help="how many features of each layer")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if min(options.features, options.steps, options.repeats) < 1:
        parser.error("features, steps and repeats are 1 or more")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})"
    print(
        f"torch {torch.__version__}, Python {platform.python_version()} on {machine}, {torch.get_num_threads()} threads"
    )
    print("milliseconds a feature and a step: median (lowest to highest), and ratio to ours")
    for name in options.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        print(f"\n{name}")
        chosen = layers_of(model, LAYERS)
        if options.layers is not None:
            chosen = [(layer, options.features) for layer in options.layers]
        for layer, channels in chosen:
            print_layer(model, layer, channels, options)


if __name__ == "__main__":
    main()
