"""What an image is to maximize: a unit, a channel, a class or sums of them, read from a pass that stops when it can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.classification import ImagesRefusedError, ScoreReader, refused
from lightning_cnnviz.core.network.hooks import Site, hooked
from lightning_cnnviz.core.network.layers import SelectedLayer, other_dimensions, select_layers
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode, ReceptiveField

__all__ = [
    "ChannelActivation",
    "ClassScore",
    "Layer",
    "Objective",
    "Reader",
    "Reading",
    "UnitActivation",
    "checked_objectives",
    "layer_name",
]

# Of networks' inputs and feature maps, by how many dimensions they have.
_MAPS = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

Layer = str | FeatureMaps
"""A layer's name, read as it is; or feature maps that were traced, read where the trace says."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What one pass has shown of a batch.

    Attributes:
        images: `(N, C, H, W)`, or signals or volumes, what the network was given.
        maps: By layer, its feature maps `(N, channels, rows, columns)`, of as many axes as images have; those without
            spatial extent have one position.
        centers: By layer, the position of the unit that stands for it where none is asked for: row and column, or a
            number for each axis.
        scores: `(N, classes)`, in the network's output, see `Task.read`; None where no objective reads it.
    """

    images: Tensor
    maps: Mapping[str, Tensor]
    centers: Mapping[str, tuple[int, ...]]
    scores: Tensor | None = None

    def split(self, size: int) -> list[Reading]:
        """Cut the batch into parts of `size` images. The gradient joins them in one piece, however many they are."""
        parts = {name: maps.split(size) for name, maps in self.maps.items()}
        images = self.images.split(size)
        scores = [None] * len(images) if self.scores is None else self.scores.split(size)
        return [
            Reading(
                images=part,
                maps={name: cut[number] for name, cut in parts.items()},
                centers=self.centers,
                scores=scores[number],
            )
            for number, part in enumerate(images)
        ]


class Objective(ABC):
    """A number for each image, to be made large; `+`, `-` and multiples of objectives are objectives.

    Example:
        >>> str(UnitActivation("conv1", 3) - 0.5 * ChannelActivation("conv1", 7))
        'conv1, channel 3 - 0.5 * mean of conv1, channel 7'
    """

    @abstractmethod
    def __call__(self, reading: Reading) -> Tensor:
        """Return the value `(N,)` of each image, differentiable."""

    def anywhere(self, reading: Reading) -> Tensor:
        """Return the value `(N,)` of each image where it is largest, for objectives that have a place in the image."""
        return self(reading)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that it reads."""
        return ()

    @property
    def reads_scores(self) -> bool:
        """Whether it reads the network's output."""
        return False

    def check(self, reading: Reading) -> None:  # noqa: B027 - most have nothing to check
        """Refuse what the network does not have, given one pass.

        Raises:
            ValueError: A channel, a unit or a class is out of range.
        """

    def __add__(self, other: Objective) -> Objective:
        return _Sum((*_parts(self), *_parts(other))) if isinstance(other, Objective) else NotImplemented

    def __sub__(self, other: Objective) -> Objective:
        return self + -1.0 * other if isinstance(other, Objective) else NotImplemented

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return _Sum(tuple((factor * weight, part) for weight, part in _parts(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class UnitActivation(Objective):
    """The activation of one unit (Erhan et al. 2009).

    Attributes:
        layer: Its layer.
        channel: Its feature map.
        row: Its row; where no position is given, the most central unit of those that see the most pixels.
        column: Its column; of a signal its position, alone.
        depth: Of a volume, its depth or frame.
    """

    layer: Layer
    channel: int
    row: int | None = None
    column: int | None = None
    depth: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        given = [number is not None for number in (self.depth, self.row, self.column)]
        if given != sorted(given):  # a column alone is of a signal
            raise ValueError(
                f"UnitActivation(row={self.row}, column={self.column}): give both, or neither for the central unit"
            )

    def __call__(self, reading: Reading) -> Tensor:
        """Read it."""
        unit: tuple[Any, ...] = (slice(None), self.channel, *self.position(reading))
        return reading.maps[layer_name(self.layer)][unit]

    def anywhere(self, reading: Reading) -> Tensor:
        """As itself where a position was asked for, else the strongest unit of the feature map."""
        if self.place is not None:
            return self(reading)
        return reading.maps[layer_name(self.layer)][:, self.channel].flatten(1).amax(1)

    @property
    def place(self) -> tuple[int, ...] | None:
        """The position that is asked for: row and column, of a signal a column, of a volume depth, row and column."""
        return tuple(number for number in (self.depth, self.row, self.column) if number is not None) or None

    def position(self, reading: Reading) -> tuple[int, ...]:
        """The position, asked for or the center's."""
        return reading.centers[layer_name(self.layer)] if self.place is None else self.place

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layer."""
        return (self.layer,)

    def check(self, reading: Reading) -> None:
        """Refuse a channel or a position that the layer does not have."""
        maps = reading.maps[layer_name(self.layer)]
        _check_channel(self.layer, self.channel, maps)
        place, sides = self.position(reading), maps.shape[2:]
        if len(place) != len(sides) or not all(0 <= at < side for at, side in zip(place, sides, strict=True)):
            raise ValueError(
                f"unit ({', '.join(map(str, place))}) of layer '{layer_name(self.layer)}': on images of "
                f"{_size(reading.images)} its feature maps are {' x '.join(map(str, sides))}"
            )

    def __str__(self) -> str:
        place = "" if self.place is None else f" at ({', '.join(map(str, self.place))})"
        return f"{layer_name(self.layer)}, channel {self.channel}{place}"


@dataclass(frozen=True)
class ChannelActivation(Objective):
    """The mean activation of a feature map: texture that drives it everywhere."""

    layer: Layer
    channel: int

    def __call__(self, reading: Reading) -> Tensor:
        """Take the mean over the map."""
        return reading.maps[layer_name(self.layer)][:, self.channel].flatten(1).mean(1)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layer."""
        return (self.layer,)

    def check(self, reading: Reading) -> None:
        """Refuse a channel that the layer does not have."""
        _check_channel(self.layer, self.channel, reading.maps[layer_name(self.layer)])

    def __str__(self) -> str:
        return f"mean of {layer_name(self.layer)}, channel {self.channel}"


@dataclass(frozen=True)
class ClassScore(Objective):
    """The network's output for one class, as it comes, so mostly before a softmax (Simonyan et al. 2014, section 2).

    Attributes:
        index: The class.
        name: What it is called, for people.
    """

    index: int
    name: str = ""

    def __call__(self, reading: Reading) -> Tensor:
        """Read it."""
        assert reading.scores is not None
        return reading.scores[:, self.index]

    @property
    def reads_scores(self) -> bool:
        """Always."""
        return True

    def check(self, reading: Reading) -> None:
        """Refuse a class that the network does not have."""
        assert reading.scores is not None
        classes = reading.scores.shape[1]
        if not 0 <= self.index < classes:
            raise ValueError(f"class {self.index}: the network has {classes} classes (0 to {classes - 1})")

    def __str__(self) -> str:
        return f"class {self.index} ({self.name})" if self.name else f"class {self.index}"


@dataclass(frozen=True)
class _Sum(Objective):
    parts: tuple[tuple[float, Objective], ...]

    def __call__(self, reading: Reading) -> Tensor:
        return torch.stack([weight * part(reading) for weight, part in self.parts]).sum(0)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for _, part in self.parts for layer in part.layers)

    @property
    def reads_scores(self) -> bool:
        return any(part.reads_scores for _, part in self.parts)

    def check(self, reading: Reading) -> None:
        for _, part in self.parts:
            part.check(reading)

    def __str__(self) -> str:
        text = ""
        for weight, part in self.parts:
            sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
            text += sign + (f"{abs(weight):g} * " if abs(weight) != 1 else "") + str(part)
        return text


class Reader:
    """Runs a network as far as some objectives need, and reads what they are made of.

    Use it inside `analysis_mode`, also to make it.

    Args:
        model: The network.
        objectives: What will be read.
        image: `(1, C, H, W)`, or a signal or volume, one of the size that is to come, on the network's device.
        scores: Reads scores from the network's output; by default as they are found to be.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once.
        ValueError: A channel, a unit or a class is out of range; or the network refuses images of this size.
    """

    def __init__(
        self, model: nn.Module, objectives: Iterable[Objective], image: Tensor, scores: ScoreReader | None = None
    ) -> None:
        objectives = list(objectives)
        self._model, self._scores = model, scores or ScoreReader()
        self._to_the_end = any(objective.reads_scores for objective in objectives)
        layers = [layer for objective in objectives for layer in objective.layers]
        self._sites = _sites(model, layers, image)
        self.fields: dict[str, ReceptiveField] = {}
        self._centers: dict[str, tuple[int, ...]] = {}
        bounds = BoundsMode()

        def measure(name: str, value: Tensor) -> None:
            field = bounds.receptive_field(name, value)
            if field is None:
                raise TypeError(f"layer '{name}' returns nothing that is computed from the image's pixels")
            self.fields[name] = field

        # Convolutions on the CPU are faster by a third in this order of memory, but not every network takes it: a view
        # that a single image allows may not be one of several.
        self._format = _FORMATS.get(image.ndim, torch.contiguous_format)
        image = image.detach().clone()
        try:
            with torch.no_grad():
                self._run(image.repeat(2, *[1] * (image.ndim - 1)), None)
        except (ValueError, RuntimeError, IndexError, AssertionError):
            self._format = torch.contiguous_format
        try:
            with bounds.follow(image):
                first = self._run(image, measure)
        except ImagesRefusedError as error:
            if other_dimensions(model):
                raise
            raise ImagesRefusedError(f"{error}. Give an input_size that it takes, larger than its kernels") from error
        self._centers |= {name: _center(field, image.ndim - 2) for name, field in self.fields.items()}
        for objective in objectives:
            objective.check(first)

    def __call__(self, images: Tensor) -> Reading:
        """Read a batch `(N, C, *sides)`; gradients flow where they are enabled."""
        return self._run(images, None)

    def unit_box(self, unit: UnitActivation) -> Tensor:
        """Return the receptive field of a unit, `(4,)` int64: top, left, bottom, right in pixels, half-open.

        Of a signal `(2,)`: first and last. Of a volume `(6,)`: front, top, left, back, bottom, right.
        """
        name = layer_name(unit.layer)
        boxes, place = self.fields[name].boxes, self._centers[name] if unit.place is None else unit.place
        channel = unit.channel if len(boxes) > 1 else 0
        at = (
            channel,
            *[0] * (boxes.ndim - 2 - len(place)),
            *place,
        )  # a signal's boxes are those of an image of one row
        first, last = boxes[at].to(torch.int64).chunk(2)
        return torch.cat([first[-len(place) :], last[-len(place) :]])

    def _run(self, images: Tensor, watch: Callable[[str, Tensor], None] | None) -> Reading:
        maps: dict[str, Tensor] = {}
        unsuitable: list[Exception] = []

        def keep(name: str, value: Any) -> None:
            try:
                take(name, value)
            except Exception as error:  # of ours, and not of the network's
                unsuitable.append(error)
                raise _AllRead from error

        def take(name: str, value: Any) -> None:
            if not isinstance(value, Tensor) or value.ndim not in (2, images.ndim):
                raise TypeError(f"layer '{name}' returns no feature maps {_MAPS[images.ndim]} or (N, C)")
            if watch is not None:
                watch(name, value)
            if name in maps and not self._to_the_end and len(maps) < len(self._sites):
                raise ValueError(f"layer '{name}' runs more than once in a forward pass: choose one that runs once")
            last = len(maps) == len(self._sites) - 1 and not self._to_the_end
            # A copy where the pass goes on: what follows may write into it.
            value = value if last else value.clone()
            maps[name] = value if value.ndim > 2 else value.view(*value.shape, *[1] * (images.ndim - 2))
            if last:
                raise _AllRead

        scores: Any = None
        try:
            with hooked(self._sites, keep), refused(self._model, images):
                # The network may write into what it is given.
                output = self._model(images.clone(memory_format=self._format))
            scores = self._scores(self._model, output, images) if self._to_the_end else None
        except _AllRead:
            if unsuitable:
                raise unsuitable[0] from None
        return Reading(images=images, maps=maps, centers=self._centers, scores=scores)


class _AllRead(BaseException):
    """All layers have run: the rest of the network need not. No `except Exception` of the network's own stops it."""


def checked_objectives(objectives: Objective | Sequence[Objective]) -> tuple[Objective, ...]:
    """Return one objective, or several, as a tuple.

    Raises:
        ValueError: There is none.
        TypeError: One is something else, for example a `Unit` of projections.
    """
    # A named tuple, as a projection's unit is one, is a single thing.
    one = isinstance(objectives, Objective) or not isinstance(objectives, Iterable) or hasattr(objectives, "_fields")
    asked: tuple[Any, ...] = (objectives,) if one else tuple(objectives)  # type: ignore[arg-type]
    if not asked:
        raise ValueError('objectives=[]: give at least one, for example UnitActivation("conv5", 3)')
    for objective in asked:
        if not isinstance(objective, Objective):
            kind = type(objective)
            raise TypeError(
                f"{objective!r} is a {kind.__module__}.{kind.__qualname__} and no objective: give "
                "UnitActivation(layer, channel), ChannelActivation(layer, channel) or ClassScore(index)"
            )
    return asked


def layer_name(layer: Layer) -> str:
    """What a layer is called."""
    return layer if isinstance(layer, str) else layer.layer


def _parts(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.parts if isinstance(objective, _Sum) else ((1.0, objective),)


def _sites(model: nn.Module, layers: Sequence[Layer], image: Tensor) -> dict[str, Site]:
    sites = {layer.layer: layer.site for layer in layers if not isinstance(layer, str)}
    named = dict(model.named_modules(remove_duplicate=False))
    for name in dict.fromkeys(layer for layer in layers if isinstance(layer, str)):
        # A layer may well be called "conv", which would mean every convolution elsewhere.
        chosen = [SelectedLayer(name, named[name], True)] if name in named else select_layers(model, name)
        if len(chosen) != 1 or not chosen[0].literal:
            matched = ", ".join(f"'{layer.name}'" for layer in chosen[:4]) + (", ..." if len(chosen) > 4 else "")
            raise ValueError(f"layer='{name}' means {len(chosen)} layers ({matched}): an objective reads one, by name")
        sites[name] = Site(chosen[0].module)
        try:
            trace_feature_maps(model, image, chosen)  # refuses what runs twice, or never
        except ImagesRefusedError:
            continue  # perhaps only what comes behind the layer refuses images of this size
    return sites


def _center(field: ReceptiveField, axes: int) -> tuple[int, ...]:
    """Of the units that see the most pixels, the one in the middle of the image."""
    first, last = field.boxes.to(torch.int64).chunk(2, dim=-1)
    # Where channels have fields of their own, as behind a concatenation, the largest decide.
    areas = (last - first).prod(-1)
    largest = int(areas.flatten(1).amax(1).argmax())
    area = areas[largest]
    middle = (first[largest] + last[largest]).float() / 2 - torch.tensor(field.image_size).float() / 2
    # Those that see the same are told apart by their place in the map.
    places = torch.cartesian_prod(*map(torch.arange, area.shape)).view(*area.shape, area.ndim)
    offset = (places - torch.tensor(area.shape) // 2).abs().sum(-1)
    distance = middle.pow(2).sum(-1) + 1e-3 * offset
    distance[area < area.max()] = torch.inf
    return tuple(places.flatten(0, -2)[int(distance.argmin())].tolist())[-axes:]


def _check_channel(layer: Layer, channel: int, maps: Tensor) -> None:
    if not 0 <= channel < maps.shape[1]:
        raise ValueError(
            f"channel {channel} of layer '{layer_name(layer)}': it has {maps.shape[1]} (0 to {maps.shape[1] - 1})"
        )


def _size(images: Tensor) -> str:
    return f"{' x '.join(map(str, images.shape[2:]))} {'samples' if images.ndim == 3 else 'pixels'}"
