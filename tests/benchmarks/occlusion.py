"""Time of `occlude`, against a plain loop over the positions.

    python tests/benchmarks/occlusion.py --models squeezenet1_0 resnet18

Networks have random weights and images are noise, both from a fixed seed: nothing is downloaded or written. Each image
is occluded at the default positions (144 at 224 x 224). By turns in one run stand:

- ours: all four maps, the projection of the strongest feature map included;
- one by one: a loop over the positions that covers the image and runs the network, and keeps p(class) alone;
- in batches: the same with as many positions a pass as ours.

The last column is the largest difference of p(class) from ours. The first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.network.memory import images_at_once


def ours(model: nn.Module, images: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """The library's."""
    return occlude(model, images).probabilities.flatten(1)


@torch.no_grad()
def loop(model: nn.Module, images: Tensor, boxes: Tensor, targets: Tensor, *, together: int) -> Tensor:
    """A plain loop over positions."""
    fill = images.mean((0, 2, 3)).view(3, 1, 1)
    rows = []
    for image, target in zip(images, targets.tolist(), strict=True):
        found = []
        for part in boxes.view(-1, 4).split(together):
            covered = image.repeat(len(part), 1, 1, 1)
            for number, (top, left, bottom, right) in enumerate(part.tolist()):
                covered[number, :, top:bottom, left:right] = fill
            found.append(model(covered).softmax(1)[:, target].cpu())
        rows.append(torch.cat(found))
    return torch.stack(rows)


def measure(name: str, options: argparse.Namespace) -> None:
    """Print one line a contender."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval().to(device)
    images = torch.randn(options.images, 3, options.size, options.size, device=device)
    together = images_at_once(model, images[:1])
    known = occlude(model, images)
    positions = known.boxes.shape[0] * known.boxes.shape[1]
    contenders = {
        "ours": ours,
        "one by one": partial(loop, together=1),
        f"in batches of {together}": partial(loop, together=together),
    }
    times: dict[str, list[float]] = {label: [] for label in contenders}
    difference = dict.fromkeys(contenders, 0.0)
    for _ in range(options.repeats + 1):
        for label, work in contenders.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            # What comes back lies on the CPU, so that the device is done.
            found = work(model, images, known.boxes, known.untouched.targets)
            times[label].append(time.perf_counter() - start)
            difference[label] = max(difference[label], float((found - known.probabilities.flatten(1)).abs().max()))
    print(f"\n{name}: {positions} positions on each of {len(images)} images of {options.size} x {options.size}")
    print(f"{'':24}{'s, median':>12}{'to ours: median':>18}{'lowest':>10}{'highest':>10}{'difference':>14}")
    for label, own in times.items():
        ratios = [other / mine for other, mine in zip(own[1:], times["ours"][1:], strict=True)]
        print(
            f"{label:24}{statistics.median(own[1:]):12.2f}{statistics.median(ratios):18.3f}{min(ratios):10.3f}"
            f"{max(ratios):10.3f}{difference[label]:14.1e}",
            flush=True,
        )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18"], metavar="NAME")
    parser.add_argument("--images", type=int, default=2)
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
