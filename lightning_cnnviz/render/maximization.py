"""Maximizing inputs as a report: several starts side by side, beside the strongest real image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_cnnviz.core.maximization.maximize import Maximization
from lightning_cnnviz.core.maximization.optimum import OptimumInvariance
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import brief, place_patch, placed_at, to_gray_centered
from lightning_cnnviz.report import Curve, Gallery, Item, Number, Report, Row, Scalar, Series, Tile

__all__ = ["invariance_items", "maximization_report", "maximization_scalars"]

# A chart of more objectives than this shows their median and quartiles.
_SINGLE_LINES = 7
# Steps are averaged to so many points: each one saw the image under another transform.
_POINTS = 32
# So wide, in pixels, a tile has room for its caption.
_SIDE = 96
# What lies outside a unit's receptive field, in a layer where others have larger ones: as light as the sheet's paper.
_UNSEEN = 243


def maximization_report(layers: Sequence[MaximizedLayer], normalization: Normalization, *, compared: int = 0) -> Report:
    """Draw each layer as a gallery, a row an objective, with the ascent as a curve.

    Activations are given in multiples of the strongest real image's, where there is one and it is above zero.

    Args:
        layers: One for each layer, and for the classes.
        normalization: How inputs are shown.
        compared: Among how many real images the strongest were looked for.
    """
    items: list[Item] = []
    strange = [layer.name for layer in layers if not bool(layer.optima.activations.isfinite().all())]
    notes = [f"Not finite: activations are NaN or infinite at {', '.join(strange)}."] if strange else []
    notes.append(normalization.sentence())
    if any(layer.strongest is not None for layer in layers):
        notes.append("Blue is what lies beyond a real image's border.")
    for layer in layers:
        items += [_gallery(layer, normalization, compared), _ascent(layer), *maximization_scalars([layer])]
        for number, invariance in layer.invariances:
            if invariance.linear:
                notes.append(
                    f"{invariance.objective}, is linear about its optimum: all changes of it cost the same, and none "
                    "is drawn."
                )
            else:
                channel = layer.channels[number] if layer.channels else None
                name = f"{layer.name}/{layer.captions[number] if channel is None else f'channel {channel}'}"
                items += invariance_items(name, invariance, normalization, layer=_layer(layer), channel=channel)
    notes += [
        f"{layer.name.capitalize() if layer.name == 'classes' else layer.name}: {layer.task.sentence()}"
        for layer in layers
        if layer.task is not None
    ]
    if compared:
        notes.append(
            f'8x is 8 times the activation of the strongest of {compared} real images, the last of each row; "of '
            'strongest real" is the median of that. "Spread of starts" is how far an objective\'s weakest start ends '
            "below its best one, in parts of the best, the median over objectives."
        )
    if any(not invariance.linear for layer in layers for _, invariance in layer.invariances):
        notes.append(
            "Invariance: the optimum is turned on the sphere of inputs of its norm, toward eigenvectors of the "
            "activation's Hessian there; at 0° it is the optimum itself. Random directions cost little, since a unit "
            "hardly sees most of them. Curvature is the second derivative of the activation by that angle, in radians, "
            "and below zero where turning costs activation; where nothing is seen, it is that of a direction that the "
            "unit does not see. Alignment is the cosine between the gradient and the optimum: 1 where the optimum is "
            "one."
        )
    return Report("maximization", title="Activation maximization", items=tuple(items), notes=tuple(notes))


def invariance_items(
    name: str,
    invariance: OptimumInvariance,
    normalization: Normalization,
    *,
    layer: str = "",
    channel: int | None = None,
) -> list[Item]:
    """Draw how a unit's optimum may change: a row of pictures a direction, and the activation along it."""
    degrees = [math.degrees(angle) for angle in invariance.angles.tolist()]
    rows, lines = [], []
    kinds = _directions(invariance)
    for direction, kind in enumerate(kinds):
        activations = invariance.activations[direction].tolist()
        tiles = tuple(
            Tile(
                normalization.to_pixels(invariance.seen(direction, point)),
                caption=f"{_signed(degrees[point])}° {_part(activations[point], invariance.activation)}",
                numbers={"angle in degrees": degrees[point], "activation": activations[point]},
            )
            for point in range(len(degrees))
        )
        # What is turned toward: the optimum's own part cancels out between opposite angles.
        toward = to_gray_centered(invariance.seen(direction, -1) - invariance.seen(direction, 0))
        tiles += (Tile(toward, "direction"),)
        curvature = {"curvature": float(invariance.curvatures[direction])}
        rows.append(Row(f"{kind} effect", tiles, curvature, channel=channel))
        lines.append(Series(f"{kind} effect", x=tuple(degrees), y=tuple(activations)))
    lines.append(Series("random directions", x=tuple(degrees), y=tuple(invariance.random.tolist())))
    caption = (
        f"The optimum of {invariance.objective} (activation {brief(invariance.activation)}), turned toward the "
        "directions that change it least and most"
    )
    numbers: dict[str, Number] = {
        "curvature where nothing is seen": invariance.unseen,
        "alignment": invariance.alignment,
    }
    return [
        Gallery(
            f"{name}/invariance",
            tuple(rows),
            caption=caption,
            numbers=numbers,
            columns=len(degrees) + 1,
            tile_side=_SIDE,
            layer=layer,
            named=True,
        ),
        Curve(
            f"{name}/invariance",
            tuple(lines),
            x_label="angle from the optimum, in degrees",
            y_label="activation",
            caption=f"{invariance.objective}, about its optimum on the sphere of inputs of one norm",
            layer=layer,
        ),
    ]


def _directions(invariance: OptimumInvariance) -> list[str]:
    most = len(invariance.curvatures) - invariance.least
    return [_nth(place, "least") for place in range(invariance.least)] + [_nth(place, "most") for place in range(most)]


def _nth(place: int, kind: str) -> str:
    words = ("", "second ", "third ")
    return f"{words[place]}{kind}" if place < len(words) else f"{place + 1}th {kind}"


def _gallery(layer: MaximizedLayer, normalization: Normalization, compared: int) -> Gallery:
    optima, real = layer.optima, layer.strongest
    sizes = [_field_size(layer, objective) for objective in range(len(optima))]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    rows = []
    for objective, (caption, field) in enumerate(zip(layer.captions, sizes, strict=True)):
        order = optima.ranked(objective)
        scale = float("nan") if real is None else float(real.activations[objective])
        tiles = [
            replace(_tile(optima, number, scale, normalization, field), shows="optimum", rank=rank)
            for rank, number in enumerate(order)
        ]
        numbers: dict[str, Number] = {"activation": float(optima.activations[order[0]])}
        if real is not None:
            pixels, box = normalization.to_pixels(real.patches[objective]), real.boxes[objective]
            figures: dict[str, Number] = {"activation": scale, "image": int(real.numbers[objective])}
            tile = _placed(pixels, box, field, f"real {brief(scale)}", figures)
            tiles.append(replace(tile, shows="strongest image", rank=0))
            numbers["strongest real"] = scale
        tiles = [_centered(tile, (height, width)) for tile in tiles]
        channel = layer.channels[objective] if layer.channels else None
        rows.append(Row(caption, tuple(tiles), numbers, channel=channel))
    what = "One start" if optima.starts == 1 else f"{optima.starts} starts, the highest activation first"
    text = f"{what}, {optima.history.shape[1]} steps of gradient ascent each; {width} x {height} px"
    if layer.among is not None:
        kind = "classes" if not _layer(layer) else "feature maps"
        text = f"{len(layer.captions)} of {layer.among} {kind}; {text[0].lower()}{text[1:]}"
    if real is not None:
        text += f"; last, the strongest of {compared} real images" if compared else "; last, the strongest real image"
    columns = optima.starts + (real is not None)
    name, of = layer.name, _layer(layer)
    return Gallery(name, tuple(rows), caption=text, columns=columns, tile_side=_SIDE, layer=of, named=True)


def _layer(layer: MaximizedLayer) -> str:
    """The layer's name, "" for the classes."""
    return layer.name if any(channel is not None for channel in layer.channels) else ""


def _tile(optima: Maximization, number: int, scale: float, normalization: Normalization, size: tuple[int, int]) -> Tile:
    activation = float(optima.activations[number])
    figures: dict[str, Number] = {"activation": activation, "start": number % optima.starts}
    caption = brief(activation)
    if scale > 0:
        figures["of the strongest real"] = activation / scale
        caption = f"{brief(activation)} = {brief(activation / scale)}x"
    box = optima.boxes[number // optima.starts]
    return _placed(normalization.to_pixels(optima.seen(number)), box, size, caption, figures)


def _placed(pixels: Tensor, box: Tensor, size: tuple[int, int], caption: str, figures: dict[str, Number]) -> Tile:
    return Tile(place_patch(pixels, box, size), caption, figures, inside=placed_at(box, size))


def _field_size(layer: MaximizedLayer, objective: int) -> tuple[int, int]:
    """What an objective can see: the larger of what it saw in the made image and in the real one."""
    boxes = [layer.optima.boxes[objective]]
    if layer.strongest is not None:
        boxes.append(layer.strongest.boxes[objective])
    return max(int(box[2] - box[0]) for box in boxes), max(int(box[3] - box[1]) for box in boxes)


def _centered(tile: Tile, size: tuple[int, int]) -> Tile:
    """Put what an objective sees in the middle of a tile for what others see: in a layer, fields may differ."""
    height, width = tile.size
    if (height, width) == size:
        return tile
    pixels = torch.full((3, *size), _UNSEEN, dtype=torch.uint8)
    down, across = (size[0] - height) // 2, (size[1] - width) // 2
    pixels[:, down : down + height, across : across + width] = tile.pixels
    top, left, bottom, right = tile.inside or (0, 0, height, width)
    return replace(tile, pixels=pixels, inside=(top + down, left + across, bottom + down, right + across))


def _ascent(layer: MaximizedLayer) -> Curve:
    """The best start of each objective over the steps."""
    optima, scales = layer.optima, _scales(layer)
    best = [optima.ranked(objective)[0] for objective in range(len(optima))]
    histories = optima.history[best].double() / (1 if scales is None else scales[:, None])
    places = torch.arange(histories.shape[1]).chunk(min(_POINTS, histories.shape[1]))
    steps = tuple(float(part.double().mean()) + 1 for part in places)
    lines = torch.stack([histories[:, part].mean(1) for part in places], 1)
    if len(lines) <= _SINGLE_LINES:
        series = tuple(
            Series(caption, x=steps, y=tuple(line.tolist()))
            for caption, line in zip(layer.captions, lines, strict=True)
        )
    else:
        low, middle, high = (tuple(lines.quantile(part, 0).tolist()) for part in (0.25, 0.5, 0.75))
        series = (Series(f"median of {len(lines)}", x=steps, y=middle, low=low, high=high),)
    band = "" if len(lines) <= _SINGLE_LINES else "; the band holds the middle half"
    return Curve(
        f"{layer.name}/steps",
        series,
        x_label="step",
        y_label="activation" if scales is None else "activation / that of the strongest real image",
        caption=f"The best start of each, under the transforms that it has to stand{band}",
        layer=_layer(layer),
    )


def maximization_scalars(layers: Sequence[MaximizedLayer]) -> list[Scalar]:
    """Return the numbers of each layer to follow over time; NaN where an activation is not finite."""
    return [scalar for layer in layers for scalar in _layer_scalars(layer)]


def _layer_scalars(layer: MaximizedLayer) -> list[Scalar]:
    optima, scales = layer.optima, _scales(layer)
    by_start = optima.activations.view(len(optima), optima.starts).double()
    best, worst = by_start.amax(1), by_start.amin(1)
    finite = bool(by_start.isfinite().all())
    best = best if finite else best * math.nan
    spread = ((best - worst) / best.abs()).nanmedian() if optima.starts > 1 else torch.tensor(math.nan)
    figures = [
        Scalar(f"{layer.name}/activation", float(best.nanmedian()), layer=_layer(layer)),
        Scalar(f"{layer.name}/spread_of_starts", float(spread), layer=_layer(layer)),
    ]
    if layer.strongest is not None:
        ratio = math.nan if scales is None else float((best / scales).nanmedian())
        figures.append(Scalar(f"{layer.name}/of_strongest_real", ratio, layer=_layer(layer)))
    return figures


def _scales(layer: MaximizedLayer) -> Tensor | None:
    """The strongest real activations, where all are above zero: else ratios would mislead."""
    if layer.strongest is None or not bool((layer.strongest.activations > 0).all()):
        return None
    return layer.strongest.activations.double()


def _signed(degrees: float) -> str:
    return f"{degrees:+.0f}" if round(degrees) else "0"


def _part(value: float, whole: float) -> str:
    return f"{100 * value / whole:.0f}%" if whole > 0 else brief(value)
