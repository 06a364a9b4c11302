"""What a view has to say, as structure and not as pixels, for any sink to show its own way.

What could be taken for another field of its type is given by name only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ColorScale",
    "Curve",
    "Gallery",
    "Histogram",
    "ImageCrop",
    "Item",
    "LateTile",
    "LayerFacts",
    "NamedCells",
    "Number",
    "Picture",
    "Report",
    "Row",
    "Scalar",
    "Series",
    "Step",
    "Table",
    "Tile",
]

Number = int | float | str
"""A figure that stands beside a picture: an activation, an index, a class name."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """When a look was taken.

    Attributes:
        epoch: Number of training epochs that were complete, so 1 after the first epoch and 0 before training.
        global_step: Number of optimizer steps taken.
        stage: `"fit"`, `"validate"` or `"test"`.
        run: The training or evaluation it belongs to, by a name of its own; "" where that is not known.
        data: Which images were looked at, for people; "" where that is not known.
        network: The network's class, for people; "" where that is not known.
        logged: The epoch and the step under which Lightning logs its own numbers of this moment: both count from 0,
            and several optimizers step once. Where that is not known, the two above.
        within: How much of the epoch under way was done, from 0 up to 1; 0 between epochs, and where that is not known.

    Example:
        >>> Step(epoch=2, global_step=10).position, Step(epoch=2, global_step=15, within=0.5).position
        (2, 2.5)
    """

    epoch: int
    global_step: int
    stage: str = "fit"
    run: str = field(default="", compare=False)
    data: str = field(default="", compare=False)
    network: str = field(default="", compare=False)
    logged: tuple[int, int] | None = field(default=None, compare=False)
    within: float = field(default=0.0, compare=False)

    @property
    def position(self) -> int | float:
        """Where it lies on an axis of epochs: at a whole number between epochs."""
        return self.epoch + self.within if self.within else self.epoch

    @property
    def row(self) -> tuple[int, int]:
        """The epoch and the step under which loggers file it, beside Lightning's own numbers of this moment."""
        return self.logged or (self.epoch, self.global_step)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageCrop:
    """Where a tile was cut from: sinks may keep the image once for all tiles from it, or mark the tile on it.

    Attributes:
        pixels: `(3, H, W)` uint8, the whole image; tiles of one image share the tensor.
        box: Top, left, bottom and right of the crop in the image, half-open.
        offset: Row and column of the tile at which the crop lies; around it the tile shows no image.
        index: The image's data-set index.
        file: Its file's name; "" where there is none.
        apart: Whether the tile is drawn in another way than the image is, and not to be cut out of it.
    """

    pixels: Tensor
    box: tuple[int, int, int, int]
    offset: tuple[int, int] = (0, 0)
    index: int
    file: str = ""
    apart: bool = False

    def __post_init__(self) -> None:
        _check_pixels(self.pixels, "an ImageCrop")


@dataclass(frozen=True, eq=False)
class Tile:
    """One small picture of a gallery.

    Attributes:
        pixels: `(3, H, W)` uint8.
        caption: One short line, shown under the tile when there is room.
        numbers: Figures of this tile by name, in the order in which they are to be read.
        source: The image that it was cut from, where that is known.
        shows: What kind of picture it is, where a row has several: `"patch"`, `"projection"`, `"optimum"`, ...
        rank: Its place among those of its kind, from 0; what one row, or another view, shows of one unit has one rank.
        inside: Where the picture lies in a tile that is larger than it: top, left, bottom and right, half-open; what is
            around it is no part of it. None for all of the tile.
    """

    pixels: Tensor
    caption: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    source: ImageCrop | None = field(default=None, kw_only=True)
    shows: str = field(default="", kw_only=True)
    rank: int | None = field(default=None, kw_only=True)
    inside: tuple[int, int, int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_pixels(self.pixels, "a Tile")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


class LateTile(Tile):
    """A tile that is drawn each time its pixels are asked for: a gallery of thousands takes no room for them.

    Args:
        draw: Returns the pixels, `(3, H, W)` uint8.
        size: Their height and width.
        attributes: The others of `Tile`.
    """

    def __init__(self, draw: Callable[[], Tensor], size: tuple[int, int], **attributes: Any) -> None:
        # A plain tile of no pixels checks the names, and knows what is not given.
        plain = Tile(torch.empty(3, 0, 0, dtype=torch.uint8), **attributes)
        vars(self).update({name: value for name, value in vars(plain).items() if name != "pixels"})
        vars(self).update(_draw=draw, _size=size)

    @property
    def pixels(self) -> Tensor:
        """The pixels, drawn anew."""
        pixels: Tensor = vars(self)["_draw"]()
        _check_pixels(pixels, "a Tile")
        return pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        size: tuple[int, int] = vars(self)["_size"]
        return size

    def __reduce__(self) -> tuple[Any, ...]:
        """Be a plain tile where it is pickled."""
        attributes = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return partial(Tile, **attributes), (self.pixels,)


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a gallery: for example a feature map and its nine patches, strongest first.

    Attributes:
        caption: What it shows, for people.
        tiles: Its pictures.
        numbers: Its figures by name.
        channel: The feature map that it is about, of the gallery's layer; None where it is about none.
    """

    caption: str
    tiles: tuple[Tile, ...]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    channel: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class NamedCells:
    """The cells of a picture of a matrix, whose names can be read where a pointer is on one.

    Attributes:
        box: Left, top, width and height of the matrix, in parts of the picture's.
        row: What a row is, for example `"true class"`.
        rows: The rows' names, from above.
        column: What a column is.
        columns: The columns' names.
    """

    box: tuple[float, float, float, float]
    row: str
    rows: tuple[str, ...]
    column: str
    columns: tuple[str, ...]


class _LateText:
    """A field of text that may be given as a function: it is called when the text is first asked for, once."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._kept = f"_{name}"

    def __get__(self, holder: object | None, kind: type | None = None) -> str:
        if holder is None:
            return ""  # the default
        kept = vars(holder)
        if not isinstance(kept[self._kept], str):
            kept[self._kept] = kept[self._kept]()
        text: str = kept[self._kept]
        return text

    def __set__(self, holder: object, text: str | Callable[[], str]) -> None:
        vars(holder)[self._kept] = text


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        name: What it shows; unique among the items of its kind in a report, and the last part of its key.
        pixels: `(3, H, W)` uint8.
        caption: One line that says what is to be seen.
        layer: The layer that it is about; "" for none.
        plain: The same without words, `(3, H, W)` uint8, for where it stands small among others; None for itself.
        svg: The same as lines and letters, of one shape with it, for readers whose theme may be dark; "" for none. It
            may be given as a function, which draws it when it is first asked for: not every reader does.
        cells: Of a matrix, what its cells are called; None for other pictures.
    """

    name: str
    pixels: Tensor
    _: KW_ONLY
    caption: str = ""
    layer: str = ""
    plain: Tensor | None = None
    svg: str = _LateText()  # type: ignore[assignment]
    cells: NamedCells | None = None

    def __post_init__(self) -> None:
        for pixels in (self.pixels, *([] if self.plain is None else [self.plain])):
            _check_pixels(pixels, f"Picture '{self.name}'")

    def called(self, name: str) -> Picture:
        """Return the same picture by another name, without drawing what is not drawn yet."""
        other = copy(self)
        object.__setattr__(other, "name", name)
        return other


@dataclass(frozen=True)
class ColorScale:
    """What the colors of pictures stand for.

    Attributes:
        colors: Two or more, as `"#rrggbb"`, from low to high at equal distances.
        low: What the first one stands for.
        high: What the last one stands for.
        middle: What the one in the middle stands for; "" for nothing to be said.
    """

    colors: tuple[str, ...]
    low: str
    high: str
    middle: str = ""

    def __post_init__(self) -> None:
        if len(self.colors) < 2 or not all(re.fullmatch(r"#[0-9a-f]{6}", color) for color in self.colors):
            raise ValueError(f"a ColorScale needs two colors or more, as '#rrggbb', not {self.colors}")


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of tiles, all of one size.

    Attributes:
        name: What it shows; unique among the items of its kind in a report, and the last part of its key.
        rows: The rows; may be of different lengths, and may be none.
        caption: One line that says what is to be seen.
        numbers: Figures of the whole gallery, for example of the layer.
        enlarge: Whether tiles are pixel-exact crops that keep their hard pixel edges when shown larger.
        columns: How many tiles of a row stand side by side; by default as nearly a square as possible.
        tile_side: To so many pixels a side small tiles are enlarged on a sheet, where there is room.
        layer: The layer that it is about; "" for none.
        scale: What the colors of its tiles stand for; None where they are images.
        named: Whether the captions of tiles are to be read with them, also where there is little room.
    """

    name: str
    rows: tuple[Row, ...]
    _: KW_ONLY
    caption: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    enlarge: bool = True
    columns: int | None = None
    tile_side: int = 64
    layer: str = ""
    scale: ColorScale | None = None
    named: bool = False

    def __post_init__(self) -> None:
        sizes = {tile.size for row in self.rows for tile in row.tiles}
        if len(sizes) > 1:
            raise ValueError(f"the tiles of Gallery '{self.name}' have sizes {sorted(sizes)}; a gallery has one size")


@dataclass(frozen=True)
class Series:
    """One line of a curve; `low` and `high`, where given, bound its error band.

    With `reference`, it was not measured: it is a level to compare with, as chance.
    """

    name: str
    _: KW_ONLY
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        lengths = {len(values) for values in (self.x, self.y, self.low, self.high) if values is not None}
        if len(lengths) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(
                f"Series '{self.name}': x, y, low and high must be equally long, low and high come together"
            )


@dataclass(frozen=True)
class Curve:
    """Lines over a common axis; about a layer, or about none.

    Attributes:
        name: What it shows; unique among the items of its kind in a report, and the last part of its key.
        series: The lines.
        x_label: What the axis is, with its unit.
        y_label: What is measured, with its unit.
        caption: One line that says what is to be seen.
        layer: The layer that it is about; "" for none.
        x_names: What lies at 1, 2, 3, ... of the axis, where these are no numbers but places: layers by their depth.
        x_log: Whether equal steps along the axis are equal factors; all of `x` is then above zero.
        percent: Whether `y` is in percent of what the scalars of the report have as parts of one.

    Raises:
        ValueError: `x` has other places than `x_names` names, or none that a logarithm takes.
    """

    name: str
    series: tuple[Series, ...]
    _: KW_ONLY
    x_label: str
    y_label: str
    caption: str = ""
    layer: str = ""
    x_names: tuple[str, ...] = ()
    x_log: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        places = {value for series in self.series for value in series.x}
        if self.x_names and not places <= set(range(1, len(self.x_names) + 1)):
            raise ValueError(f"Curve '{self.name}' names {len(self.x_names)} places, and has x {sorted(places)}")
        if self.x_log and any(value <= 0 for value in places):
            raise ValueError(f"Curve '{self.name}' has x {sorted(places)} on a logarithmic axis")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of cells; a column holds one type: int, float, str or a `Tile`."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Number | Tile | None, ...], ...]
    _: KW_ONLY
    caption: str = ""

    def __post_init__(self) -> None:
        wrong = next((row for row in self.rows if len(row) != len(self.columns)), None)
        if wrong is not None:
            raise ValueError(f"Table '{self.name}' has {len(self.columns)} columns, but a row of {len(wrong)} cells")


@dataclass(frozen=True)
class Scalar:
    """One number to follow over time, of a layer or of none; NaN where it could not be measured."""

    name: str
    value: float
    _: KW_ONLY
    layer: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)


Item = Picture | Gallery | Curve | Table | Scalar


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values fall into bins of one width.

    Attributes:
        low: Where the first bin begins.
        width: Of a bin.
        counts: Of each bin.
    """

    low: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerFacts:
    """What is known of a layer and of each of its channels, shown or not: to list, to sort, to search and to draw by.

    Attributes:
        layer: The layer's name.
        numbers: Of the layer, by name.
        channels: Of its channels: by name, a number a channel; NaN or None where there is none.
        classes: Of each channel, the classes that drive it, as pairs of a class and its part in what was seen, 0 to 1,
            the largest first.
        neighbors: Of each channel, those that are most like it, as pairs of a channel and how alike they are.
        told: Of each channel, the classes that it tells best from all others over the whole data set, as pairs of a
            class and its selectivity: the mean of the class less that of the others, in standard deviations.
        histograms: Of each channel, the largest activations of all images; None where that is not known.

    Raises:
        ValueError: Not all of these have one entry a channel.
    """

    layer: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    channels: Mapping[str, tuple[Number | None, ...]] = field(default_factory=dict)
    classes: tuple[tuple[tuple[Number, float], ...], ...] = ()
    neighbors: tuple[tuple[tuple[int, float], ...], ...] = ()
    told: tuple[tuple[tuple[Number, float], ...], ...] = ()
    histograms: tuple[Histogram | None, ...] = ()

    def __post_init__(self) -> None:
        if len({len(part) for part in (*self.channels.values(), *self._by_channel) if part}) > 1:
            raise ValueError(f"the facts of layer '{self.layer}' are of different numbers of channels")

    @property
    def _by_channel(self) -> tuple[tuple[object, ...], ...]:
        return self.classes, self.neighbors, self.told, self.histograms


@dataclass(frozen=True, eq=False)
class Report:
    """Everything one look of one view has to say.

    Attributes:
        view: The view's stem, for example `"top_patches"`; the first part of every key.
        title: What a person reads above it.
        items: In the order in which they are to be read; names are unique within a kind.
        notes: Sentences a reader needs to understand the pictures, for example how inputs were normalised.
        name: The name of the monitor that made it, where two of one view stand beside each other.
        facts: What is known of layers and channels besides; not shown by itself.

    Raises:
        ValueError: Two items of one kind share a name.

    Example:
        >>> accuracy = Scalar("accuracy", 0.5)
        >>> Report("layer_probe", title="Probes", items=(accuracy,), name="flowers").key(accuracy)
        'layer_probe_stats/flowers/accuracy'
    """

    view: str
    _: KW_ONLY
    title: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    name: str = ""
    facts: tuple[LayerFacts, ...] = ()

    def __post_init__(self) -> None:
        seen: set[tuple[type, str]] = set()
        for item in self.items:
            key = (type(item), item.name)
            if key in seen:
                raise ValueError(f"report '{self.view}' has two items {type(item).__name__} '{item.name}'")
            seen.add(key)

    @property
    def source(self) -> str:
        """What tells this monitor's reports from all others, the same at every look: `<view>`, or `<view>/<name>`."""
        return f"{self.view}/{self.name}" if self.name else self.view

    @property
    def heading(self) -> str:
        """The title, with the monitor's name where it has one."""
        return f"{self.title} · {self.name}" if self.name else self.title

    def key(self, item: Item) -> str:
        """The name under which a sink files an item, the same at every look: `<view>/<name>/<item>`."""
        view = f"{self.view}_stats" if isinstance(item, Scalar) else self.view
        return "/".join([view, *([self.name] if self.name else []), item.name])


def _check_pixels(pixels: Tensor, what: str) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"{what} needs uint8 pixels of shape (3, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
