"""What 60 looks at mined patches add to a record, and what adding and reading them costs.

    python tests/benchmarks/record_growth.py

Five layers with 16 feature maps shown of 64 to 512, nine patches each, of 500 synthetic photographs of 224 pixels
(noise with about the spectrum of photographs, and their size and error as JPEG), from a fixed seed. Receptive
fields have 11, 27, 67, 131 and 224 pixels a side, clipped at the image's edge. From look to look a share of the patches
changes: 60 % after the first, 60 / n % after the n-th, at least 5 %; all activations change.

- bytes, files: what the look adds.
- add: seconds of `Record.add`, waiting for the disk as in training.
- open, result: seconds until another process has opened the record, and has read the newest look with its patches.
- memory: growth of this process's resident set since the first look, in MB.
- error: of the patches that are cut from stored images, against those that the network was given, in levels of 255.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, SourceImage, TopPatches
from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.views import Seen

SIDE, FEATURES, K = 224, 16, 9
LAYERS = {11: 64, 27: 192, 67: 384, 131: 256, 224: 512}  # by the side of receptive fields, channels
NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "given")


def photographs(count: int) -> Tensor:
    """Noise whose amplitude falls with frequency, in 8 bits, `(count, 3, SIDE, SIDE)`."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None]
    fall = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / SIDE) ** 1.3
    noise = torch.fft.rfft2(torch.randn(count, 3, SIDE, SIDE, generator=generator)) * fall
    shared = noise[:, :1] + noise * 0.1  # colors of photographs are near gray
    values = torch.fft.irfft2(shared, s=(SIDE, SIDE))
    values = values / values.std((1, 2, 3), keepdim=True) * 0.22 + 0.45
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


class Mining:
    """Looks of a training: the images and boxes of patches change less and less."""

    def __init__(self, images: Tensor) -> None:
        self.images = _given(images)
        self.generator = torch.Generator().manual_seed(1)
        self.epoch = 0
        self.units = {side: self._units(channels) for side, channels in LAYERS.items()}

    def look(self) -> Seen:
        """Take the next look."""
        share = 1.0 if self.epoch == 0 else max(0.05, 0.6 / self.epoch)
        self.epoch += 1
        for side, channels in LAYERS.items():
            changes = torch.rand(channels, K, generator=self.generator) < share
            self.units[side] = torch.where(changes[..., None], self._units(channels), self.units[side])
        layers = tuple(self._layer(side) for side in LAYERS)
        result = TopPatches(layers=layers, k=K)
        sources = tuple(SourceImage.of(index, self.images[index]) for index in result.shown_images())
        result = TopPatches(layers=layers, k=K, sources=sources)
        return Seen(result=result, display=Display(normalization=NORMALIZATION), epoch=self.epoch)

    def _units(self, channels: int) -> Tensor:
        """Image, and center of the receptive field."""
        image = torch.randint(len(self.images), (channels, K, 1), generator=self.generator)
        return torch.cat([image, torch.randint(SIDE, (channels, K, 2), generator=self.generator)], -1)

    def _layer(self, side: int) -> LayerTopPatches:
        images, centers = self.units[side][..., 0], self.units[side][..., 1:]
        centers = torch.full_like(centers, SIDE // 2) if side >= SIDE else centers
        corner = centers - side // 2
        boxes = torch.cat([corner.clamp_min(0), (corner + side).clamp_max(SIDE)], -1)
        activations = torch.rand(images.shape, generator=self.generator).sort(descending=True).values
        patches = tuple(
            tuple(
                self.images[image, :, top:bottom, left:right].clone()
                for image, (top, left, bottom, right) in zip(images[f].tolist(), boxes[f].tolist(), strict=True)
            )
            for f in range(FEATURES)
        )
        return LayerTopPatches(
            layer=f"layer{side}",
            scores=activations,
            activations=activations,
            images=images,
            labels=images % 100,
            rows=centers[..., 0],
            columns=centers[..., 1],
            boxes=boxes,
            maxima=activations[:, 0],
            features=tuple(range(FEATURES)),
            patches=patches,
        )


def _given(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (NORMALIZATION.mean, NORMALIZATION.std))
    return (images.float() / 255 - mean) / std


def resident() -> float:
    """This process's resident set, in MB; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


def jpeg_error(given: TopPatches, read: TopPatches) -> tuple[float, float, float]:
    """Mean of absolute errors of large patches in levels, their 99th percentile, and the largest of small patches."""
    std = torch.tensor(NORMALIZATION.std).view(3, 1, 1)
    large: list[Tensor] = []
    small = [torch.zeros(1)]
    for one, other in zip(given.all_patches(), read.all_patches(), strict=True):
        error = (one - other).mul(std).abs().mul(255).flatten()
        (large if max(one.shape[1:]) > 32 else small).append(error)
    every = torch.cat(large).sort().values
    return float(every.mean()), float(every[int(0.99 * len(every))]), float(torch.cat(small).max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=60)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mining = Mining(photographs(options.images))
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.images} images, seeds 0 and 1")
    print(f"{'look':>4} {'kB':>8} {'files':>6} {'add s':>7} {'open s':>7} {'result s':>8} {'memory MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        record, before, files = Record(folder), 0.0, 0
        for number in range(1, options.looks + 1):
            seen = mining.look()
            start = time.perf_counter()
            look = record.add(LookIdentity(view="top_patches", run="r", epoch=number, global_step=number), seen)
            took = time.perf_counter() - start
            before = before or resident()
            line = f"{number:4} {look.bytes / 1e3:8.1f} {_files(folder) - files:6} {took:7.3f}"
            files = _files(folder)
            if number in (1, 2, 3, 5, 10, 20, 40, options.looks):
                print(f"{line} {_reading(folder)} {resident() - before:9.1f}", flush=True)
        total = record.size()
        mean, high, small = jpeg_error(seen.result, record.looks()[-1].result)
        print(f"total: {total / 1e6:.1f} MB, of which images {_bytes_of(folder, 'images') / 1e6:.1f} MB, ")
        print(f"error of large patches: mean {mean:.2f}, 99 % below {high:.1f} levels; of small ones {small:.2g}")


def _reading(folder: str) -> str:
    start = time.perf_counter()
    other = Record(folder)
    looks = other.looks()
    opened = time.perf_counter()
    _ = looks[-1].result
    return f"{opened - start:7.3f} {time.perf_counter() - opened:8.3f}"


def _files(folder: str) -> int:
    return sum(file.is_file() for file in Path(folder).rglob("*"))


def _bytes_of(folder: str, part: str) -> int:
    return sum(file.stat().st_size for file in (Path(folder) / part).iterdir())


if __name__ == "__main__":
    main()
