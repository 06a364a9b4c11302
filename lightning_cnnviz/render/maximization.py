"""Maximizing inputs as a report: several starts side by side, beside the strongest real image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_cnnviz.core.maximization.maximize import Maximization, cut
from lightning_cnnviz.core.maximization.optimum import OptimumInvariance
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import brief
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
    frame = Frame.of([layer.optima.images[0] for layer in layers], normalization)
    notes += [normalization.sentence()] if frame.is_image else frame.notes(normalization)
    if frame.is_image and any(layer.strongest is not None for layer in layers):
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
    kinds, box = _directions(invariance), _with_row(invariance.box)
    frame = Frame.of([cut(image, invariance.box) for image in invariance.images.flatten(0, 1)], normalization)
    for direction, kind in enumerate(kinds):
        activations = invariance.activations[direction].tolist()
        tiles = tuple(
            Tile(
                frame.patch(invariance.seen(direction, point), box, normalization),
                caption=f"{_signed(degrees[point])}° {_part(activations[point], invariance.activation)}",
                numbers={"angle in degrees": degrees[point], "activation": activations[point]},
            )
            for point in range(len(degrees))
        )
        # What is turned toward: the optimum's own part cancels out between opposite angles.
        toward = invariance.seen(direction, -1) - invariance.seen(direction, 0)
        tiles += (Tile(frame.projection(toward, box), "direction"),)
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
            enlarge=frame.is_image,
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
    parts = [_parts(layer, objective) for objective in range(len(optima))]
    whole, rows = Frame.of([part for own in parts for part in own], normalization), []
    for objective, caption in enumerate(layer.captions):
        frame = replace(Frame.of(parts[objective], normalization), span=whole.span)
        order = optima.ranked(objective)
        scale = float("nan") if real is None else float(real.activations[objective])
        tiles = [
            replace(_tile(optima, number, scale, frame, normalization), shows="optimum", rank=rank)
            for rank, number in enumerate(order)
        ]
        numbers: dict[str, Number] = {"activation": float(optima.activations[order[0]])}
        if real is not None:
            figures: dict[str, Number] = {"activation": scale, "image": int(real.numbers[objective])}
            tile = _placed(real.patches[objective], real.boxes[objective], frame, normalization)
            caption_of = f"real {brief(scale)}"
            tiles.append(replace(tile, caption=caption_of, numbers=figures, shows="strongest image", rank=0))
            numbers["strongest real"] = scale
        channel = layer.channels[objective] if layer.channels else None
        rows.append(Row(caption, tuple(tiles), numbers, channel=channel))
    rows = _of_one_size(rows)
    extent = f"{whole.lengths[1]} x {whole.lengths[0]} px" if whole.is_image else whole.said
    what = "One start" if optima.starts == 1 else f"{optima.starts} starts, the highest activation first"
    text = f"{what}, {optima.history.shape[1]} steps of gradient ascent each; {extent}"
    if layer.among is not None:
        kind = "classes" if not _layer(layer) else "feature maps"
        text = f"{len(layer.captions)} of {layer.among} {kind}; {text[0].lower()}{text[1:]}"
    if real is not None:
        text += f"; last, the strongest of {compared} real images" if compared else "; last, the strongest real image"
    columns = optima.starts + (real is not None)
    name, of = layer.name, _layer(layer)
    sized: Any = {"columns": columns, "tile_side": _SIDE, "enlarge": whole.is_image}
    return Gallery(name, tuple(rows), caption=text, layer=of, named=True, **sized)


def _layer(layer: MaximizedLayer) -> str:
    """The layer's name, "" for the classes."""
    return layer.name if any(channel is not None for channel in layer.channels) else ""


def _parts(layer: MaximizedLayer, objective: int) -> list[Tensor]:
    """What an objective could see: of the made images, and of the real one."""
    numbers = range(*layer.optima.of(objective).indices(len(layer.optima.images)))
    made = [layer.optima.seen(number) for number in numbers]
    return made if layer.strongest is None else [*made, layer.strongest.patches[objective]]


def _tile(optima: Maximization, number: int, scale: float, frame: Frame, normalization: Normalization) -> Tile:
    activation = float(optima.activations[number])
    figures: dict[str, Number] = {"activation": activation, "start": number % optima.starts}
    caption = brief(activation)
    if scale > 0:
        figures["of the strongest real"] = activation / scale
        caption = f"{brief(activation)} = {brief(activation / scale)}x"
    box = optima.boxes[number // optima.starts]
    return replace(_placed(optima.seen(number), box, frame, normalization), caption=caption, numbers=figures)


def _placed(part: Tensor, box: Tensor, frame: Frame, normalization: Normalization) -> Tile:
    box = _with_row(box)
    return Tile(frame.patch(part, box, normalization), inside=frame.inside(box))


def _with_row(box: Tensor) -> Tensor:
    """A box of a signal, first and last sample, as that of an image of one row; any other as it is."""
    return torch.stack([box.new_tensor(0), box[0], box.new_tensor(1), box[1]]) if len(box) == 2 else box


def _of_one_size(rows: Sequence[Row]) -> list[Row]:
    sizes = [tile.size for row in rows for tile in row.tiles]
    size = max(height for height, _ in sizes), max(width for _, width in sizes)
    return [replace(row, tiles=tuple(_centered(tile, size) for tile in row.tiles)) for row in rows]


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
