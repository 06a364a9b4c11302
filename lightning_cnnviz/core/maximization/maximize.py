"""Activation maximization: the input that drives a unit, a channel or a class most (Erhan et al. 2009)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.objectives import (
    Layer,
    Objective,
    Reader,
    UnitActivation,
    checked_objectives,
    layer_name,
)
from lightning_cnnviz.core.maximization.parametrization import Parametrization
from lightning_cnnviz.core.maximization.rectifiers import Rectifiers, redirected
from lightning_cnnviz.core.maximization.regularization import RandomTransform, check_transforms, robust
from lightning_cnnviz.core.network.calling import rows_of
from lightning_cnnviz.core.network.classification import ScoreReader
from lightning_cnnviz.core.network.gradients import OrderedGradients, gradient_within
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import image_axes
from lightning_cnnviz.core.network.memory import in_chunks
from lightning_cnnviz.core.network.task import OutputFn, Task, TaskKind
from lightning_cnnviz.core.tracing.readable import check_readable

__all__ = ["Maximization", "Strongest", "maximize", "strongest_images", "unit_input_size"]

# In the first steps, a unit that the noise leaves below zero is pulled up (see `rectifiers.redirected`).
_RESCUE_STEPS = 16
# How much larger than a receptive field an input may have to be for a unit to see all of it, in pixels.
_MARGINS = (*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
# How much is climbed together: beyond these, batches fall out of the processor's caches, or gain nothing.
_PIXELS_ON_CPU, _PIXELS_ON_GPU, _MOST_TOGETHER = 2**17, 2**22, 512


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximization:
    """Inputs that maximize objectives, each from several starts.

    Attributes:
        objectives: What each was to maximize, in words.
        starts: Number of starts of each.
        images: `(N, C, H, W)` float32, of signals `(N, C, L)`, of volumes `(N, C, D, H, W)`, in network input values; N
            is objectives x starts, starts next to each other.
        activations: `(N,)`, the objective of each image as it is, without transforms and penalties.
        history: `(N, steps)`, the objective at each step, of the image as the transforms changed it.
        boxes: `(objectives, 4)` int64: top, left, bottom, right in pixels, half-open: what the objective can depend
            on. The receptive field of a unit; the whole image elsewhere. Of signals `(objectives, 2)`, first and last
            sample; of volumes `(objectives, 6)`: front, top, left, back, bottom, right.
    """

    objectives: tuple[str, ...]
    starts: int
    images: Tensor
    activations: Tensor
    history: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        count = len(self.objectives) * self.starts
        lengths = {"images": len(self.images), "activations": len(self.activations), "history": len(self.history)}
        boxes = (len(self.objectives), 2 * (self.images.ndim - 2))
        if any(length != count for length in lengths.values()) or self.boxes.shape != boxes:
            raise ValueError(
                f"{len(self.objectives)} objectives from {self.starts} starts are {count} images; got {lengths} and "
                f"boxes {tuple(self.boxes.shape)}"
            )

    def __len__(self) -> int:
        return len(self.objectives)

    def of(self, objective: int) -> slice:
        """Return where the images of an objective are."""
        return slice(objective * self.starts, (objective + 1) * self.starts)

    def ranked(self, objective: int) -> list[int]:
        """Return the numbers of an objective's images, the highest activation first."""
        order = self.activations[self.of(objective)].nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        return [objective * self.starts + start for start in order.tolist()]

    def seen(self, number: int) -> Tensor:
        """Return the part `(C, h, w)` of an image that its objective can depend on."""
        return cut(self.images[number], self.boxes[number // self.starts])


@dataclass(frozen=True, eq=False, kw_only=True)
class Strongest:
    """The real images that drive objectives most: the scale to read a maximization by.

    Attributes:
        objectives: What each stands for, in words.
        activations: `(objectives,)`.
        numbers: `(objectives,)` int64, which of the images.
        patches: Of each objective the part `(C, h, w)` of the image that it can depend on, in network input values.
        boxes: `(objectives, 4)` int64, where in the image that is: top, left, bottom, right, half-open; of signals and
            volumes see `Maximization`.
    """

    objectives: tuple[str, ...]
    activations: Tensor
    numbers: Tensor
    patches: tuple[Tensor, ...]
    boxes: Tensor


def maximize(
    model: nn.Module,
    objectives: Objective | Sequence[Objective],
    input_size: Sequence[int],
    *,
    starts: int = 3,
    steps: int = 128,
    learning_rate: float = 0.05,
    parametrization: Parametrization | None = None,
    transforms: RandomTransform | str | None = "default",
    penalty: Objective | None = None,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Maximization:
    """Find inputs that maximize objectives, by gradient ascent (Adam) from several random starts.

    The optimum depends on the start (Erhan et al. 2009), so look at several. All objectives are climbed together in
    batches, in passes that stop at the deepest layer that is read; what comes out does not depend on the batches: the
    starts are the same for every objective. The network runs in eval mode and is left as it was.

    Args:
        model: Any network that takes images `(N, C, H, W)`, signals `(N, C, L)` or volumes `(N, C, D, H, W)`.
        objectives: One, or several: `UnitActivation("conv5", 3)`, `ChannelActivation(...)`, `ClassScore(...)` and their
            sums.
        input_size: Channels, height and width; of a signal channels and length, of a volume channels, depth, height
            and width. For units, `unit_input_size` says what is enough: mostly far less than
            the network's own inputs, and faster in proportion.
        starts: Number of starts of each objective.
        steps: Number of steps of each.
        learning_rate: Adam's, on the parametrization's numbers.
        parametrization: What images may be; by default `Parametrization()`: correlated colors and frequencies, values
            from -2 to 2.
        transforms: What an image has to stand while it is optimized; None for nothing, by default `robust(side)`.
        penalty: What the image has to pay, in parts of the activation that it reaches, so that one weight suits every
            unit: `0.5 * TotalVariation() + 0.1 * L2()`. In effect the logarithm of the activation is maximized.
        task: What outputs mean, for class scores (see `TaskKind`); by default it is found.
        output_fn: Takes what the network returns, and returns the tensor of scores, for example
            `lambda output: output["species"]`.
        batch_size: How many images are climbed together, at most; by default as many as suit the processor's caches,
            or a GPU.
        seed: Which starts, and which transforms.
        progress: Wraps the iterable of steps to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once.
        ValueError: An argument is out of range; a channel, unit or class does not exist; the network refuses images of
            this size; or no gradient reaches the image.
        TypeError: An objective, the transforms or the penalty is of another kind.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> optima = maximize(model, [UnitActivation("2", 0), UnitActivation("2", 5)], (1, 5, 5), starts=2, steps=8)
        >>> optima.images.shape, optima.activations.shape
        (torch.Size([4, 1, 5, 5]), torch.Size([4]))
    """
    check_readable(model)
    asked = checked_objectives(objectives)
    size = _checked(model, input_size, starts, steps, learning_rate, batch_size)
    check_transforms(transforms)
    if isinstance(transforms, str):
        transforms = robust(min(size[1:]))
    if not isinstance(penalty, (Objective, type(None))):
        raise TypeError(f"penalty={penalty!r}: give an objective, for example 0.5 * TotalVariation() + 0.1 * L2()")
    settings = _Settings(
        size=size,
        starts=starts,
        steps=steps,
        learning_rate=learning_rate,
        parametrization=parametrization or Parametrization(),
        transforms=transforms,
        penalty=penalty,
        seed=seed,
    )
    device, dtype = home_of(model)
    if batch_size is None:
        pixels = _PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_GPU
        batch_size = min(_MOST_TOGETHER, pixels // math.prod(size[1:]))
    together = max(1, batch_size // starts)
    rounds = range(-(-len(asked) // together) * steps)
    shown = iter(progress(rounds) if progress is not None else rounds)
    with analysis_mode(model):
        reads = ScoreReader(task, output_fn)
        reader = Reader(model, asked, torch.zeros(1, *size, device=device, dtype=dtype), reads)

        def climbed(part: slice) -> tuple[_Climb, tuple[Tensor, Tensor]]:
            climb = _Climb(reader, asked[part], settings, device, dtype)
            for step in range(steps):
                climb.step(step)
                next(shown, None)
            return climb, climb.finish()

        what = f"objective with its {starts} starts" if starts > 1 else "objective"
        climbs = in_chunks(climbed, len(asked), together, what)
        next(shown, None)
    done, finished = [climb for climb, _ in climbs], [end for _, end in climbs]
    return Maximization(
        objectives=tuple(map(str, asked)),
        starts=starts,
        images=torch.cat([images for images, _ in finished]),
        activations=torch.cat([activations for _, activations in finished]),
        history=torch.cat([torch.stack(climb.history, 1) for climb in done]),
        boxes=torch.stack([objective_box(reader, objective, size) for objective in asked]),
    )


def strongest_images(
    model: nn.Module,
    objectives: Sequence[Objective],
    images: Tensor,
    *,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    batch_size: int = 32,
) -> Strongest:
    """Find, for each objective, the one of some images that has the most of it.

    A unit without a position is looked for in its whole feature map: any unit of it, as a miner of top patches does.

    Args:
        model: The network.
        objectives: What is looked for.
        images: `(N, C, H, W)`, or the network's signals or volumes, in network input values.
        task: See `maximize`.
        output_fn: See `maximize`.
        batch_size: How many images are run together.

    Raises:
        ValueError: There are no images, or see `maximize`.
    """
    objectives = checked_objectives(objectives)
    _check_axes(model, images)
    if not len(images):
        raise ValueError(f"images of shape {tuple(images.shape)}: give at least one")
    with analysis_mode(model):
        device, dtype = home_of(model)
        reader = Reader(model, objectives, images[:1].to(device, dtype), ScoreReader(task, output_fn))

        def activations_of(part: slice) -> Tensor:
            with rows_of(model, part):
                reading = reader(images[part].to(device, dtype))
            return torch.stack([objective.anywhere(reading).float().cpu() for objective in objectives])

        parts = in_chunks(activations_of, len(images), batch_size)
        activations, numbers = torch.cat(parts, 1).max(1)
        boxes = []
        for objective, number in zip(objectives, numbers.tolist(), strict=True):
            with rows_of(model, number):
                boxes.append(_strongest_box(reader, objective, images[number][None].to(device, dtype)))
    patches = [
        cut(images[number], box).detach().float().cpu().clone()
        for number, box in zip(numbers.tolist(), boxes, strict=True)
    ]
    return Strongest(
        objectives=tuple(map(str, objectives)),
        activations=activations,
        numbers=numbers,
        patches=tuple(patches),
        boxes=torch.stack(boxes),
    )


def unit_input_size(
    model: nn.Module, layer: Layer, input_size: Sequence[int], channels: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the smallest input, of those tried, on which a unit of a layer has its complete receptive field.

    That is about the field itself: 11 x 11 pixels at AlexNet's first layer (13 with its padding), where the network's
    own input is 224 x 224. A field as large as the input gives the input's own size.

    Args:
        model: The network.
        layer: The layer.
        input_size: Channels, height and width of the network's own inputs, or see `maximize`.
        channels: Of which channels, where they have different fields, as behind a concatenation; by default all.

    Raises:
        LayerNotFoundError: See `maximize`.
        ValueError: The network refuses inputs of `input_size`.
    """
    channels_in, *full = _checked_size(model, input_size)
    probe = UnitActivation(layer, 0)
    name = layer_name(layer)
    with analysis_mode(model):
        device, dtype = home_of(model)

        def complete(sides: Sequence[int]) -> list[int]:
            image = torch.zeros(1, channels_in, *sides, device=device, dtype=dtype)
            boxes = Reader(model, [probe], image).fields[name].boxes
            if channels is not None and len(boxes) > 1:
                boxes = boxes[list(channels)]
            first, last = boxes.flatten(0, -2).chunk(2, dim=-1)
            lengths: list[int] = (last - first).amax(0)[-len(sides) :].tolist()
            return lengths

        whole = complete(full)
        for margin in _MARGINS:
            sides = [min(length + margin, most) for length, most in zip(whole, full, strict=True)]
            if sides == full:
                break
            try:
                if complete(sides) == whole:
                    return channels_in, *sides
            except ValueError:
                continue  # the network refuses so small an input
    return channels_in, *full


@dataclass(frozen=True, eq=False, kw_only=True)
class _Settings:
    size: tuple[int, ...]
    starts: int
    steps: int
    learning_rate: float
    parametrization: Parametrization
    transforms: RandomTransform | None
    penalty: Objective | None
    seed: int


class _Climb:
    """The ascent of some objectives together, all starts of each."""

    def __init__(
        self,
        reader: Reader,
        objectives: Sequence[Objective],
        settings: _Settings,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._reader, self._objectives, self._settings = reader, objectives, settings
        self._device, self._dtype = device, dtype
        # Half precision is too coarse for small steps: only the network's own part is computed in it.
        own = torch.float64 if dtype == torch.float64 else torch.float32
        seeds = [settings.seed * 65_537 + start for start in range(settings.starts)]
        drawn = settings.parametrization.start(seeds, settings.size, own, device)
        self._numbers = drawn.repeat(len(objectives), *[1] * (drawn.ndim - 1)).requires_grad_()
        self._optimizer = torch.optim.Adam([self._numbers], lr=settings.learning_rate)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.history: list[Tensor] = []

    def step(self, number: int) -> None:
        """Go one step up."""
        with torch.enable_grad():
            images = self._images(self._settings.transforms)
            # Checkpointed parts of a network run again on the way back: as they ran before, so inside the same block.
            with Rectifiers(redirected) if number < _RESCUE_STEPS else nullcontext(), OrderedGradients():
                activations, gradient = self._climbed(images)
        self.history.append(activations.detach().float().cpu())
        # A network that has diverged gives NaN: the image stays, and its activation tells.
        self._numbers.grad = gradient.nan_to_num(0, 0, 0)
        self._optimizer.step()

    def _climbed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The objective of each image, and the gradient of what is to be lowered."""
        activations, penalties = self._values(images)
        loss = (penalties * activations.detach().abs() - activations).sum()
        if not loss.requires_grad:
            names = ", ".join(map(str, self._objectives[:3]))
            raise ValueError(f"no gradient reaches the image from {names}: the network detaches it, or rounds it")
        return activations, gradient_within(loss, self._numbers)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return the images and the objective of each, as it is."""
        images = self._images(None)
        activations, _ = self._values(images)
        return images.detach().float().cpu(), activations.detach().float().cpu()

    def _images(self, transforms: RandomTransform | None) -> Tensor:
        with torch.autocast(self._device.type, enabled=False):
            images = self._settings.parametrization.images(self._numbers, *self._settings.size[1:])
            return images if transforms is None else transforms.apply(images, self._generator)

    def _values(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and penalty of each image."""
        reading = self._reader(images.to(self._dtype))
        parts = reading.split(self._settings.starts)
        activations = torch.cat([each(part) for each, part in zip(self._objectives, parts, strict=True)])
        penalty = self._settings.penalty
        penalties = torch.zeros_like(activations) if penalty is None else penalty(reading)
        return activations.to(images.dtype), penalties.to(images.dtype)


def _checked(
    model: nn.Module,
    input_size: Sequence[int],
    starts: int,
    steps: int,
    learning_rate: float,
    batch_size: int | None,
) -> tuple[int, ...]:
    for name, value in (("starts", starts), ("steps", steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give 1 or more")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: give a number above 0")
    return _checked_size(model, input_size)


def _checked_size(model: nn.Module, input_size: Sequence[int]) -> tuple[int, ...]:
    size = tuple(input_size)
    # An image for a network of others is refused where it runs, with what that says.
    if len(size) - 1 not in (2, image_axes(model)) or min(size) < 1:
        wanted = {
            1: "channels and length of a signal, for example (12, 1000)",
            2: "channels, height and width, for example (3, 128, 128)",
            3: "channels, depth, height and width of a volume, for example (3, 8, 64, 64)",
        }
        raise ValueError(f"input_size={size}: give {wanted[image_axes(model)]}")
    return size


def _check_axes(model: nn.Module, images: Tensor) -> None:
    """Refuse images that have not as many axes as those of a network.

    Raises:
        ValueError: With what it takes.
    """
    if images.ndim - 2 not in (2, image_axes(model)):
        wanted = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}[image_axes(model)]
        raise ValueError(f"images of shape {tuple(images.shape)}: give {wanted}, at least one")


def cut(image: Tensor, box: Tensor) -> Tensor:
    """Return the part of an image, signal or volume `(C, ...)` that lies in a box: its first sides, then its last."""
    first, last = (sides.tolist() for sides in box.chunk(2))
    part: tuple[Any, ...] = (slice(None), *(slice(begin, end) for begin, end in zip(first, last, strict=True)))
    return image[part]


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network's parameters are, and of what kind."""
    parameters = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    parameter = next(parameters, torch.zeros((), dtype=torch.float32))
    return parameter.device, parameter.dtype


def objective_box(reader: Reader, objective: Objective, size: Sequence[int]) -> Tensor:
    """The part of an image `(C, *sides)` that an objective can depend on: int64, first sides, then last, half-open."""
    if isinstance(objective, UnitActivation):
        return reader.unit_box(objective)
    return torch.tensor([*[0] * (len(size) - 1), *size[1:]])


def _strongest_box(reader: Reader, objective: Objective, image: Tensor) -> Tensor:
    if not isinstance(objective, UnitActivation) or objective.place is not None:
        return objective_box(reader, objective, image.shape[1:])
    maps = reader(image).maps[layer_name(objective.layer)][0, objective.channel]
    place: list[int | None] = [int(at) for at in torch.unravel_index(maps.argmax(), maps.shape)]
    missing: list[int | None] = [None] * (3 - len(place))
    depth, row, column = missing + place
    return reader.unit_box(UnitActivation(objective.layer, objective.channel, row, column, depth=depth))
