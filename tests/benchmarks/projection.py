"""Time of projecting units to pixels, against captum's NeuronDeconvolution called unit by unit.

    python tests/benchmarks/projection.py --models alexnet resnet18 --units 144 --peer-units 8
    python tests/benchmarks/projection.py --models alexnet --whole 1000

Networks have random weights and images are noise, both from a fixed seed. Units are spread over feature maps, positions
and images; ours takes all units of a layer in one call (forward passes of their images included, activations known, as
mining leaves them), captum one unit a call, as its users must. What ours learns of a network once, with one image, has
a line of its own. The ratio is of milliseconds a unit, in one run; the last column is the largest difference of the two
projections, relative to the largest pixel.

`--whole N` projects the nine strongest units of every feature map of every convolution over N images: mining is
included in ours, and not in captum's, whose time is that of its units above times their number. `--every M` takes every
M-th feature map alone: with N / M images, as many units an image as the whole network has with N.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings

import torch
import torchvision
from captum.attr import NeuronDeconvolution
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Projector, Unit
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps

SIZE = 224
K = 9
LAYERS: dict[str, str | list[str]] = {
    "alexnet": "conv",
    "vgg16": "conv",
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "squeezenet1_0": ["features.0", "features.5", "features.9", "features.12"],
}


def units_of(
    layer: str, shape: tuple[int, int, int], count: int, images: int, generator: torch.Generator
) -> list[Unit]:
    """Units anywhere in a layer; their activations are taken as one."""
    places = [torch.randint(size, (count,), generator=generator).tolist() for size in shape]
    return [Unit(number % images, layer, *place, 1.0) for number, place in enumerate(zip(*places, strict=True))]


def captum_projection(peer: NeuronDeconvolution, image: Tensor, unit: Unit) -> Tensor:
    """One unit as captum's users project it."""
    found: Tensor = peer.attribute(image[None], (unit.channel, unit.row, unit.column))
    return found[0].detach()


def measure(name: str, options: argparse.Namespace) -> None:
    """Print one line a layer."""
    torch.manual_seed(options.seed)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    images = torch.randn(options.images, 3, SIZE, SIZE)
    theirs = copy.deepcopy(model)
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks do not work in place
    print(f"\n{name}: {options.units} units a layer on {options.images} images of {SIZE} x {SIZE}")
    layers = select_layers(model, LAYERS[name])
    shapes = {maps.layer: maps.shape for maps in trace_feature_maps(model, images[:1], layers)}
    start = time.perf_counter()
    projector = Projector(model, layers)
    projector.check(images[:1])
    print(f"learned once: {(time.perf_counter() - start) * 1e3:.0f} ms")
    columns = ("field, px", "ours, ms a unit", "captum, ms a unit", "ratio", "largest difference")
    print(f"{'layer':14}{columns[0]:>12}{columns[1]:>18}{columns[2]:>20}{columns[3]:>10}{columns[4]:>22}")
    generator = torch.Generator().manual_seed(options.seed)
    totals = [0.0, 0.0]
    for layer, shape in shapes.items():
        units = units_of(layer, shape, options.units, options.images, generator)
        times = []
        for _ in range(options.repeats + 1):
            start = time.perf_counter()
            found = projector.project(images, units)
            times.append((time.perf_counter() - start) / len(units) * 1e3)
        ours = statistics.median(times[1:])  # the first warms up
        peer, peer_times, differences = NeuronDeconvolution(theirs, theirs.get_submodule(layer)), [], []
        for number, unit in enumerate(units[: options.peer_units + 1]):
            start = time.perf_counter()
            expected = captum_projection(peer, images[unit.image], unit)
            if number:
                peer_times.append((time.perf_counter() - start) * 1e3)
            scale = float(expected.abs().max()) or 1.0
            differences.append(float((found.on_image(number) - expected).abs().max()) / scale)
        captum = statistics.median(peer_times)
        field = int((found.boxes[:, 2] - found.boxes[:, 0]).max())
        for place, cost in enumerate((ours, captum)):
            totals[place] += K * shape[0] * cost / 1e3
        difference = max(differences)
        print(f"{layer:14}{field:12}{ours:18.3f}{captum:20.2f}{captum / ours:9.1f}x{difference:22.1e}", flush=True)
    ours, captum = totals
    print(f"{K} units of every feature map, at that rate: {ours:.0f} s, {captum:.0f} s, {captum / ours:.1f}x")
    if options.whole:
        measure_whole(model, options.whole, options.every, captum / options.every)


def measure_whole(model: nn.Module, count: int, every: int, captum: float) -> None:
    """Mine, and project all feature maps of all convolutions, or every so many."""
    batches = [torch.randn(min(32, count - at), 3, SIZE, SIZE) for at in range(0, count, 32)]
    images = [image for batch in batches for image in batch]
    start = time.perf_counter()
    found = mine_top_patches(model, batches, k=K, features=[0])
    mined = time.perf_counter() - start
    units = [
        Unit(int(image), layer.layer, feature, int(row), int(column), float(activation))
        for layer in found
        for feature in range(0, len(layer.images), every)
        for image, row, column, activation in zip(
            layer.images[feature], layer.rows[feature], layer.columns[feature], layer.activations[feature], strict=True
        )
    ]
    start = time.perf_counter()
    Projector(model, select_layers(model, "conv")).project(images, units)
    projected = time.perf_counter() - start
    print(
        f"whole network, {len(units):,} units of {count:,} images: mining {mined:.1f} s, projecting {projected:.1f} s, "
        f"together {mined + projected:.1f} s; captum {captum:.0f} s: {captum / (mined + projected):.1f}x"
    )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(LAYERS), default=["alexnet", "resnet18"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--units", type=int, default=144)
    parser.add_argument("--peer-units", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", type=int, default=0, metavar="N", help="project everything over N images, too")
    parser.add_argument("--every", type=int, default=1, metavar="M", help="of these, every M-th feature map alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, seed {options.seed}")
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
