"""Time of projecting units to pixels, against captum's NeuronDeconvolution called unit by unit.

    python tests/benchmarks/projection.py --models alexnet resnet18 --units 64 --peer-units 8

Networks have random weights and images are noise, both from a fixed seed. Units are spread over feature maps, positions
and images; ours takes all units of a layer in one call (forward passes of their images included, activations known, as
mining leaves them), captum one unit a call, as its users must. The ratio is of milliseconds a unit, in one run; the
last column is the largest difference of the two projections, relative to the largest pixel.
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

from lightning_cnnviz.core.deconvnet import Unit, project

SIZE = 224
LAYERS = {
    "alexnet": ["features.0", "features.3", "features.6", "features.8", "features.10"],
    "vgg16": ["features.0", "features.7", "features.14", "features.28"],
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
    print(f"{'layer':14}{'ours, ms a unit':>18}{'captum, ms a unit':>20}{'ratio':>10}{'largest difference':>22}")
    generator = torch.Generator().manual_seed(options.seed)
    for layer in LAYERS[name]:
        shape: list[int] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda *call, into=shape: into.extend(call[2].shape))
        with torch.no_grad():
            model(images[:1])
        handle.remove()
        units = units_of(layer, (shape[1], shape[2], shape[3]), options.units, options.images, generator)
        times = []
        for _ in range(options.repeats + 1):
            start = time.perf_counter()
            found = project(model, images, units)
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
        print(f"{layer:14}{ours:18.3f}{captum:20.2f}{captum / ours:9.1f}x{max(differences):22.1e}", flush=True)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(LAYERS), default=["alexnet", "resnet18"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--units", type=int, default=144)
    parser.add_argument("--peer-units", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, seed {options.seed}")
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
