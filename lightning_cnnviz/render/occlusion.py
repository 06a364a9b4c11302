"""Occlusion maps as a report: the pictures of Fig. 7 of Zeiler & Fergus (2013), one row an image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cnnviz.core.images.occlusion import OcclusionMaps
from lightning_cnnviz.render.figures import (
    LEAST_FONT,
    PICTURE_WIDTH,
    class_color,
    class_label,
    color_scale,
    figure_pixels,
    layer_notes,
    new_figure,
    overlaid,
    scores_note,
    shorten,
    show_pixels,
    target_label,
    task_notes,
)
from lightning_cnnviz.render.patches import brief, to_gray_centered
from lightning_cnnviz.render.vector import late_svg
from lightning_cnnviz.report import Gallery, Item, Number, Picture, Report, Row, Scalar, Tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["occlusion_report", "occlusion_scalars"]

# So many classes have a color of their own in the maps of the most probable class.
_CLASSES_SHOWN = 7


def occlusion_report(
    result: OcclusionMaps,
    pixels: Sequence[Tensor],
    indices: Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    fill: Tensor | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Draw each image's maps as one picture, over the image, each with its scale.

    Args:
        result: What was measured.
        pixels: Each image as pixels `(3, H, W)` uint8.
        indices: Their numbers in the data set.
        class_names: Names of the classes.
        fill: `(3,)` uint8, the occluder's color.
        notes: What else a reader needs to know, for example how the network's input is shown.
    """
    items: list[Item] = []
    colors = _class_colors(result)
    for number, (image, index) in enumerate(zip(pixels, indices, strict=True)):
        target = target_label(result.untouched, number, class_names)
        caption = (
            f"image {index}, {result.untouched.target_name} {target}: what an occluder of "
            f"{result.size[0]} x {result.size[1]} pixels does, by the position of its center"
        )
        drawn, svg = _draw(result, number, image, index, class_names, fill, colors)
        items.append(Picture(f"image {index}", drawn, caption=caption, svg=svg))
    items += [*_pixel_maps(result, pixels, indices, class_names), *occlusion_scalars(result)]
    explained = [
        "At each position of the occluder's center, a map has what is found then; untouched is the value without an "
        "occluder, a line in the map's scale.",
        *_layer_notes(result),
    ]
    strange = (*scores_note(result.untouched), *_occluded_note(result))
    explained += task_notes(result.untouched, class_names)
    return Report("occlusion", title="Occlusion", items=tuple(items), notes=(*strange, *explained, *notes))


def _layer_notes(result: OcclusionMaps) -> list[str]:
    """What is said of the layer that is followed, and of its projection; or why there is none."""
    if result.unfollowed:
        return [f"No layer's activation is followed: {result.unfollowed}."]
    said = [
        f"Activation: the sum, above zero, of the feature map of {result.layer} that is strongest without an occluder.",
        *layer_notes(result.layer, result.layers_behind),
    ]
    if result.unprojected:
        return [*said, f"The feature map is not projected to pixels: {result.unprojected}."]
    projected = "Projection: that feature map's strongest unit, back to pixels by a deconvnet; gray is no contribution."
    return [*said, projected]


def _pixel_maps(
    result: OcclusionMaps, pixels: Sequence[Tensor], indices: Sequence[int], class_names: Sequence[str] | None
) -> list[Item]:
    """Of segmentation: where in each image the network sees the class that is followed."""
    maps = result.untouched.pixel_probabilities
    if maps is None:
        return []
    rows = []
    for number, (image, index) in enumerate(zip(pixels, indices, strict=True)):
        size = (image.shape[-2], image.shape[-1])
        p = F.interpolate(maps[number][None, None], size=size, mode="nearest")[0, 0]
        target = target_label(result.untouched, number, class_names)
        figures: dict[str, Number] = {"largest p": float(maps[number].max()), "dataset index": index}
        seen = Tile(overlaid(image, p.nan_to_num(0), signed=False), f"p({target})", figures)
        rows.append(Row(f"image {index}: {target}", (Tile(image, "image", figures), seen), figures))
    caption = "p of the class that is followed, pixel by pixel: dark is 0, the brightest color 1"
    scale = replace(color_scale("", signed=False), low="p 0", high="1")
    return [Gallery("p by pixel", tuple(rows), caption=caption, enlarge=False, columns=2, scale=scale)]


def occlusion_scalars(result: OcclusionMaps) -> list[Scalar]:
    """Return how much of the score hangs on one place: means over the images, to follow over time.

    NaN where the network's scores, or its activations, are not finite.
    """
    untouched = result.untouched.probabilities
    key = result.untouched.key
    activation = [] if result.unfollowed else [_activation_scalar(result)]
    if not result.untouched.task.has_classes:
        change = (result.probabilities - untouched[:, None, None]).abs().flatten(1).amax(1)
        return [Scalar(f"{key}/largest_change", float(change.mean())), *activation]
    drop = untouched - result.probabilities.flatten(1).amin(1)
    same = (result.predictions == result.untouched.targets[:, None, None]).float()
    kept = same.masked_fill(result.predictions < 0, torch.nan).flatten(1).mean(1)
    return [
        Scalar(f"{key}/largest_drop", float(drop.mean())),
        Scalar(f"{key}/most_probable_share", float(kept.mean())),
        *activation,
    ]


def _activation_scalar(result: OcclusionMaps) -> Scalar:
    start = result.untouched_activations
    # A map without any activation has none to lose.
    relative = (1 - result.activations.flatten(1).amin(1) / start)[~(start <= 0)]
    return Scalar(f"{result.layer}/largest_drop", float(relative.mean()), layer=result.layer)


def _occluded_note(result: OcclusionMaps) -> tuple[str, ...]:
    """Say where occluded images, or activations, are not finite, though the scores of the images as they are may be."""
    scores = (result.predictions < 0).flatten(1).any(1) & result.untouched.scored
    activations = ~(result.activations.flatten(1).isfinite().all(1) & result.untouched_activations.isfinite())
    said = []
    if bool(scores.any()):
        said.append(f"its scores at some positions of the occluder, for {int(scores.sum())} of {len(scores)} images")
    if bool(activations.any()) and not result.unfollowed:
        count = f"{int(activations.sum())} of {len(activations)} images"
        said.append(f"the activations that are followed at {result.layer}, for {count}")
    return (f"Not finite: of the network, {' and '.join(said)}, are NaN or infinite.",) if said else ()


def _draw(
    result: OcclusionMaps,
    number: int,
    image: Tensor,
    index: int,
    class_names: Sequence[str] | None,
    fill: Tensor | None,
    colors: Mapping[int, tuple[float, float, float]],
) -> tuple[Tensor, Any]:
    height, width = image.shape[-2:]
    untouched = result.untouched
    target = target_label(untouched, number, class_names)
    gray = image.float().mean(0, keepdim=True).expand(3, -1, -1).mul(0.6).add(95).to(torch.uint8)
    lines = (3 if untouched.task.has_classes else 2) - bool(result.unfollowed)
    with new_figure(PICTURE_WIDTH, lines * (2.9 * height / width + 0.6)) as figure:
        panels: Any = [*figure.subplots(lines, 2).flatten()]
        show_pixels(panels[0], _with_occluder(image, result, fill), f"image {index}\n{target}")
        _frame(panels[0], result)
        if result.unfollowed:
            panels[1:1] = [None, None]
        else:
            _draw_activation(panels[1], gray, result, number)
            _draw_projection(panels[2], result, number)
        p = float(untouched.probabilities[number])
        title = f"{untouched.quantity}\n{_untouched(p)}"
        limits = (0, 1) if untouched.task.has_classes else (p, p)
        _heat(panels[3], gray, result, result.probabilities[number], title, p, limits=limits)
        if untouched.task.has_classes:
            panels[5].set_axis_off()
            _classes(panels[4], panels[5], gray, result, number, class_names, colors)
        return figure_pixels(figure), late_svg(figure)


def _untouched(value: float) -> str:
    return f"{brief(value)} untouched" if math.isfinite(value) else f"not finite ({value}) untouched"


def _with_occluder(image: Tensor, result: OcclusionMaps, fill: Tensor | None) -> Tensor:
    """The image with the occluder in its first position."""
    shown = image.clone()
    top, left, bottom, right = result.boxes[0, 0].tolist()
    color = torch.full((3,), 128, dtype=torch.uint8) if fill is None else fill
    shown[:, top:bottom, left:right] = color.view(3, 1, 1)
    return shown


def _frame(axes: Axes, result: OcclusionMaps) -> None:
    """Draw the first occluder's border, for where it has the color of the image."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = result.boxes[0, 0].tolist()
    for color, width in (("white", 3.0), ("black", 1.0)):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, linewidth=width))


def _draw_activation(axes: Axes, gray: Tensor, result: OcclusionMaps, number: int) -> None:
    channel, start = int(result.channels[number]), float(result.untouched_activations[number])
    title = f"activation of map {channel}" if channel >= 0 else "activation of no map"
    title += f"\n{shorten(result.layer, 16)}, {_untouched(start)}"
    _heat(axes, gray, result, result.activations[number], title, start, limits=(0, start))


def _draw_projection(axes: Axes, result: OcclusionMaps, number: int) -> None:
    channel = int(result.channels[number])
    if channel < 0:
        _say_not_finite(axes, "no feature map of the\nlayer is finite")
        return
    if result.projections:
        show_pixels(
            axes, to_gray_centered(result.projections[number]), f"projection\nof map {channel}'s strongest unit"
        )
        return
    axes.set_axis_off()
    axes.set_title("no projection\n", fontsize=LEAST_FONT, loc="left")
    axes.text(0, 0.95, "\n".join(textwrap.wrap(result.unprojected, 34)[:8]), va="top", fontsize=LEAST_FONT)


def _extent(result: OcclusionMaps) -> tuple[float, float, float, float]:
    """Where the maps lie over the image: each position about the center of its occluder."""
    starts = result.boxes[..., :2].float()
    half = torch.tensor(result.size) / 2
    steps = [
        float(starts[1, 0, 0] - starts[0, 0, 0]) if len(starts) > 1 else float(result.size[0]),
        float(starts[0, 1, 1] - starts[0, 0, 1]) if starts.shape[1] > 1 else float(result.size[1]),
    ]
    first, last = starts[0, 0] + half, starts[-1, -1] + half
    return (
        float(first[1]) - steps[1] / 2,
        float(last[1]) + steps[1] / 2,
        float(last[0]) + steps[0] / 2,
        float(first[0]) - steps[0] / 2,
    )


def _heat(
    axes: Axes,
    gray: Tensor,
    result: OcclusionMaps,
    values: Tensor,
    title: str,
    start: float,
    limits: tuple[float, float],
) -> None:
    """Lay a map over the gray image, with its scale, in which a line says what the value was without an occluder.

    The scale spans `limits` at least, so that what has hardly changed does not look like a drop.
    """
    show_pixels(axes, gray, title)
    height, width = gray.shape[-2:]
    finite = values[values.isfinite()]
    if not (len(finite) and math.isfinite(start)):
        _say_not_finite(axes, "not finite")
        return
    low, high = min(float(finite.min()), *limits), max(float(finite.max()), *limits)
    high = high if high > low else low + 1
    drawn = axes.imshow(
        values.numpy(), extent=_extent(result), cmap="viridis", vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    bar.set_ticks(ticks, labels=[brief(tick) for tick in ticks])
    bar.ax.tick_params(labelsize=LEAST_FONT)
    bar.ax.axhline(start, color="white", linewidth=4)
    bar.ax.axhline(start, color="black", linewidth=2)
    outline: Any = bar.outline
    outline.set_visible(False)


def _say_not_finite(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=11, fontweight="bold")


def _class_colors(result: OcclusionMaps) -> dict[int, tuple[float, float, float]]:
    """A color for each of the classes that are most probable most often, the same in all images; true ones first."""
    if not result.untouched.task.has_classes:
        return {}
    predictions = result.predictions[result.predictions >= 0]
    counted = torch.bincount(predictions, minlength=result.untouched.classes)
    targets = {int(target) for target in result.untouched.targets}
    found = counted.nonzero().flatten().tolist()
    ordered = sorted(found, key=lambda each: (each not in targets, -int(counted[each]), each))
    return {each: class_color(place) for place, each in enumerate(ordered[:_CLASSES_SHOWN])}


def _classes(
    axes: Axes,
    beside: Axes,
    gray: Tensor,
    result: OcclusionMaps,
    number: int,
    class_names: Sequence[str] | None,
    colors: Mapping[int, tuple[float, float, float]],
) -> None:
    """Color each position by its most probable class, which are named beside it; those without a color are white."""
    from matplotlib.patches import Patch

    show_pixels(axes, gray, "most probable class\nby position of the occluder")
    predictions = result.predictions[number]
    target = int(result.untouched.targets[number])
    if not bool((predictions >= 0).any()):
        _say_not_finite(axes, "no class:\nscores are not finite")
        return
    counted = torch.bincount(predictions[predictions >= 0], minlength=result.untouched.classes)
    order = sorted((c for c in counted.nonzero().flatten().tolist()), key=lambda c: (c != target, -int(counted[c])))
    drawn = torch.ones(*predictions.shape, 3)
    patches = []
    for found_class in (each for each in order if each in colors):
        color = colors[found_class]
        drawn[predictions == found_class] = torch.tensor(color)
        fraction = float(counted[found_class]) / predictions.numel()
        patches.append(Patch(color=color, label=f"{class_label(class_names, found_class, 22)} {fraction:.0%}"))
    others = [each for each in order if each not in colors]
    if others:
        rest = float(sum(int(counted[each]) for each in others)) / predictions.numel()
        name = class_label(class_names, others[0], 22) if len(others) == 1 else f"{len(others)} other classes"
        patches.append(Patch(color=(1, 1, 1), label=f"{name} {rest:.0%}"))
    height, width = gray.shape[-2:]
    axes.imshow(drawn.numpy(), extent=_extent(result), alpha=0.6, interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    legend = beside.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, 1), frameon=False, fontsize=LEAST_FONT)
    for patch in legend.get_patches():
        patch.set_edgecolor("#606060")
        patch.set_alpha(0.75)
