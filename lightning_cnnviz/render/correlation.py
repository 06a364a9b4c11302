"""Correlations of channels as a report: which channels of a layer say the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnviz.core.images.correlation import ChannelCorrelation
from lightning_cnnviz.render.figures import figure_pixels, fit_square, new_figure, shorten
from lightning_cnnviz.render.vector import late_svg
from lightning_cnnviz.report import Item, LayerFacts, Picture, Report, Scalar, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["correlation_report", "correlation_scalars"]

_SIDE = 640  # pixels of the matrix, where its cells allow it
_MOST_CELLS = 1024  # a side; of more channels, a cell stands for several
_MOST_NAMES = 40  # channels, up to which axes carry their numbers
_NEIGHBORS = 6  # of each channel
_PAIRS = 10  # of each layer, in the table
_CONSTANT_COLOR = "#8f8f8b"
_DPI = 110


def correlation_report(results: Sequence[ChannelCorrelation]) -> Report:
    """Draw a picture of each layer's correlations, with a table of the pairs of channels that are most alike.

    Scalars are the redundant and the constant channels of each layer as fractions, 0 to 1.

    Example:
        >>> result = ChannelCorrelation(
        ...     layer="conv",
        ...     correlation=torch.tensor([[1.0, -0.98], [-0.98, 1.0]]),
        ...     order=torch.arange(2),
        ...     redundant=torch.tensor([False, True]),
        ...     threshold=0.95,
        ...     images=50,
        ... )
        >>> correlation_report([result]).items[-1].rows
        (('conv', 0, 1, -0.98),)
    """
    items: list[Item] = []
    for layer in results:
        drawn, svg = _drawn(layer)
        items.append(
            Picture(layer.layer, drawn, caption=_caption(layer), layer=layer.layer, plain=_plain(layer), svg=svg)
        )
        items += correlation_scalars([layer])
    items.append(_pairs(results))
    facts = tuple(LayerFacts(layer=layer.layer, neighbors=_neighbors(layer)) for layer in results)
    return Report(
        "correlation", title="Correlation of channels", items=tuple(items), notes=_notes(results), facts=facts
    )


def correlation_scalars(results: Sequence[ChannelCorrelation]) -> list[Scalar]:
    """Return the fractions of redundant and of constant channels of each layer, to follow over time."""
    scalars = []
    for layer in results:
        constant = _fraction(layer.constant, layer.images)
        scalars.append(Scalar(f"{layer.layer}/redundant", layer.redundant_fraction, layer=layer.layer))
        scalars.append(Scalar(f"{layer.layer}/constant", constant, layer=layer.layer))
    return scalars


def _fraction(channels: Tensor, images: int) -> float:
    return math.nan if images < 2 else float(channels.double().mean())


def _caption(layer: ChannelCorrelation) -> str:
    channels = len(layer.order)
    if layer.images < 2:
        return f"nothing measured: {layer.images} images with finite features"
    count, constant = int(layer.redundant.sum()), int(layer.constant.sum())
    parts = [
        f"{count} of {channels} channels ({100 * layer.redundant_fraction:.1f} %) are redundant: |r| of "
        f"{layer.threshold:g} or more with an earlier one"
    ]
    if constant:
        parts.append(f"{constant} constant, gray")
    parts.append(f"{layer.images:,} images")
    step = _step(channels)
    if step > 1:
        parts.append(f"each cell is the mean over {step} x {step} channels")
    return " · ".join(parts)


def _notes(results: Sequence[ChannelCorrelation]) -> tuple[str, ...]:
    notes = [
        "Pearson's r of each two channels over the images; of a channel counts the mean of its feature map. Channels "
        "are ordered by a hierarchical clustering: alike ones stand side by side.",
        "A channel is redundant if it correlates, with either sign, with a channel of a lower number that is not "
        "redundant itself: as many channels can be left out and written as multiples of those that stay.",
    ]
    images = min((layer.images for layer in results if layer.images > 1), default=0)
    if images:
        chance = min(1, 2 / math.sqrt(images))
        notes.append(f"Over {images:,} images, unrelated channels reach an |r| of about {chance:.2f} by chance.")
    strange = [f"{layer.left_out:,} of '{layer.layer}'" for layer in results if layer.left_out]
    if strange:
        notes.insert(0, f"Not finite: left out, since their features are NaN or infinite, images {', '.join(strange)}.")
    return tuple(notes)


def _neighbors(layer: ChannelCorrelation) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Of each channel, the others that correlate most with it, with either sign; none of a constant one."""
    size = layer.correlation.abs().nan_to_num(0.0).fill_diagonal_(0.0)
    nearest = size.topk(min(_NEIGHBORS, len(size)), dim=1)
    correlation = layer.correlation.gather(1, nearest.indices)
    return tuple(
        tuple((channel, r) for channel, r, there in zip(*line, strict=True) if there > 0)
        for line in zip(nearest.indices.tolist(), correlation.tolist(), nearest.values.tolist(), strict=True)
    )


def _pairs(results: Sequence[ChannelCorrelation]) -> Table:
    """The pairs of each layer with the largest absolute correlations."""
    rows = []
    for layer in results:
        above = layer.correlation.triu(1).nan_to_num(0).abs()
        best = above.flatten().argsort(descending=True, stable=True)[:_PAIRS]
        for first, second in ((int(at) // len(above), int(at) % len(above)) for at in best):
            if above[first, second] > 0:
                rows.append((layer.layer, first, second, round(float(layer.correlation[first, second]), 4)))
    columns = ("layer", "channel", "and channel", "correlation")
    return Table("most_correlated", columns, tuple(rows), caption=f"Up to {_PAIRS} most correlated pairs of each layer")


# The picture


def _drawn(layer: ChannelCorrelation) -> tuple[Tensor, Any]:
    """Draw the matrix in the order of the clustering: `(3, H, W)` uint8, and as SVG."""
    channels, cells = len(layer.order), _cells(layer)
    side = max(_SIDE // len(cells), 1) * len(cells) / _DPI  # cells of whole pixels
    with new_figure(side, side) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor(_CONSTANT_COLOR)
        image = axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        _label_axes(axes, layer)
        bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.12 / side, 0, 0.16 / side, 1)))
        bar.set_label("correlation r")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        redundant = f"{100 * layer.redundant_fraction:.1f} % redundant" if layer.images > 1 else "nothing measured"
        name = shorten(layer.layer, 28)
        axes.set_title(f"{name}: {channels} channels, {redundant}", loc="left", fontsize=12, fontweight="bold")
        fit_square(figure, axes, side)
        return figure_pixels(figure), late_svg(figure)


def _plain(layer: ChannelCorrelation) -> Tensor:
    """The matrix alone, `(3, H, W)` uint8, a pixel a cell; constant channels gray."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    cells = _cells(layer)
    colors = colormaps["RdBu_r"]((np.nan_to_num(cells) + 1) / 2)[..., :3]
    colors[np.isnan(cells)] = to_rgb(_CONSTANT_COLOR)
    return torch.from_numpy(colors).mul(255).round().to(torch.uint8).permute(2, 0, 1).contiguous()


def _step(channels: int) -> int:
    return math.ceil(channels / _MOST_CELLS)


def _cells(layer: ChannelCorrelation) -> np.ndarray:
    """The ordered matrix; of many channels, means over neighbors in that order, without constant ones."""
    matrix = layer.correlation[layer.order][:, layer.order].numpy()
    step = _step(len(matrix))
    missing = -len(matrix) % step
    matrix = np.pad(matrix, (0, missing), constant_values=np.nan)
    blocks = matrix.reshape(len(matrix) // step, step, -1, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block of constant channels alone stays NaN
        means: np.ndarray = np.nanmean(blocks, axis=(1, 3))
    return means


def _label_axes(axes: Axes, layer: ChannelCorrelation) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if len(layer.order) > _MOST_NAMES:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("channels, alike ones side by side")
        axes.set_ylabel("channels, in the same order")
        return
    names = [str(channel) for channel in layer.order.tolist()]
    axes.set_xlabel("channel")
    axes.set_ylabel("channel")
    size = 10 if len(names) <= 24 else 8
    axes.set_xticks(range(len(names)), names, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
