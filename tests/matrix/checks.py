"""Each view on a whole network, against a computation of its own: plain passes with hooks, autograd, steps by hand."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from matrix.networks import Network, prepared
from matrix.rectified import RectifiedGradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_cnnviz.core.deconvnet.projection import Method, Unit, project
from lightning_cnnviz.core.images.attribution import AttributionMethod, attribute
from lightning_cnnviz.core.images.invariance import measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.images.transforms import Transform
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.maximization.maximize import maximize
from lightning_cnnviz.core.maximization.objectives import UnitActivation
from lightning_cnnviz.core.probing.probe import probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.core.tracing.default_layers import find_default_layers
from lightning_cnnviz.finetune.module import FineTuner

FRAMES, CLASSES = 16, 3


class Subject:
    """A network of the matrix with two images, and what a plain pass makes of them.

    Attributes:
        network: Which.
        model: It, in double precision and eval mode.
        images: `(2, 3, H, W)`; of video networks clips `(2, 3, T, H, W)`.
        seconds: What the view under test has taken, of the processor's time.
    """

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.network, self.model, self.seconds = network, prepared(network.build(), network.gain), 0.0
        frames = (FRAMES,) if network.kind == "video" else ()
        size = network.size
        self.images = torch.randn(2, 3, *frames, size, size, generator=torch.Generator().manual_seed(1)).double()
        self.size = (3, size, size)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what runs inside the block."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds = time.process_time() - start

    @cached_property
    def seconds_a_pass(self) -> float:
        """A plain pass over one image, the fastest of three."""
        times = []
        with torch.no_grad():
            for _ in range(3):
                start = time.process_time()
                self.model(self.images[:1])
                times.append(time.process_time() - start)
        return min(times)

    @cached_property
    def given(self) -> Tensor:
        """The images, to ask for gradients of."""
        return self.images.clone().requires_grad_()

    @cached_property
    def output(self) -> Any:
        """What the network returns."""
        self.maps  # noqa: B018  (the same pass)
        return self._output

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """What convolutions with several positions return, of those that run once and have an entry an image."""
        self._output, maps = maps_of(self.model, self.given)
        return maps

    @property
    def layers(self) -> list[str]:
        """A shallow convolution, a middle and a deep one; of video networks the first."""
        if self.network.kind == "video":
            return [next(name for name, module in self.model.named_modules() if isinstance(module, nn.Conv3d))]
        names = list(self.maps)
        return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))

    @property
    def depth(self) -> int | None:
        """That of the unit, of video networks alone."""
        return 0 if self.network.kind == "video" else None

    def place(self, layer: str) -> tuple[int, ...]:
        """The unit's in maps `(N, C, H, W)`, or `(N, C, T, H, W)`, of one image: channel, depth, row and column."""
        channel, row, column = self.unit(layer)
        return (channel, row, column) if self.depth is None else (channel, self.depth, row, column)

    def unit(self, layer: str) -> tuple[int, int, int]:
        """A unit at the right border: channel, row and column."""
        if self.network.kind == "video":
            return 0, 0, 0
        _, channels, rows, columns = self.maps[layer].shape
        return channels // 2, rows // 2, columns - 1

    def scores(self, output: Any, labels: Tensor) -> Tensor:
        """The logit of each image's class; of segmentation the mean over the pixels that are labeled with it."""
        return followed(self, output, labels, lambda logits: logits)

    def probabilities(self, output: Any, labels: Tensor) -> Tensor:
        """The same of probabilities."""
        return followed(self, output, labels, lambda logits: logits.softmax(1))

    @property
    def labels(self) -> Tensor:
        """Classes 1 and 2; of segmentation maps of these, whose lower half is background."""
        labels = torch.tensor([1, 2])
        if self.network.kind != "segmentation":
            return labels
        maps = labels[:, None, None].repeat(1, *self.size[1:])
        maps[:, self.size[1] // 2 + 5 :] = 0
        return maps


def followed(subject: Subject, output: Any, labels: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    logits = output["out"] if isinstance(output, dict) else output
    values = function(logits[0] if isinstance(logits, tuple) else logits)
    if labels.ndim == 1:
        return values.gather(1, labels[:, None])[:, 0]
    region = labels > 0
    classes = labels.amax((1, 2))
    chosen = values[torch.arange(len(values)), classes]
    return (chosen * region).sum((1, 2)) / region.sum((1, 2))


def maps_of(model: nn.Module, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The output, and feature maps by layer."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.setdefault(name, []).append(output.clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d)
    ]
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    maps = {name: own[0] for name, own in found.items() if len(own) == 1 and len(own[0]) == len(images)}
    return output, {name: own for name, own in maps.items() if own.ndim > 3 and own.shape[2:].numel() > 1}


def value_at(model: nn.Module, images: Tensor, layer: str) -> tuple[Any, Tensor]:
    """The output, and what a layer returns, of a plain pass; the network goes on with a copy."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        output = model(images)
    finally:
        handle.remove()
    return output, seen[-1]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-7) -> None:
    """Compare relative to the largest of what is expected."""
    scale = float(expected.detach().abs().max())
    assert scale == scale
    difference = float((found.double() - expected.detach().double()).abs().max())
    # Single precision ends at 1e-38.
    assert difference <= tolerance * scale + 1e-30, f"off by {difference:.3g} of {scale:.3g}"


def check_table(subject: Subject) -> None:
    """Parameters and multiply-adds in all, and that fields are as wide as gradients reach, at three layers."""
    with subject.timed():
        table = layer_table(subject.model, tuple(subject.images.shape[1:]))
    assert table.parameters == sum(value.numel() for value in subject.model.parameters())
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it does not count attention that is one operation
    try:
        with counter, torch.no_grad():
            subject.model(subject.images[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    assert 2 * sum(row.macs for row in table.rows) == counter.get_total_flops()
    rows = {row.layer: row for row in table.rows}
    for layer in subject.layers:
        (gradient,) = torch.autograd.grad(
            subject.maps[layer][(0, *subject.place(layer))], subject.given, retain_graph=True
        )
        field, axes = rows[layer].receptive_field, range(gradient.ndim - 2)
        assert field is not None
        for axis, size in zip(axes, field, strict=True):
            places = gradient[0].abs().movedim(1 + axis, 0).flatten(1).amax(1).nonzero()[:, 0]
            assert size is None or len(places) == 0 or int(places[-1] - places[0]) < size, layer


def check_mining(subject: Subject) -> None:
    """The strongest activation of every feature map, its image and place."""
    layer = subject.layers[-1]
    with subject.timed():
        (found,) = mine_top_patches(subject.model, [subject.images], [layer], k=1, features=4).layers
    maps = subject.maps[layer].detach()
    strongest = maps.flatten(2).amax((0, 2))
    close(found.activations[:, 0], strongest, 1e-6)
    places = [part[:, 0] for part in (found.depths, found.rows, found.columns) if part is not None]
    index = (found.images[:, 0], torch.arange(maps.shape[1]), *places)
    close(maps[index], strongest, 1e-6)
    for channel, patches in zip(found.features, found.patches, strict=True):
        own, box = subject.images[found.images[channel, 0]], found.boxes[channel, 0].tolist()
        for axis, (first, last) in enumerate(zip(box[: len(places)], box[len(places) :], strict=True)):
            own = own.narrow(1 + axis, first, last - first)
        assert torch.equal(patches[0].double(), own.float().double())


def check_projection(subject: Subject, method: Method) -> None:
    """A shallow, a middle and a deep unit, against autograd through the whole network, rectified as the method says."""
    units = [Unit(1, layer, *subject.unit(layer), None, subject.depth) for layer in subject.layers]
    with subject.timed():
        projection = project(subject.model, subject.images, units, method=method)
    given = subject.images[1:].clone().requires_grad_()
    with RectifiedGradients(method):
        _, maps = maps_of(subject.model, given)
    for number, layer in enumerate(subject.layers):
        value = maps[layer][(0, *subject.place(layer))]
        (gradient,) = torch.autograd.grad(value, given, retain_graph=True)
        close(projection.on_image(number), gradient[0] * value.detach(), subject.network.tolerance)


def check_probe(subject: Subject) -> None:
    """Features of three layers, and that probes learn from the deepest."""
    images = torch.cat([subject.images, subject.images * 0.5, -subject.images])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    layer = subject.layers[-1]
    with subject.timed():
        features = tap_features(subject.model, [(images, labels)], subject.layers, pool=2000)
        scores = probe_layers(features, Protocol(per_class=2, splits=1))
    assert all(bool(own.accuracy.isfinite().all()) for own in scores)
    with torch.no_grad():
        _, maps = maps_of(subject.model, images)
    for own in features.layers:
        assert own.values is not None
        pooled = F.adaptive_avg_pool2d if subject.depth is None else F.adaptive_avg_pool3d
        close(own.values, pooled(maps[own.layer], own.pooled).flatten(1), 1e-6)
    assert layer in {own.layer for own in features.layers}


def check_invariance(subject: Subject) -> None:
    """Distances and probabilities of mirrored images."""
    layers, labels = [subject.layers[0], subject.layers[-1]], subject.labels
    mirror = Transform(
        "mirror", lambda images, value: images.flip(3) if value else images, (0.0, 1.0), identity=0.0, on_pixels=False
    )
    with subject.timed():
        curves = measure_invariance(subject.model, subject.images, labels, layers, mirror)
    (sweep,) = curves.sweeps
    with torch.no_grad():
        output, maps = maps_of(subject.model, subject.images.flip(3))
    for number, name in enumerate(curves.layers):
        before = subject.maps[name].detach().flatten(1)
        distances = (maps[name].flatten(1) - before).norm(dim=1)
        assert bool(((sweep.raw[number, :, 1] - distances).abs() <= 1e-6 * before.norm(dim=1)).all())
    close(sweep.probabilities[:, 1], subject.probabilities(output, labels), 1e-4)
    close(sweep.probabilities[:, 0], subject.probabilities(subject.output, labels), 1e-4)


def check_occlusion(subject: Subject) -> None:
    """One position of the occluder by hand: the class's probability and the strongest feature map's sum."""
    half, labels = subject.size[-1] // 2, subject.labels
    with subject.timed():
        swept = occlude(subject.model, subject.images, labels, patches_of(subject), size=half, stride=half, fill=0.0)
    covered = subject.images.clone()
    covered[..., :half, half:] = 0
    with torch.no_grad():
        output, maps = value_at(subject.model, covered, swept.layer)
        _, untouched = value_at(subject.model, subject.images, swept.layer)
    close(swept.probabilities[:, 0, 1], subject.probabilities(output, labels), 1e-4)
    sums, before = summed(maps), summed(untouched)
    assert swept.channels.tolist() == before.argmax(1).tolist()
    close(swept.activations[:, 0, 1], sums.gather(1, swept.channels[:, None])[:, 0], 1e-4)


def patches_of(subject: Subject) -> str | None:
    """The patches of a vision transformer, which are taken where they are named alone; None of other networks."""
    found = find_default_layers(subject.model, subject.images[:1])
    return found.deep.name if found.only_patches and found.deep is not None else None


def summed(maps: Tensor) -> Tensor:
    """The positive part of each feature map in all; maps are square, so that the odd dimension is the channels'."""
    channels_last = maps.shape[1] == maps.shape[2] != maps.shape[3]
    return maps.relu().sum((1, 2) if channels_last else (2, 3))


def check_attribution(subject: Subject, method: AttributionMethod) -> None:
    """Saliency, Grad-CAM and its product with guided backpropagation, by autograd."""
    labels = subject.labels
    with subject.timed():
        found = attribute(subject.model, subject.images, labels, method, layer=patches_of(subject))
    given = subject.images.clone().requires_grad_()
    if method == "saliency":
        with RectifiedGradients("gradient"):
            scores = subject.scores(subject.model(given), labels)
        (gradient,) = torch.autograd.grad(scores.sum(), given)
        return close(found.maps, gradient.abs(), 1e-4)
    with RectifiedGradients("gradient"):
        output, maps = value_at(subject.model, given, found.layer)
    (slope,) = torch.autograd.grad(subject.scores(output, labels).sum(), maps)
    if maps.shape[1] == maps.shape[2] != maps.shape[3]:
        maps, slope = maps.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)
    coarse = (maps * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    fine = F.interpolate(coarse, subject.size[1:], mode="bilinear")
    if method == "gradcam":
        return close(found.maps, fine, 1e-4)
    with RectifiedGradients("guided"):
        scores = subject.scores(subject.model(given), labels)
    (guided,) = torch.autograd.grad(scores.sum(), given)
    return close(found.maps, fine * guided, 1e-4)


def check_maximization(subject: Subject) -> None:
    """Two steps: the activations that are said to be reached, and more of them than at the start."""
    layer = subject.layers[0]
    objective, size = UnitActivation(layer, *subject.unit(layer), depth=subject.depth), tuple(subject.images.shape[1:])
    with subject.timed():
        climbed = maximize(subject.model, objective, size, starts=1, steps=4, transforms=None)
    start = maximize(subject.model, objective, size, starts=1, steps=1, transforms=None, learning_rate=1e-9)
    with torch.no_grad():
        _, maps = maps_of(subject.model, climbed.images.double())
    close(climbed.activations, maps[layer][(slice(None), *subject.place(layer))], 1e-3)
    assert float(climbed.activations[0]) > float(start.activations[0])


def check_finetuning(subject: Subject, mode: str) -> None:
    """Steps of stochastic gradient descent by hand, on what the mode trains, give the same weights."""
    tuner = FineTuner(
        copy.deepcopy(subject.model),
        CLASSES,
        mode=mode,  # type: ignore[arg-type]
        unfreeze_at=[1] if mode == "staged" else None,
        optimizer="SGD",
        lr=0.01,
        scheduler=None,
        image_size=subject.size,
        sinks=[],
    ).double()
    own, seen = copy.deepcopy(tuner.network), _Seen()
    images, labels = subject.images, torch.tensor([0, 2])
    trainer = L.Trainer(
        max_epochs=2 if mode == "staged" else 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision="64-true",
        callbacks=[seen],
    )
    with subject.timed():
        trainer.fit(tuner, DataLoader(TensorDataset(images, labels), batch_size=2))
    # Auxiliary classifiers help what lies below the head: they are trained with the stage below it.
    heads = set(tuner.classifiers.heads)
    everything = {name for name, _ in own.named_parameters()}
    in_head = {name for name in everything if name.rpartition(".")[0] in heads or name.split(".0.")[0] in heads}
    assert in_head
    for epoch, (trained, modes) in enumerate(seen.epochs):
        if mode == "full":
            assert trained == everything
        elif epoch == 0:
            assert trained == in_head
        else:
            assert in_head < trained
        step_by_hand(own, images, labels, trained, modes)
    found = tuner.network.state_dict()
    for name, value in own.state_dict().items():
        difference = float((found[name].double() - value.double()).abs().max())
        assert difference <= 1e-6 * max(float(value.abs().max()), 1e-3), (name, difference)


class _Seen(L.Callback):
    """What is trained in each epoch, and in which mode each module is."""

    def __init__(self) -> None:
        self.epochs: list[tuple[set[str], dict[str, bool]]] = []

    def on_train_batch_start(self, _trainer: Any, module: Any, *_: Any) -> None:
        network = module.network
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        self.epochs.append((trained, {name: part.training for name, part in network.named_modules()}))


def step_by_hand(
    model: nn.Module, images: Tensor, labels: Tensor, trained: set[str], modes: dict[str, bool], lr: float = 0.01
) -> None:
    """One step; auxiliary classifiers' losses count as their papers have it: 0.4 of one, 0.3 of each of two."""
    for name, module in model.named_modules():
        module.training = modes[name]
    values = {name: value for name, value in model.named_parameters() if name in trained}
    for name, value in model.named_parameters():
        value.requires_grad_(name in trained)
    output = model(images)
    parts = [part for part in output if part is not None] if isinstance(output, tuple) else [output]
    weights = {1: (1.0,), 2: (1.0, 0.4), 3: (1.0, 0.3, 0.3)}[len(parts)]
    loss = sum(weight * F.cross_entropy(part, labels) for weight, part in zip(weights, parts, strict=True))
    gradients = torch.autograd.grad(torch.as_tensor(loss), list(values.values()), allow_unused=True)
    with torch.no_grad():
        for value, gradient in zip(values.values(), gradients, strict=True):
            if gradient is not None:
                value -= lr * gradient


CHECKS: dict[str, Callable[[Subject], None]] = {
    "layer table": check_table,
    "top patches": check_mining,
    "gradient": partial(check_projection, method="gradient"),
    "deconvnet": partial(check_projection, method="deconvnet"),
    "guided": partial(check_projection, method="guided"),
    "probe": check_probe,
    "invariance": check_invariance,
    "occlusion": check_occlusion,
    "saliency": partial(check_attribution, method="saliency"),
    "Grad-CAM": partial(check_attribution, method="gradcam"),
    "guided Grad-CAM": partial(check_attribution, method="guided_gradcam"),
    "maximize": check_maximization,
    "FineTuner head": partial(check_finetuning, mode="head"),
    "FineTuner staged": partial(check_finetuning, mode="staged"),
    "FineTuner full": partial(check_finetuning, mode="full"),
}
"""By column of the table."""


def outcome(view: str, subject: Subject) -> tuple[str, float]:
    """What a view makes of a network: empty where it is exact, else the refusal; and passes' time that it has taken.

    Raises:
        AssertionError: It is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[view](subject)
        except (ValueError, TypeError) as error:
            return str(error), 0.0
    return "", subject.seconds / subject.seconds_a_pass
