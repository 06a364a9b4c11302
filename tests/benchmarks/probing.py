"""Time, accuracy and memory of linear probes, against scikit-learn's LinearSVC and LogisticRegression.

    python tests/benchmarks/probing.py --memory --online

Features are rectified mixtures of a few hidden directions, of classes that overlap, from a fixed seed; they are
centered and scaled the same for both. Everything runs on the CPU, with as many threads as OMP_NUM_THREADS says;
liblinear, behind LinearSVC, has one anyway. Ours includes its Gram matrix in every single fit.

One fit: of all training images at C = 1, with the objective at the end (of the SVM the sum over its classes, as both
minimize it) and the accuracy on test images. scikit-learn runs at its default tolerance.

The protocol: splits x 2 heads x 3 C, C chosen on a fifth of each split's training images, then fitted again on all of
them. Ours runs whole. scikit-learn's time is that of its fits above times their number, by the number of images and not
by C, which flatters it where C is large; `--whole-peer` runs all of its fits instead.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sklearn
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.online_passes import OnlineLearner
from lightning_cnnviz.core.probing.probe import gram_matrix, probe
from lightning_cnnviz.core.probing.protocols import Protocol, draw_splits
from lightning_cnnviz.core.probing.solvers import HEADS, Head, fit_features, fit_gram
from lightning_cnnviz.core.probing.tap import tap_features

GB = 1e9
TEST_PER_CLASS = 10


def problem(per_class: int, size: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features `(N, D)` float32 and labels, class by class in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(per_class * classes) % classes
    rank = 128
    points = 0.25 * torch.randn(classes, rank, generator=generator)[labels]
    points = points + torch.randn(len(labels), rank, generator=generator)
    mixed = points @ torch.randn(rank, size, generator=generator)
    mixed += 4 * torch.randn(len(labels), size, generator=generator)
    return mixed.clamp_(min=0), labels


def objective(weights: Tensor, intercept: Tensor, features: Tensor, labels: Tensor, head: Head) -> float:
    """What scikit-learn minimizes at C = 1, in float64."""
    scores = features.double() @ weights + intercept
    if head == "softmax":
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
        return float(0.5 * weights.square().sum() + loss)
    signs = torch.nn.functional.one_hot(labels, scores.shape[1]) * 2 - 1
    losses = (1 - signs * scores).clamp(min=0).square().sum()
    return float(0.5 * (weights.square().sum() + intercept.square().sum()) + losses)


def peer(head: Head, strength: float = 1.0) -> Any:
    """scikit-learn's model, with enough iterations."""
    return LinearSVC(C=strength) if head == "svm" else LogisticRegression(C=strength, max_iter=1000)


def measure_fit(options: argparse.Namespace, size: int, head: Head) -> float:
    """Print both contenders' time, objective and accuracy of one fit; return scikit-learn's seconds."""
    features, labels = problem(options.per_class + TEST_PER_CLASS, size, options.classes, options.seed)
    count = options.per_class * options.classes
    mean = features[:count].mean(0)
    features -= mean
    features /= features[:count].square().sum(1).mean().sqrt()
    train, test, own, wanted = features[:count], features[count:], labels[:count], labels[count:]
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        if size > count:
            gram = gram_matrix(train.split(4096, 1)).float()
            found = fit_gram(gram, own, options.classes, head=head)
        else:
            found = fit_features(train, own, options.classes, head=head)
        times.append(time.perf_counter() - start)
    ours = statistics.median(times)
    weights = train.T.double() @ found.weights.double() if size > count else found.weights.double()
    reached = objective(weights, found.intercept.double(), train, own, head)
    right = (test.double() @ weights + found.intercept).argmax(1) == wanted
    start = time.perf_counter()
    model = peer(head).fit(train.numpy(), own.numpy())
    theirs = time.perf_counter() - start
    reached_there = objective(torch.tensor(model.coef_.T).double(), torch.tensor(model.intercept_), train, own, head)
    right_there = torch.tensor(model.predict(test.numpy())) == wanted
    shares = [100 * float(part.double().mean()) for part in (right, right_there)]
    print(
        f"{head:8}{count:7,}{size:8,}{ours:10.2f}{theirs:14.2f}{theirs / ours:8.1f}x"
        f"{reached:14.4f}{reached_there:14.4f}{shares[0]:9.2f}{shares[1]:9.2f}",
        flush=True,
    )
    return theirs


def measure_protocol(options: argparse.Namespace, seconds: dict[Head, float]) -> None:
    """Print both contenders' time of the whole protocol."""
    size, classes = options.size, options.classes
    features, labels = problem(options.per_class + TEST_PER_CLASS, size, classes, options.seed)
    protocol = Protocol(per_class=options.per_class, splits=options.splits)
    start = time.perf_counter()
    found = probe(features, labels, protocol)
    ours = time.perf_counter() - start
    manifest = draw_splits(labels, protocol)
    fits = {"choice": len(manifest.splits) * len(protocol.Cs), "final": len(manifest.splits)}
    share = len(manifest.splits[0].fit) / len(manifest.splits[0].train)
    if options.whole_peer:
        theirs, accuracy = whole_peer(features, labels, protocol)
        how = "measured"
    else:
        theirs, accuracy = sum((share * fits["choice"] + fits["final"]) * one for one in seconds.values()), {}
        how = "EXTRAPOLATED from one fit a head at C = 1"
    print(
        f"\nprotocol, {options.splits} splits x {len(HEADS)} heads x {len(protocol.Cs)} C, {size:,} features: "
        f"ours {ours:.1f} s, scikit-learn {theirs:.1f} s ({how}): {theirs / ours:.1f}x"
    )
    for head in HEADS:
        there = f", scikit-learn {accuracy[head]:.2f} %" if head in accuracy else ""
        print(f"  {head}: ours {100 * found.mean(head):.2f} ± {100 * found.std(head):.2f} %{there}")


def whole_peer(features: Tensor, labels: Tensor, protocol: Protocol) -> tuple[float, dict[Head, float]]:
    """Seconds and mean accuracies in percent of scikit-learn on the same splits."""
    seconds, sums = 0.0, dict.fromkeys(HEADS, 0.0)
    splits = draw_splits(labels, protocol).splits

    def accuracy(head: Head, strength: float, learned: Tensor, tested: Tensor) -> float:
        nonlocal seconds
        inputs = features - features[learned].mean(0)
        inputs /= inputs[learned].square().sum(1).mean().sqrt()
        start = time.perf_counter()
        model = peer(head, strength).fit(inputs[learned].numpy(), labels[learned].numpy())
        right = model.predict(inputs[tested].numpy()) == labels[tested].numpy()
        seconds += time.perf_counter() - start
        return float(right.mean())  # classes have equally many images

    for split in splits:
        for head in HEADS:
            found = [accuracy(head, strength, split.fit, split.held_out) for strength in protocol.Cs]
            chosen = protocol.Cs[found.index(max(found))]
            sums[head] += 100 * accuracy(head, chosen, split.train, split.test) / len(splits)
    return seconds, sums


# Memory


class LazyImages(Dataset[tuple[Tensor, int]]):
    """Noise images `(3, 224, 224)` with classes in turn, each made from its own seed when it is asked for."""

    def __init__(self, count: int, classes: int) -> None:
        self._count, self._classes = count, classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, 224, 224, generator=generator), index % self._classes


def peak_of_raw_probe(count: int, classes: int, folder: str) -> tuple[float, float, float, int]:
    """Peak GB of this process, seconds of reading and of probing whole conv1 maps, and their number of features."""
    torch.manual_seed(0)
    model = torchvision.models.alexnet(weights=None).features[:2]
    assert isinstance(model, nn.Module)
    start = time.perf_counter()
    found = tap_features(model, DataLoader(LazyImages(count, classes), 16), pool=None, folder=Path(folder))
    read = time.perf_counter()
    probe(found["0"], found.labels, Protocol(splits=2))
    done = time.perf_counter()
    return resident(), read - start, done - read, found["0"].dimensions


def resident() -> float:
    """This process's peak in GB; not ru_maxrss, which a process inherits from the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / GB


def measure_memory(options: argparse.Namespace) -> None:
    """Print the peak of AlexNet's raw first layer."""
    count = options.per_class * options.classes
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, torch.get_num_threads()).result()
        peak, read, probed, size = pool.submit(peak_of_raw_probe, count, options.classes, folder).result()
    raw = count * size * 4 / GB
    print(
        f"\nAlexNet conv1, whole maps of {count:,} images x {size:,} features ({raw:.2f} GB): peak {peak:.2f} GB, "
        f"read in {read:.0f} s, probed in {probed:.0f} s"
    )


# Online


def measure_online(options: argparse.Namespace) -> None:
    """Print what six probes add to a training step, steps with and without them in turn."""
    torch.manual_seed(options.seed)
    model = torchvision.models.resnet18(weights=None, num_classes=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    names = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1", "layer4.1.conv2"]
    chosen = [layer for layer in select_layers(model, "conv") if layer.name in names]
    reader = MapReader(model, chosen, pool=512)
    images = torch.randn(options.batch, 3, options.side, options.side)
    labels = torch.randint(100, (options.batch,))
    learner = OnlineLearner(reader)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def probed() -> None:
        with learner.batch(images, labels):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    ratios = []
    for number in range(options.steps + 2):
        seconds = []
        for work in (step, probed, step):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        if number >= 2:  # the first ones warm up
            ratios.append(2 * seconds[1] / (seconds[0] + seconds[2]))
    ratio = statistics.median(ratios)
    low, high = statistics.quantiles(ratios, n=4)[::2]
    print(
        f"\nonline, {len(reader.maps)} layers of ResNet-18, batch {options.batch} of {options.side} x {options.side}: "
        f"{100 * (ratio - 1):+.1f} % of a training step ({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f}, the middle "
        f"half of {options.steps} steps, each between two plain ones)"
    )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--size", type=int, default=9216, help="number of features")
    parser.add_argument("--large", type=int, default=43_264, help="of the largest single fit; 0 for none")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--whole-peer", action="store_true", help="run all of scikit-learn's fits of the protocol")
    parser.add_argument("--memory", action="store_true", help="measure memory of raw features, too (Linux)")
    parser.add_argument("--online", action="store_true", help="measure probes that learn along with training, too")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    print(
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {torch.get_num_threads()} threads, "
        f"seed {options.seed}, {options.classes} classes"
    )
    print(
        f"{'head':8}{'images':>7}{'size':>8}{'ours, s':>10}{'sklearn, s':>14}{'ratio':>9}"
        f"{'objective':>14}{'sklearn':>14}{'test %':>9}{'sklearn':>9}"
    )
    seconds = {head: measure_fit(options, options.size, head) for head in HEADS}
    if options.large:
        measure_fit(options, options.large, "svm")
    measure_protocol(options, seconds)
    if options.memory:
        measure_memory(options)
    if options.online:
        measure_online(options)


if __name__ == "__main__":
    main()
