"""Two networks beside each other, as a report: which layers are alike, and which units changed most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_cnnviz.core.comparison.units import LayerComparison, UnitComparison
from lightning_cnnviz.render.figures import figure_pixels, new_figure, shorten
from lightning_cnnviz.render.vector import late_svg
from lightning_cnnviz.report import Curve, Item, LayerFacts, Number, Picture, Report, Scalar, Series, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_report", "comparison_scalars"]

_MOST_NAMES = 60  # layers, up to which axes carry their names
_UNITS = 10  # of each layer, in the table
_CELL = 0.3  # inches, of a matrix of few layers
_SIDE = 6.0  # inches, of one of many


def comparison_report(result: UnitComparison) -> Report:
    """Draw CKA of all pairs of layers, likeness by depth, and the units of each layer that changed most.

    Scalars are each layer's CKA and its channels' mean correlation.

    Example:
        >>> layer = LayerComparison(
        ...     layer="conv",
        ...     other="conv",
        ...     cka=0.9,
        ...     correlation=torch.tensor([0.2, 0.99]),
        ...     partners=torch.tensor([0, 1]),
        ...     partner_correlation=torch.tensor([0.2, 0.99]),
        ...     chance=0.1,
        ... )
        >>> found = UnitComparison(
        ...     layers=(layer,), other_layers=("conv",), cka=torch.tensor([[0.9]]), same_units=True, images=50
        ... )
        >>> comparison_report(found).items[-1].rows[0]
        ('conv', 0, 0.2, 'conv', 0, 0.2)
    """
    items: list[Item] = [_matrix(result), _by_depth(result), _layers(result)]
    items += [*comparison_scalars(result), _units(result)]
    facts = tuple(_facts(layer) for layer in result.layers)
    return Report(
        "comparison", title="Two networks, unit by unit", items=tuple(items), notes=_notes(result), facts=facts
    )


def comparison_scalars(result: UnitComparison) -> list[Scalar]:
    """Return each layer's CKA, and its channels' mean correlation."""
    scalars = []
    for layer in result.layers:
        scalars += [
            Scalar(f"{layer.layer}/cka", layer.cka, layer=layer.layer),
            Scalar(f"{layer.layer}/correlation", _mean(layer), layer=layer.layer),
        ]
    return scalars


def _mean(layer: LayerComparison) -> float:
    return float(layer.similarity.nanmean())


def _facts(layer: LayerComparison) -> LayerFacts:
    """How alike each channel is to its counterparts, also of those that are not shown."""
    likeness = {"same channel r": layer.correlation, "best match r": layer.partner_correlation}
    known = {name: tuple(values.tolist()) for name, values in likeness.items() if not bool(values.isnan().all())}
    return LayerFacts(layer=layer.layer, numbers={"compared with": layer.other, "CKA": layer.cka}, channels=known)


def _by_depth(result: UnitComparison) -> Curve:
    depth = tuple(float(place) for place in range(1, len(result.layers) + 1))
    lines = {"CKA of the layer": [layer.cka for layer in result.layers]}
    if result.same_units:
        lines["channels of the same number"] = [_mean(layer) for layer in result.layers]
    lines["channels matched one to one"] = [float(layer.partner_correlation.nanmean()) for layer in result.layers]
    lines["matched, images shuffled"] = [layer.chance for layer in result.layers]
    return Curve(
        "likeness by depth",
        tuple(Series(name, x=depth, y=tuple(values)) for name, values in lines.items()),
        x_label="layer, in order of depth",
        y_label="CKA, and mean correlation r",
        caption=f"1 is the same, 0 nothing in common; over {result.images:,} images",
        x_names=tuple(layer.layer for layer in result.layers),
    )


def _layers(result: UnitComparison) -> Table:
    own = ("same number r",) if result.same_units else ()
    columns = ("layer", "compared with", "channels", "CKA", *own, "matched r", "by chance r")
    rows = []
    for layer in result.layers:
        numbers = [layer.cka, *([_mean(layer)] if own else []), float(layer.partner_correlation.nanmean())]
        cells: list[Number] = [layer.layer, layer.other, len(layer.partners)]
        rows.append((*cells, *(round(value, 4) for value in (*numbers, layer.chance))))
    return Table("layers", columns, tuple(rows), caption="How alike each layer is as a whole, and its channels")


def _units(result: UnitComparison) -> Table:
    """The units of each layer that changed most; those of which nothing is known stand in no line."""
    rows = []
    for layer in result.layers:
        for channel in layer.changed[:_UNITS].tolist():
            if layer.similarity[channel].isnan():
                continue
            own = round(float(layer.correlation[channel]), 4) if result.same_units else None
            partner = int(layer.partners[channel])
            match = round(float(layer.partner_correlation[channel]), 4) if partner >= 0 else None
            rows.append((layer.layer, channel, own, layer.other, partner if partner >= 0 else None, match))
    return Table(
        "changed_most",
        ("layer", "channel", "same number r", "compared with", "best partner", "partner r"),
        tuple(rows),
        caption=f"Up to {_UNITS} channels of each layer that are least like their counterpart",
    )


def _notes(result: UnitComparison) -> tuple[str, ...]:
    notes = [
        f"Both networks saw the same {result.images:,} images. Of each image and channel, one number counts: the mean "
        "of the feature map. r is Pearson's correlation of two channels over the images.",
        "Channels are matched one to one so that the sum of r is largest. Matching finds some likeness in anything: "
        "what it finds with one network's images shuffled stands beside it.",
        "CKA compares layers as a whole (Kornblith et al., 2019), whatever way their channels are mixed; its unbiased "
        "estimate is 0 on average for layers that have nothing in common, and can be a little below.",
    ]
    if not result.same_units:
        notes.append(
            "The networks have other layers, so that a channel's number means nothing: each layer is compared with the "
            "one of the highest CKA, and its channels with their partners there."
        )
    if result.left_out:
        notes.append(f"Left out, since their features are NaN or infinite: {result.left_out:,} images.")
    return tuple(notes)


# The picture


def _matrix(result: UnitComparison) -> Picture:
    size = f"{len(result.layers)} x {len(result.other_layers)} layers"
    drawn, svg = _drawn(result)
    return Picture("cka", drawn, caption=f"Linear CKA of {size} over {result.images:,} images", svg=svg)


def _drawn(result: UnitComparison) -> tuple[Tensor, Any]:
    rows, columns = result.cka.shape
    cell = min(_CELL, _SIDE / max(rows, columns))
    height, width = max(rows * cell, 1.5), max(columns * cell, 1.5)
    with new_figure(width + 2.2, height + 1.6) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(result.cka.clamp(0, 1), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        _name_axes(axes, [layer.layer for layer in result.layers], result.other_layers)
        bar = figure.colorbar(image, ax=axes)
        bar.set_label("linear CKA")
        bar.outline.set_visible(False)
        axes.set_title("Which layers are alike", loc="left", fontsize=12, fontweight="bold")
        return figure_pixels(figure), late_svg(figure)


def _name_axes(axes: Axes, names: list[str], others: tuple[str, ...]) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_ylabel("layers of the first network")
    axes.set_xlabel("layers of the other network")
    size = 8 if max(len(names), len(others)) <= math.ceil(_SIDE / _CELL) else 5
    if len(names) <= _MOST_NAMES:
        axes.set_yticks(range(len(names)), [shorten(name, 24) for name in names], fontsize=size)
    else:
        axes.set_yticks([])
    if len(others) <= _MOST_NAMES:
        axes.set_xticks(range(len(others)), [shorten(name, 24) for name in others], fontsize=size, rotation=90)
    else:
        axes.set_xticks([])
