"""Time and memory of `mine_top_patches`, against the plain pass, a naive top-k, and zennit-crp.

    python tests/benchmarks/mining.py --models alexnet vgg16 resnet18 --images 256 --memory

Networks have random weights and images are noise, both from a fixed seed: nothing is downloaded, and nothing but
standard output is written. Everything runs on the CPU.

Time. Before a contender is given a batch, the plain pass over it is made and timed: every batch has two times from the
same moment. Everything is repeated, and of each batch the fastest of its repeats counts, plain and not: a machine that
others use, too, is now fast and now slow, and what is in question is the work, not the machine. The ratio is that of
the sums over all batches. Batches lie ready in memory: loading, which would flatter every ratio, costs nothing. The
parts of ours are timed inside the very passes that give its ratio, each in its fastest repeat; the timers cost about a
microsecond a call. The last column says how many places of the lists (feature map, rank) hold the same image as ours.

Memory. Each figure is from a process of its own, and images are made when asked for, so that they take none. It reads
VmHWM and not ru_maxrss, which a process inherits from the one that started it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib
import importlib.metadata
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_cnnviz.core.network.hooks import Site, hooked
from lightning_cnnviz.core.top_patches import mining
from lightning_cnnviz.core.top_patches._lists import RunningLists
from lightning_cnnviz.core.top_patches._units import Units
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import RankBy
from lightning_cnnviz.core.top_patches.search import mine_top_patches

K = 9
SIZE = 224
CLASSES = 1000
# As in ImageNet's validation set, read folder by folder. zennit-crp works class by class: shuffled labels slow it down.
IMAGES_A_CLASS = 50
# Growth is read from small images through a small network, at each of these numbers of images.
SMALL = 32
SMALL_BATCH = 250
MARKS = range(20_000, 60_001, 1_000)
STEP = 10_000
GROWTH_LIMIT = 1.0  # MB in 10,000 images
MB = 1e6

Batches = Sequence[Tensor]
TIMED = (
    (mining._Watch, "__call__", "in our hooks"),
    (mining, "trace_feature_maps", "tracing the receptive fields, once"),
    (RunningLists, "take", "ranking and cutting patches, behind each pass"),
    (PatchMiner, "merge", "in merge"),
    (PatchMiner, "compute", "in compute"),
)


@dataclass(frozen=True)
class Outcome:
    """What a contender has found: the images of each layer's lists `(C, k)`, and the seconds spent in its parts."""

    images: Callable[[], dict[str, Tensor]]
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One timed run: seconds of each batch, and of the plain pass over it right before.

    Attributes:
        seconds: A number a batch, and last what is left: what comes before the first batch and after the last.
        plain: A number a batch, and a last 0.
        parts: By name, seconds of the whole run.
    """

    seconds: Sequence[float]
    plain: Sequence[float]
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """All runs of one set of contenders over the same images."""

    images: int
    runs: dict[str, list[Run]]
    agreement: dict[str, float]


Contender = Callable[[Iterable[Tensor]], Outcome]


# The contenders


@torch.no_grad()
def plain_pass(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run the network and look at nothing."""
    for images in batches:
        model(images)


def ours(model: nn.Module, batches: Iterable[Tensor], rank_by: RankBy = "max") -> Outcome:
    """Mine as a user does, with the features whose patches are kept by default."""
    with stopwatch() as parts:
        found = mine_top_patches(model, batches, "conv", K, rank_by=rank_by)
    return Outcome(lambda: {layer.layer: layer.images for layer in found}, parts)


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Add up the seconds spent in the parts of the miner. On the CPU what a hook calls is done when it returns."""
    seconds = {label: 0.0 for _, _, label in TIMED}

    def clocked(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[label] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for owner, name, label in TIMED:
            stack.enter_context(mock.patch.object(owner, name, clocked(getattr(owner, name), label)))
        yield seconds


class NaiveTopK:
    """The obvious way: each map's maximum and where it is, then the top k of these and of the best so far.

    It does less than ours: no receptive fields, no patches, no rule for ties. It reads convolutions and not what
    follows them, which in a network with fresh BatchNorms ranks the same.
    """

    def __init__(self) -> None:
        self.indices = torch.empty(0, dtype=torch.int64)
        self.best: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def observe(self, layer: str, maps: Tensor) -> None:
        """Take feature maps `(N, C, H, W)` of the batch that has `indices`."""
        values, positions = maps.flatten(2).max(-1)
        found = (values.T, self.indices[:, None].expand_as(values).T, positions.T)
        if layer in self.best:
            old_values, old_images, old_positions = self.best[layer]
            found = (
                torch.cat([old_values, found[0]], 1),
                torch.cat([old_images, found[1]], 1),
                torch.cat([old_positions, found[2]], 1),
            )
        strongest, order = found[0].topk(min(K, found[0].shape[1]), dim=1)
        self.best[layer] = (strongest, found[1].gather(1, order), found[2].gather(1, order))


@torch.no_grad()
def naive(model: nn.Module, batches: Iterable[Tensor]) -> Outcome:
    """Run the network with a `NaiveTopK` on every convolution."""
    top = NaiveTopK()
    sites = {name: Site(module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    seen = 0
    with hooked(sites, top.observe):
        for images in batches:
            top.indices = torch.arange(seen, seen + len(images))
            model(images)
            seen += len(images)
    return Outcome(lambda: {layer: images for layer, (_, images, _) in top.best.items()})


class Crp:
    """zennit-crp, ranking as ours does: by the strongest unit, of the same layers.

    Args:
        name: The network's name in torchvision, for the canonizer that it needs.
        model: The network; a copy of it is used, since zennit-crp switches off its gradients.
        folder: Where its files may lie.
    """

    def __init__(self, name: str, model: nn.Module, folder: str) -> None:
        from crp.attribution import CondAttribution
        from zennit.canonizers import SequentialMergeBatchNorm
        from zennit.composites import EpsilonPlusFlat
        from zennit.torchvision import ResNetCanonizer

        self._folder = folder
        self._attribution = CondAttribution(copy.deepcopy(model))
        canonizer = ResNetCanonizer() if name.startswith("resnet") else SequentialMergeBatchNorm()
        self._composite = EpsilonPlusFlat([canonizer])

    def documented(self, batches: Iterable[Tensor]) -> Outcome:
        """Do what its README says: a pass and a relevance pass, ranking and class statistics of both, and files."""
        batches = list(batches)  # it asks for images one by one
        visualization = self._visualization(batches)
        count = sum(map(len, batches))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            visualization.run(self._composite, 0, count, batch_size=len(batches[0]))
        return Outcome(partial(self._from_files, visualization))

    @torch.no_grad()
    def activations_only(self, batches: Iterable[Tensor]) -> Outcome:
        """Run its forward hooks in a plain pass, which it does not offer: the fairest comparison there is."""
        from crp.hooks import FeatVisHook
        from zennit.composites import NameMapComposite

        batches = list(batches)
        visualization = self._visualization(batches)
        now: dict[str, Any] = {}
        hooks = [
            ([layer], FeatVisHook(visualization, concept, layer, now, None))
            for layer, concept in visualization.layer_map.items()
        ]
        seen = 0
        with NameMapComposite(hooks).context(self._attribution.model) as model:
            for images in batches:
                numbers = torch.arange(seen, seen + len(images)).numpy()
                now.update(sample_indices=numbers, targets=numbers // IMAGES_A_CLASS % CLASSES)
                model(images)
                seen += len(images)
        best = visualization.ActMax.d_c_sorted
        return Outcome(lambda: {layer: images[:K].T for layer, images in best.items()})

    def _visualization(self, batches: Batches) -> Any:
        from crp.concepts import ChannelConcept
        from crp.helper import get_layer_names
        from crp.visualization import FeatureVisualization

        pictures = [image for images in batches for image in images]
        data = [(image, number // IMAGES_A_CLASS % CLASSES) for number, image in enumerate(pictures)]
        concept = ChannelConcept()
        layers = dict.fromkeys(get_layer_names(self._attribution.model, [nn.Conv2d]), concept)
        path = tempfile.mkdtemp(dir=self._folder)
        return FeatureVisualization(self._attribution, data, layers, max_target="max", abs_norm=False, path=path)

    @staticmethod
    def _from_files(visualization: Any) -> dict[str, Tensor]:
        from crp.helper import load_maximization

        path = visualization.ActMax.PATH
        return {layer: torch.tensor(load_maximization(path, layer)[0][:K].T) for layer in visualization.layer_map}


# Time


class Paired:
    """Batches, each with a plain pass over it before it is handed out; both are timed.

    A contender's hooks see the plain pass, too: ours are idle between two batches, at microseconds a layer.

    Args:
        plain: The network, which none of a contender's hooks is on.
        batches: The batches.
    """

    def __init__(self, plain: nn.Module, batches: Batches) -> None:
        self._plain, self._batches = plain, batches
        self.plain: list[float] = []
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        for images in self._batches:
            start = time.perf_counter()
            plain_pass(self._plain, [images])
            handed_out = time.perf_counter()
            self.plain.append(handed_out - start)
            yield images
            self.seconds.append(time.perf_counter() - handed_out)


def compare(model: nn.Module, batches: Batches, contenders: Mapping[str, Contender], repeats: int) -> Comparison:
    """Time the contenders by turns, a plain pass before each of their batches; first all of them once to warm up."""
    expected = ours(model, batches).images()
    plain = copy.deepcopy(model)
    for contender in contenders.values():
        contender(batches[:2])
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    agreement = {}
    for _ in range(repeats):
        for name, contender in contenders.items():
            paired = Paired(plain, batches)
            gc.collect()
            start = time.perf_counter()
            outcome = contender(paired)
            rest = time.perf_counter() - start - sum(paired.plain) - sum(paired.seconds)
            runs[name].append(Run([*paired.seconds, rest], [*paired.plain, 0.0], outcome.parts))
            agreement[name] = same_images(outcome.images(), expected)
    return Comparison(sum(map(len, batches)), runs, agreement)


def fastest(repeats: Iterable[Sequence[float]]) -> float:
    """Return the sum over batches of the fastest of their repeats."""
    return sum(min(times) for times in zip(*repeats, strict=True))


def same_images(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The part, 0 to 1, of the places of all lists that hold the same image."""
    same = torch.cat([(found[layer] == images).flatten() for layer, images in expected.items()])
    return float(same.float().mean())


def print_times(comparison: Comparison) -> None:
    """Print a row for each contender, and for each part of it."""
    for name, runs in comparison.runs.items():
        plain, taken = fastest(run.plain for run in runs), fastest(run.seconds for run in runs)
        each = ", ".join(f"{sum(run.seconds) / sum(run.plain):.3f}" for run in runs)
        print_row(f"plain pass, {comparison.images} images", f"{plain:.3f} s")
        print_row(
            name, f"{taken:.3f} s", f"{taken / plain:.3f}x (whole runs: {each})", f"{comparison.agreement[name]:.1%}"
        )
        for part in runs[0].parts:
            part_taken = min(run.parts[part] for run in runs)
            print_row(f"    {part}", f"{part_taken:.3f} s", f"{100 * part_taken / plain:.2f} %")


def print_row(name: str, taken: str, ratio: str = "", same: str = "") -> None:
    print(f"{name:<50} {taken:<12} {ratio:<44} {same}".rstrip())


def print_time_table(name: str, model: nn.Module, options: argparse.Namespace) -> None:
    """Time one network; the peers over fewer images, with plain passes over these same ones."""
    images = torch.rand(options.images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(options.seed))
    batches = images.split(options.batch)
    print_row("each batch's fastest of all repeats", "time", "of the plain pass", "images as ours")
    contenders: dict[str, Contender] = {
        f"ours: mine_top_patches, k={K}": partial(ours, model),
        'ours, rank_by="mean"': partial(ours, model, rank_by="mean"),
        "naive": partial(naive, model),
    }
    print_times(compare(model, batches, contenders, options.repeats))
    missing = peer_missing() if options.peers else "--no-peers"
    if missing:
        print(f"zennit-crp: skipped ({missing})")
        return
    # It cannot take a last batch of one image: whole batches only.
    count = min(options.images, options.peer_images)
    batches = images[: count - count % options.batch if count > options.batch else count].split(options.batch)
    with tempfile.TemporaryDirectory() as folder:
        crp = Crp(name, model, folder)
        contenders = {
            "zennit-crp as documented": crp.documented,
            "zennit-crp, no relevance pass, no files": crp.activations_only,
        }
        print_times(compare(model, batches, contenders, options.repeats))


def peer_missing() -> str:
    """Say why zennit-crp cannot run; nothing if it can."""
    try:
        importlib.import_module("crp.visualization")
        importlib.import_module("zennit.torchvision")
    except ImportError as error:
        return str(error)
    return ""


# Memory


class LazyImages(Dataset[Tensor]):
    """Noise images `(3, size, size)`, each made from its own seed when it is asked for."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size, self._seed = count, size, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 2**32 + index)
        return torch.rand(3, self._size, self._size, generator=generator)


def resident(key: str) -> float:
    """This process's resident memory in MB: "VmRSS" now, "VmHWM" at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"the system does not tell {key}")


def return_free_memory() -> None:
    """Let go of what is free: otherwise the allocator's moods, of several MB, drown what is to be seen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this file in a new interpreter, with as many threads as here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, torch.get_num_threads()).result()
        return pool.submit(function, *arguments).result()


def peak(name: str | None, mined: bool, count: int, batch: int, seed: int) -> float:
    """Run a network, mined or plain, over `count` images, and return this process's peak in MB."""
    loader = DataLoader(LazyImages(count, SIZE, seed), batch_size=batch)
    pass_over(network(name, seed), mined, loader)
    return resident("VmHWM")


def growth(mined: bool, seed: int) -> list[float]:
    """Run a small network, mined or plain, and return resident MB at MARKS."""
    loader = DataLoader(LazyImages(MARKS[-1], SMALL, seed), batch_size=SMALL_BATCH)
    marks: list[float] = []

    def watched(batches: Iterable[Any]) -> Iterator[Any]:
        for number, images in enumerate(batches, start=1):
            yield images
            if number * SMALL_BATCH in MARKS:
                del images
                return_free_memory()
                marks.append(resident("VmRSS"))

    pass_over(network(None, seed), mined, loader, watched)
    return marks


def pass_over(
    model: nn.Module,
    mined: bool,
    loader: Iterable[Tensor],
    watched: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Run a network over a loader that may be larger than memory, plain or mined."""
    if mined:
        mine_top_patches(model, loader, "conv", K, progress=watched)
        return
    with torch.no_grad():
        for images in watched(loader):
            model(images)


def network(name: str | None, seed: int) -> nn.Module:
    """A torchvision network, or a small one for small images, with random weights, in eval mode."""
    torch.manual_seed(seed)
    if name is not None:
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model.eval()
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
    ).eval()


def print_peaks(name: str, options: argparse.Namespace) -> None:
    """Print peak resident memory over N and 4N images."""
    for count in (options.images, 4 * options.images):
        plain, mined = (
            in_fresh_process(peak, name, mined, count, options.batch, options.seed) for mined in (False, True)
        )
        print(
            f"peak memory, {count:>6,} images: plain {plain:8.1f} MB, ours {mined:8.1f} MB, "
            f"difference {mined - plain:+.1f} MB"
        )


def print_growth(seed: int) -> None:
    """Print how memory grows with the number of images, once the lists are filled, and the size of the state."""
    print(f"\nGrowth: a network of two convolutions, {SMALL} x {SMALL} images in batches of {SMALL_BATCH}")
    windows = [f"{last - STEP:,}-{last:,}" for last in MARKS if last >= MARKS[0] + STEP and last % STEP == 0]
    print(f"{'MB, mean over images':<22}" + "".join(f"{window:>15}" for window in windows) + f"   growth in {STEP:,}")
    plain, mined = (in_fresh_process(growth, mined, seed) for mined in (False, True))
    print_grown("plain, resident", plain)
    grown = print_grown("ours, resident", mined)
    verdict = "met" if grown < GROWTH_LIMIT else "NOT met"
    print(f"Aim: ours, resident, grows by less than {GROWTH_LIMIT:g} MB in {STEP:,} images: {verdict}")
    taken = sum(part.numel() * part.element_size() for part in Units.none(1, K))
    print(f"State of the lists: {taken / K:g} bytes a kept unit")


def print_grown(name: str, values: Sequence[float]) -> float:
    """Print the mean of each STEP images, and return the growth in STEP images: of a line fitted to the values.

    Resident memory goes up and down by a batch or so; two single values would show that.
    """
    count = STEP // MARKS.step
    means = [statistics.fmean(values[i + 1 : i + 1 + count]) for i in range(0, len(values) - 1, count)]
    grown = STEP * statistics.linear_regression(MARKS, values).slope
    print(f"{name:<22}" + "".join(f"{mean:>15.2f}" for mean in means) + f"   {grown:+.2f}")
    return grown


# The command line


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of mine_top_patches.")
    parser.add_argument("--models", nargs="+", default=["alexnet", "vgg16", "resnet18"], help="names in torchvision")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="zennit-crp, if installed")
    parser.add_argument("--peer-images", type=int, default=64, help="over how many images the peers run, at most")
    parser.add_argument("--memory", action="store_true", help="measure memory, too (Linux)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.images, options.peer_images) < K or min(options.batch, options.repeats) < 1:
        parser.error(f"it takes at least {K} images, to fill the lists, and one repeat of batches of one")
    return options


def print_environment(options: argparse.Namespace) -> None:
    packages = ("lightning_cnnviz", "torch", "torchvision", "torchmetrics", "zennit", "zennit-crp")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    load = f" (load {os.getloadavg()[0]:.1f})" if hasattr(os, "getloadavg") else ""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{load}"
    settings = f"{torch.get_num_threads()} threads, float32, seed {options.seed}, {options.repeats} repeats"
    print(f"Python {platform.python_version()} on {machine}, {settings}")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    options = parse()
    print_environment(options)
    for name in options.models:
        model = network(name, options.seed)
        maps = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        print(
            f"\n{name}: {len(maps)} convolutions, {sum(maps):,} feature maps; "
            f"{SIZE} x {SIZE} images in batches of {options.batch}"
        )
        print_time_table(name, model, options)
        if options.memory:
            print_peaks(name, options)
    if options.memory:
        print_growth(options.seed)


if __name__ == "__main__":
    main()
