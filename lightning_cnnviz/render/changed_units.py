"""The units of two networks that changed most, with the patches that drive each: one network above the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_cnnviz.core.comparison.units import LayerComparison, UnitComparison
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.patches import Crops, brief, numbers_of_unit
from lightning_cnnviz.report import Gallery, Number, Row, Tile

__all__ = ["changed_galleries", "changed_units", "other_units"]


@dataclass(frozen=True, kw_only=True)
class _Counterpart:
    """A channel of the other network that a channel is shown beside.

    Attributes:
        channel: Its number there.
        correlation: Pearson's, of the two over the images.
        shows: What it is, for people.
    """

    channel: int
    correlation: float
    shows: str


def changed_units(layer: LayerComparison, count: int) -> tuple[int, ...]:
    """Return the channels that changed most, at most `count`; those of which nothing is known are none of them."""
    return tuple(channel for channel in layer.changed.tolist() if not layer.similarity[channel].isnan())[:count]


def other_units(layer: LayerComparison, channels: Sequence[int]) -> tuple[int, ...]:
    """Return the channels of the other network that these are shown beside, each once."""
    return tuple(dict.fromkeys(each.channel for channel in channels for each in _counterparts(layer, channel)))


def changed_galleries(
    result: UnitComparison, patches: TopPatches, other_patches: TopPatches, display: Display
) -> tuple[Gallery, ...]:
    """Draw, of each layer, the kept channels of the first network above their counterparts in the other.

    Each row is a channel: its strongest patches in a line, below them those of the channel of the same number in the
    other network, and those of the channel that it is matched with there where that is another one.

    Args:
        result: What was compared.
        patches: Of the first network: its kept channels are shown, those that changed most first.
        other_patches: Of the other network, with the channels of `other_units`.
        display: How the images are shown.
    """
    crops, other_crops = (Crops(mined, display.normalization, display.files) for mined in (patches, other_patches))
    beside = {layer.layer: layer for layer in other_patches}
    compared = {layer.layer: layer for layer in result.layers}
    galleries = []
    for own in patches:
        layer, other = compared[own.layer], beside[compared[own.layer].other]
        frame = Frame.of([patch for mined in (own, other) for patches in mined.patches for patch in patches])
        rows = []
        for channel in sorted(own.features, key=lambda each: float(layer.similarity[each])):
            tiles = [*_tiles(own, channel, crops, frame, "first network", display.class_names)]
            numbers: dict[str, Number] = {}
            for each in _counterparts(layer, channel):
                shows = f"other network, {each.shows}"
                tiles += _tiles(other, each.channel, other_crops, frame, shows, display.class_names)
                if each.shows == _BEST:
                    numbers[_BEST] = each.channel
                numbers[f"{each.shows} r"] = round(each.correlation, 3)
            rows.append(Row(f"channel {channel}", tuple(tiles), numbers, channel=channel))
        caption = _caption(result, layer)
        galleries.append(Gallery(own.layer, tuple(rows), caption=caption, columns=patches.k, layer=own.layer))
    return tuple(galleries)


_SAME, _BEST = "same channel", "best match"


def _counterparts(layer: LayerComparison, channel: int) -> Iterator[_Counterpart]:
    same, partner = layer.correlation[channel], int(layer.partners[channel])
    if not same.isnan():
        yield _Counterpart(channel=channel, correlation=float(same), shows=_SAME)
    if partner >= 0 and (same.isnan() or partner != channel):
        yield _Counterpart(channel=partner, correlation=float(layer.partner_correlation[channel]), shows=_BEST)


def _tiles(
    layer: LayerTopPatches,
    channel: int,
    crops: Crops,
    frame: Frame,
    shows: str,
    class_names: Sequence[str] | None,
) -> Iterator[Tile]:
    for rank in range(len(layer.patches[layer.features.index(channel)])):
        yield Tile(
            crops.pixels(layer, channel, rank, frame),
            brief(float(layer.activations[channel, rank])),
            numbers_of_unit(layer, channel, rank, class_names) | crops.file(layer, channel, rank),
            source=crops.source(layer, channel, rank, frame),
            shows=shows,
            rank=rank,
            inside=frame.inside(layer.boxes[channel, rank]),
        )


def _caption(result: UnitComparison, layer: LayerComparison) -> str:
    lines = "their strongest patches above"
    if result.same_units:
        return f"Channels that changed most: {lines}, below those of the same channel and of its best match there"
    return f"Channels with the weakest counterparts: {lines}, below those of the best match in {layer.other}"
