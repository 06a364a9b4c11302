"""Units of any layer back to pixels: deconvnet, guided and plain gradient (Zeiler & Fergus 2013, section 2.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.tape import FarEnough, Method, ProjectionError, Seed, Tape
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import images_given, rows_of
from lightning_cnnviz.core.network.hooks import analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.inputs import all_as_floats
from lightning_cnnviz.core.network.layers import LayerSpec, SelectedLayer, image_axes, other_dimensions, select_layers
from lightning_cnnviz.core.network.memory import in_chunks, numbers_at_once
from lightning_cnnviz.core.tracing.boxes import box_slices, cropped
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = ["Method", "Projection", "ProjectionError", "Projector", "Unit", "project"]

log = logging.getLogger(__name__)

# On a CPU, signals of units that go back together take up to so many elements at their widest: they stay near the
# caches. Where that is less than four units, four are still faster, as long as they are not too large for that.
_ELEMENTS, _FEW, _MOST_ELEMENTS = 2**20, 4, 2**23
# Units that go back together, at most.
_UNITS, _UNITS_ON_GPU = 256, 2048
# Images that are run together, at most; on a CPU of so many pixels, for what a pass keeps of them is large, and four of
# 224 x 224 are as fast as sixteen.
_IMAGES, _PIXELS = 16, 4 * 224 * 224


class Unit(NamedTuple):
    """One unit of a layer, on one image.

    Attributes:
        image: Which of the images.
        layer: The layer's name.
        channel: Which feature map.
        row: Row in the feature map; with the column left out, too, the strongest unit of this feature map.
        column: Column in the feature map; of signals, which have one row (0), the position.
        activation: Its activation, where it is known; else the network is run to find it.
        depth: Of clips and volumes, the slice in the feature map.
    """

    image: int
    layer: str
    channel: int
    row: int | None = None
    column: int | None = None
    activation: float | None = None
    depth: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Projection:
    """Units, projected back to pixels.

    Attributes:
        method: How nonlinearities were passed.
        units: The units, with rows, columns and activations filled in.
        boxes: `(U, 4)` int64, receptive fields in the image: top, left, bottom, right, half-open, clipped; a signal is
            an image of one row. Of volumes `(U, 6)`: front, top, left, back, bottom, right.
        pixels: For each unit `(image channels, bottom - top, right - left)`, times the unit's activation; in units of
            the network's (normalized) input, with either sign. Everything outside the box is zero. Those of a monitor
            are float16, rounded to 11 bits, where their largest magnitude is from 0.01 to 60,000; else bfloat16,
            rounded to 8. Of signals `(image channels, right - left)`, of volumes `(image channels, depth, height,
            width)`.
        image_sizes: `(U, 2)` int64, height and width of each unit's image; `(U, 1)` of signals, `(U, 3)` of volumes.
    """

    method: Method
    units: tuple[Unit, ...]
    boxes: Tensor
    pixels: tuple[Tensor, ...]
    image_sizes: Tensor

    def __post_init__(self) -> None:
        if not len(self.units) == len(self.boxes) == len(self.pixels):
            raise ValueError(f"{len(self.units)} units, but {len(self.boxes)} boxes and {len(self.pixels)} projections")

    @classmethod
    def joined(cls, method: Method, parts: Sequence[tuple[Sequence[int], Projection]]) -> Projection:
        """Put parts together, in the order of their units' places.

        Args:
            method: How nonlinearities were passed.
            parts: Of each, the places of its units among all units, and the units projected. Of a place that several
                parts have, the first one's counts.
        """
        owners = {place: (part, own) for places, part in reversed(parts) for own, place in enumerate(places)}
        chosen = [owners[place] for place in sorted(owners)]
        return cls(
            method=method,
            units=tuple(part.units[own] for part, own in chosen),
            boxes=torch.stack([part.boxes[own] for part, own in chosen]) if chosen else torch.zeros(0, 4).long(),
            pixels=tuple(part.pixels[own] for part, own in chosen),
            image_sizes=torch.stack([part.image_sizes[own] for part, own in chosen])
            if chosen
            else torch.zeros(0, 2).long(),
        )

    def on_image(self, number: int) -> Tensor:
        """Return one projection in its place on the whole image `(C, H, W)`, zero elsewhere."""
        pixels = self.pixels[number]
        whole = pixels.new_zeros(len(pixels), *self.image_sizes[number])
        cropped(whole, self.boxes[number].tolist()).copy_(pixels)
        return whole


def project(
    model: nn.Module,
    images: Tensor | Sequence[Tensor] | Mapping[int, Tensor],
    units: Iterable[Unit | Sequence[Any]],
    *,
    method: Method = "deconvnet",
    layers: LayerSpec | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Projection:
    """Project units back to the pixels that caused them.

    All other units of the layer are set to zero, and what is left goes back through the network: convolutions through
    their transposed filters (without biases), BatchNorm as the constant scale that it is in eval mode, max pooling by
    its switches: each value returns to the place that its maximum came from. Where pooling windows overlap, values that
    meet in one place add up, as the transpose of a linear map has it (the paper does not say; torch's `MaxUnpool2d`
    keeps only the last one). Average pooling spreads evenly, sums and concatenations go on along each branch.

    Nonlinearities (ReLU in any spelling, ReLU6, `clamp(min=0)`, LeakyReLU, PReLU, ELU, SELU, CELU, GELU, SiLU, Mish,
    Hardswish, Softplus) are passed as the method says:

    - `"deconvnet"`: the signal is rectified, whatever went forward (Zeiler & Fergus 2013);
    - `"guided"`: rectified, and times the slope at what went forward (Springenberg et al. 2014);
    - `"gradient"`: times the slope (Simonyan et al. 2013).

    What else is not linear (sigmoid, softmax, a product of two feature maps as in squeeze-excite) passes its gradient.

    The network is left as it was. Work is done only where the signal can be: inside the receptive field, and only for
    what pooling, or the method, needs of the forward pass.

    Args:
        model: Any network that takes images `(N, C, H, W)`, signals `(N, C, L)`, or clips and volumes
            `(N, C, D, H, W)`; which of them, its convolutions say.
        images: `(N, C, H, W)`, or images `(C, H, W)` by number; float or uint8 (see `as_floats`).
        units: `Unit(image, layer, channel, row, column)`; without row and column the strongest of the feature map. Of
            volumes with `depth=...`.
        method: See above.
        layers: How the layers were chosen, where that was by kind (`"conv"`): then units are those behind a BatchNorm
            that directly follows the convolution, as `mine_top_patches` reads them. By default names are literal.
        progress: Wraps the iterable of batches of work to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once in a pass.
        ValueError: A unit lies outside its feature map or image outside of the images, the layer is not spatial, the
            network does not take such images, the method is unknown, or `"deconvnet"` has no nonlinearity to rectify.
        ProjectionError: The network computes something that cannot be followed back.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3))
        >>> projected = project(model, torch.rand(2, 1, 20, 20), [Unit(0, "3", 5, 2, 4), Unit(1, "3", 7)])
        >>> projected.pixels[0].shape, projected.on_image(0).shape
        (torch.Size([1, 8, 8]), torch.Size([1, 20, 20]))
    """
    wanted = [Unit(*unit) for unit in units]
    names = list(dict.fromkeys(unit.layer for unit in wanted))
    chosen = select_layers(model, names if layers is None else layers) if wanted else []
    by_name = {layer.name: layer for layer in chosen}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"units are of layers {missing}, which layers={layers!r} does not choose: {list(by_name)}")
    floats, layers_of = all_as_floats(model, images), [by_name[name] for name in names]
    if wanted and images_given(model) is not None:
        return _one_by_one(model, floats, wanted, layers_of, method, progress)
    return Projector(model, layers_of, method).project(floats, wanted, progress=progress)


def _one_by_one(
    model: nn.Module,
    images: Any,
    units: Sequence[Unit],
    layers: Sequence[SelectedLayer],
    method: Method,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None,
) -> Projection:
    """Project units of a network that is given each image with what else belongs to it."""
    _check_images(model, images, units)
    count, parts = images_given(model) or 0, []
    numbers = list(dict.fromkeys(unit.image for unit in units))
    missing = [number for number in numbers if not 0 <= number < count]
    if missing:
        raise ValueError(f"images {missing[:6]}: the batch that called(...) was given has {count}")
    for number in progress(numbers) if progress is not None else numbers:
        places = [place for place, unit in enumerate(units) if unit.image == number]
        with rows_of(model, number):
            own = Projector(model, layers, method).project(images, [units[place] for place in places])
        parts.append((places, own))
    return Projection.joined(method, parts)


class Projector:
    """Projects units of chosen layers; keeps what it has learned of the network for the next time.

    Args:
        model: The network.
        layers: From `select_layers`.
        method: See `project`.
        traced: What `trace_feature_maps` has found of all of them, where it has run, by the images' shape `(C, H, W)`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SelectedLayer],
        method: Method = "deconvnet",
        traced: Mapping[tuple[int, ...], Sequence[FeatureMaps]] | None = None,
    ) -> None:
        if method not in get_args(Method):
            raise WrongArgumentError(f"method={method!r}: it is one of {', '.join(map(repr, get_args(Method)))}")
        self._model, self._layers, self._method = model, list(layers), method
        self._traced = {shape: {own.layer: own for own in maps} for shape, maps in (traced or {}).items()}
        self._ways: dict[tuple[tuple[int, ...], tuple[str, ...]], _Way] = {}
        self._units_at_once: dict[tuple[tuple[int, ...], str], int] = {}

    def check(self, image: Tensor) -> None:
        """Try whether units of all layers can be projected, with one image `(1, C, H, W)`.

        Raises:
            ValueError: See `core.deconvnet.projection.project`.
            ProjectionError: Likewise.
        """
        with analysis_mode(self._model):
            self._way(image, list(self._feature_maps(image)))

    def project(
        self,
        images: Tensor | Sequence[Tensor] | Mapping[int, Tensor],
        units: Sequence[Unit],
        *,
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
        for_pictures: bool = False,
    ) -> Projection:
        """Project units; see `core.deconvnet.projection.project`.

        With `for_pictures`, pixels are rounded to half precision, which pictures do not show, see `Projection`: it is
        half of the memory, and of a record.
        """
        _check_images(self._model, images, units)
        device = model_device(self._model)
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, unit in enumerate(units):
            groups.setdefault(tuple(images[unit.image].shape), []).append(number)
        with analysis_mode(self._model):
            sides = 6 if image_axes(self._model) == 3 else 4
            boxes = torch.zeros(len(units), sides, dtype=torch.int64)
            results = _Results(list(units), boxes, _rounded if for_pictures else _as_they_are)
            work = [piece for shape, members in groups.items() for piece in self._plan(images, units, members, device)]
            for run in progress(work) if progress is not None else work:
                run(results)
                results.settle()
        sizes = torch.tensor([list(images[unit.image].shape[1:]) for unit in units], dtype=torch.int64)
        sizes = sizes if len(units) else sizes.view(0, 2)
        pixels = tuple(pixels for pixels in results.pixels if pixels is not None)
        units = tuple(results.units)
        return Projection(method=self._method, units=units, boxes=results.boxes, pixels=pixels, image_sizes=sizes)

    def _plan(self, images: Any, units: Sequence[Unit], members: list[int], device: torch.device) -> Iterator[Any]:
        """The pieces of work for units on images of one size."""
        first = images[units[members[0]].image][None].to(device)
        maps = self._feature_maps(first)
        for number in members:
            _check_unit(units[number], maps[units[number].layer])
        asked = {units[number].layer for number in members}
        names = [name for name in maps if name in asked]
        way, recorded = self._way(first, names)
        # Where the activation is given, and weights alone lead back, no pass is needed; else only a part of it.
        complete = [number for number in members if _is_complete(units[number])]
        ready = [number for number in complete if units[number].layer in way.free]
        # Recorded anew in each call, for weights may have changed.
        if complete and recorded is None:
            recorded = self._record(first, {name: maps[name] for name in names})
        tape = recorded[0] if recorded is not None else Tape(self._method)
        for name in names:
            own = [number for number in ready if units[number].layer == name]
            step = 16 * self._together(tape, name, len(own))
            for at in range(0, len(own), step):
                yield partial(self._back, tape, own[at : at + step], None, maps)
        by_image: dict[int, list[int]] = {}
        for number in sorted(set(members) - set(ready)):
            by_image.setdefault(units[number].image, []).append(number)
        queue = list(by_image.items())
        if recorded is not None and len(queue) == 1 and queue[0][0] == units[members[0]].image:
            yield partial(self._one_image, *recorded, queue[0], maps)
            return
        if not complete:
            tape = Tape(self._method)  # so that a pass that nobody needs any more is not kept
        step = _IMAGES if device.type != "cpu" else max(1, min(_IMAGES, _PIXELS // first[0, 0].numel()))
        step = step if way.batched else 1
        for at in range(0, len(queue), step):
            yield partial(self._in_parts, tape, images, queue[at : at + step], maps, device)

    def _in_parts(self, first: Tape, images: Any, chosen: Sequence[Any], *how: Any) -> None:
        """Project the units on some images; on fewer at a time where memory does not suffice."""
        in_chunks(lambda part: self._forth_and_back(first, images, chosen[part], *how), len(chosen))

    def _forth_and_back(
        self,
        first: Tape,
        images: Any,
        chosen: Sequence[tuple[int, list[int]]],
        maps: Mapping[str, FeatureMaps],
        device: torch.device,
        results: _Results,
    ) -> None:
        """Run some images as far as needed, and project the units on them."""
        numbers = [number for _, own in chosen for number in own]
        batch = torch.stack([images[image] for image, _ in chosen]).to(device)
        names = {results.units[number].layer for number in numbers}
        sites = {name: own for name, own in maps.items() if name in names}
        slots = {image: slot for slot, (image, _) in enumerate(chosen)}
        complete = all(_is_complete(results.units[number]) for number in numbers)
        tape, values = self._record(batch, sites, first.operations_with_data(names) if complete else None)
        if complete and not tape.complete(first):  # what a network does may depend on the image
            tape, values = self._record(batch, sites)
        if not complete:
            self._find(numbers, slots, values, results)
        self._back(tape, numbers, slots, maps, results)

    def _one_image(
        self,
        tape: Tape,
        values: Mapping[str, Tensor],
        chosen: tuple[int, list[int]],
        maps: Mapping[str, FeatureMaps],
        results: _Results,
    ) -> None:
        """Project the units on the one image that has been recorded."""
        image, numbers = chosen
        self._find(numbers, {image: 0}, values, results)
        self._back(tape, numbers, {image: 0}, maps, results)

    @staticmethod
    def _find(
        numbers: Sequence[int], slots: Mapping[int, int], values: Mapping[str, Tensor], results: _Results
    ) -> None:
        """Find out where units are that are the strongest of their feature maps, and how strong."""
        for number in numbers:
            unit = results.units[number]
            own = values[unit.layer][slots[unit.image], unit.channel]
            if unit.row is None or unit.column is None:
                places = [int(place) for place in torch.unravel_index(own.argmax(), own.shape)] if own.ndim else []
            else:
                places = [unit.depth or 0, unit.row, unit.column][3 - own.ndim :]
            activation = float(own[tuple(places)]) if unit.activation is None else unit.activation
            *depth, row, column = [0] * (2 - len(places)) + places
            deep = 0 if unit.depth is None and results.boxes.shape[1] == 6 else unit.depth
            results.units[number] = unit._replace(
                row=row, column=column, activation=activation, depth=depth[0] if depth else deep
            )

    def _back(
        self,
        tape: Tape,
        numbers: Sequence[int],
        slots: Mapping[int, int] | None,
        maps: Mapping[str, FeatureMaps],
        results: _Results,
    ) -> None:
        """Project units that belong to the images of a tape (or to none, where weights alone are needed)."""
        by_layer: dict[str, list[int]] = {}
        for number in numbers:
            by_layer.setdefault(results.units[number].layer, []).append(number)
        # The pass may run in half precision; the way back does not.
        with torch.autocast(tape.device.type, enabled=False):
            self._back_from(tape, by_layer, slots, maps, results)

    def _back_from(
        self,
        tape: Tape,
        by_layer: Mapping[str, list[int]],
        slots: Mapping[int, int] | None,
        maps: Mapping[str, FeatureMaps],
        results: _Results,
    ) -> None:
        for name, members in by_layer.items():
            units = [results.units[number] for number in members]
            seed = Seed(
                slots=torch.tensor([0 if slots is None else slots[unit.image] for unit in units]),
                channels=torch.tensor([unit.channel for unit in units]),
                rows=torch.tensor([unit.row for unit in units]),
                columns=torch.tensor([unit.column for unit in units]),
                depths=torch.tensor([unit.depth or 0 for unit in units]),
            )
            field = maps[name].field
            deep = () if len(field.image_size) == 2 else (seed.depths,)
            boxes = field.box(seed.channels, *deep, seed.rows, seed.columns).to(torch.int64)
            results.boxes[members] = boxes

            def project(
                part: slice,
                name: str = name,
                members: list[int] = members,
                units: list[Unit] = units,
                seed: Seed = seed,
                boxes: Tensor = boxes,
            ) -> None:
                pixels, starts = tape.project(name, seed.part(part))
                strengths = torch.tensor([unit.activation for unit in units[part]], dtype=pixels.dtype)
                pixels = (pixels.cpu() if pixels.device.type != "cpu" else pixels) * strengths.view(
                    -1, *[1] * (pixels.ndim - 1)
                )
                places = zip(members[part], boxes[part].tolist(), torch.stack(starts, 1).tolist(), strict=True)
                for values, (number, box, start) in zip(pixels, places, strict=True):
                    results.keep(number, _cut(values, box, start))

            in_chunks(project, len(members), self._together(tape, name, len(members)), "unit")

    def _record(
        self, images: Tensor, maps: Mapping[str, FeatureMaps], enough: int | None = None
    ) -> tuple[Tape, dict[str, Tensor]]:
        """Run images as far as the last of some layers, or so many operations; return the tape, and feature maps."""
        tape, values = Tape(self._method), dict[str, Tensor]()
        images = images.clone()  # the network may write into them

        def keep(layer: str, value: Any) -> None:
            if layer not in values:
                tape.mark(layer, value)
                # A copy, where it will be read: what follows may write into it.
                values[layer] = tape.copy(value) if enough is None else value
            if len(values) == len(maps):
                raise FarEnough

        with tape.record(images, enough=enough), hooked({name: own.site for name, own in maps.items()}, keep):
            self._model(images)
        return tape, values

    def _feature_maps(self, image: Tensor) -> dict[str, FeatureMaps]:
        shape = tuple(image.shape[1:])
        if shape not in self._traced:
            traced = trace_feature_maps(self._model, image, self._layers)
            self._traced[shape] = {maps.layer: maps for maps in traced}
        return self._traced[shape]

    def _way(self, image: Tensor, names: Sequence[str]) -> tuple[_Way, tuple[Tape, dict[str, Tensor]] | None]:
        """What one image tells of the way back from some layers; and its recorded pass, where there was one."""
        key, recorded = (tuple(image.shape), tuple(names)), None
        if key not in self._ways:
            maps = self._feature_maps(image)
            recorded = self._record(image, {name: maps[name] for name in names})
            tape = recorded[0]
            self._check_method(tape, names)
            for name in names:
                if not tape.follows_windows(name):
                    log.debug("the way back from layer '%s' leaves windows: it is followed over whole maps", name)
            self._ways[key] = _Way(
                frozenset(name for name in names if not tape.needs_data(name)),
                all(tape.batched(name) for name in names),
            )
        return self._ways[key], recorded

    def _check_method(self, tape: Tape, names: Sequence[str]) -> None:
        for name in names:
            if self._method == "deconvnet" and tape.convolutions(name) > 1 and not tape.rectifies(name):
                raise ValueError(
                    f"no deconvnet: between layer '{name}' and the pixels there is no ReLU or similar "
                    "nonlinearity to rectify at; project(..., method='gradient') is the plain gradient"
                )

    def _together(self, tape: Tape, name: str, wanted: int) -> int:
        """How many units of a layer go back together, of so many that are wanted: tried with one, once a size."""
        if wanted <= 1:
            return 1
        key = tape.image_size, name
        if key not in self._units_at_once:
            self._units_at_once[key] = self._fitting(tape, name)
        return self._units_at_once[key]

    @staticmethod
    def _fitting(tape: Tape, name: str) -> int:
        """How many units of a layer fit into caches, or memory."""
        widest = 1

        def watch(elements: int) -> None:
            nonlocal widest
            widest = max(widest, elements)

        zero = torch.zeros(1, dtype=torch.int64)
        tape.project(name, Seed(slots=zero, channels=zero, rows=zero, columns=zero, depths=zero), watch=watch)
        room = numbers_at_once(tape.device)
        if tape.device.type != "cpu":
            return max(1, min(_UNITS_ON_GPU, room // widest))
        few = min(_FEW, min(_MOST_ELEMENTS, room) // widest)
        return max(1, few, min(_UNITS, min(_ELEMENTS, room) // widest))


@dataclass(frozen=True)
class _Way:
    """The way back from some layers, for one size of image.

    Attributes:
        free: Layers from which weights alone lead back.
        batched: Whether images can be run together.
    """

    free: frozenset[str]
    batched: bool


class _Results:
    """What has been projected so far.

    Args:
        units: The units.
        boxes: `(U, 4)` int64, to be filled in.
        rounded: What is kept of pixels.

    Attributes:
        pixels: Of each unit; None where it has not been projected yet.
    """

    def __init__(self, units: list[Unit], boxes: Tensor, rounded: Callable[[Tensor], Tensor]) -> None:
        self.units, self.boxes, self._rounded = units, boxes, rounded
        self.pixels: list[Tensor | None] = [None] * len(units)
        self._loose: list[int] = []

    def keep(self, number: int, pixels: Tensor) -> None:
        """Keep the pixels of a unit."""
        self.pixels[number] = self._rounded(pixels)
        self._loose.append(number)

    def settle(self) -> None:
        """Put what was kept since the last time side by side into one piece of memory.

        Thousands of small ones, each among what the network needed at that moment, leave gaps that nobody can use: of
        2.0 GB of projections, 2.9 GB.
        """
        kinds: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
        for number in self._loose:
            pixels = self.pixels[number]
            if pixels is not None:
                kinds.setdefault(pixels.dtype, []).append((number, pixels))
        for members in kinds.values():
            # Copied one by one: autocast does not join every kind of number.
            together = members[0][1].new_empty(sum(pixels.numel() for _, pixels in members))
            parts = together.split([pixels.numel() for _, pixels in members])
            for (number, pixels), part in zip(members, parts, strict=True):
                self.pixels[number] = part.view(pixels.shape).copy_(pixels)
        self._loose = []


def _as_they_are(pixels: Tensor) -> Tensor:
    return pixels


def _rounded(pixels: Tensor) -> Tensor:
    """Half precision; where values that can be seen beside the largest one would be lost, a coarser one."""
    largest = float(pixels.abs().max()) if pixels.numel() else 0.0
    return pixels.half() if largest == 0 or 0.01 <= largest <= 60_000 else pixels.bfloat16()


def _is_complete(unit: Unit) -> bool:
    """Whether a pass need not tell where the unit is, and what its activation."""
    return None not in (unit.row, unit.column, unit.activation)


def _cut(values: Tensor, box: Sequence[int], start: Sequence[int]) -> Tensor:
    """The part `(C, h, w)` of a signal that begins at `start`, one number an axis, which lies in a box."""
    size = values.shape[1:]
    inside = box_slices(box, len(size))
    ends = [(own.start - first, own.stop - first) for own, first in zip(inside, start, strict=True)]
    if all(first >= 0 and last <= length for (first, last), length in zip(ends, size, strict=True)):
        index = (slice(None), *(slice(*pair) for pair in ends))
        part = values[index]
        return part.clone(memory_format=torch.contiguous_format) if part.numel() < values.numel() else part.contiguous()
    # The box may be larger than what the signal reached, where an operation's true reach is not known.
    pad = [(max(0, -first), max(0, last - length)) for (first, last), length in zip(ends, size, strict=True)]
    padded = F.pad(values, [number for pair in reversed(pad) for number in pair])
    index = (slice(None), *(slice(max(first, 0), max(first, 0) + last - first) for first, last in ends))
    return padded[index].contiguous()


def _check_images(model: nn.Module, images: Any, units: Sequence[Unit]) -> None:
    axes = image_axes(model)
    for unit in units:
        missing = unit.image not in images if isinstance(images, Mapping) else not 0 <= unit.image < len(images)
        if missing:
            raise ValueError(f"{unit}: there is no image {unit.image}; there are {len(images)}")
        image = images[unit.image]
        if not isinstance(image, Tensor) or image.ndim != axes + 1 or not image.is_floating_point():
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            kinds = {1: "signals are float tensors (C, L)", 2: "images are float tensors (C, H, W)"}
            taken = kinds.get(axes, "clips and volumes are float tensors (C, D, H, W)")
            why = other_dimensions(model)
            raise ValueError(f"image {unit.image} is {got}; {taken}" + (f"; {why}" if why else ""))


def _check_unit(unit: Unit, maps: FeatureMaps) -> None:
    deep = len(maps.shape) == 4
    given = [unit.row, unit.column, *([unit.depth] if deep else [])]
    if len({place is None for place in given}) > 1:
        which = "depth, row and column, or none of them" if deep else "both row and column, or neither"
        raise ValueError(f"{unit}: give {which} for the strongest unit")
    shape = maps.shape if len(maps.shape) > 2 else (maps.shape[0], 1, maps.shape[1])  # a signal is one row
    names, places = ["channel", "row", "column"], [unit.channel, unit.row, unit.column]
    if deep:
        names.insert(1, "depth")
        places.insert(1, unit.depth)
    for name, value, size in zip(names, places, shape, strict=True):
        if value is not None and not 0 <= value < size:
            raise ValueError(
                f"{unit}: {name} {value} is outside of layer '{unit.layer}', whose feature maps are "
                f"{' x '.join(map(str, shape))} ({', '.join(f'{own}s' for own in names)})"
            )
