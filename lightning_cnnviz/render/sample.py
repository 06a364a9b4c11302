"""A few images of a data set as a report."""

from __future__ import annotations

from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.figures import class_label
from lightning_cnnviz.render.patches import label_name
from lightning_cnnviz.report import Gallery, Number, Report, Row, Tile

__all__ = ["sample_report"]

_COLUMNS = 8


def sample_report(display: Display) -> Report:
    """Draw the images of a sample as a gallery, with labels where there are any."""
    tiles = tuple(_tile(display, place) for place in range(len(display.pixels)))
    rows = (Row("", tiles),) if tiles else ()
    gallery = Gallery("images", rows, caption=f"{len(tiles)} images", columns=min(_COLUMNS, max(1, len(tiles))))
    return Report("sample", title="Images", items=(gallery,), notes=(display.normalization.sentence(),))


def _tile(display: Display, place: int) -> Tile:
    index = display.indices[place]
    numbers: dict[str, Number] = {"dataset index": index}
    caption = f"image {index}"
    if display.labels is not None:
        label, names = display.labels[place], display.class_names
        numbers["label"] = label_name(label, names)
        caption = class_label(names, label)
    if index in display.files:
        numbers["file"] = display.files[index]
    return Tile(display.pixels[place], caption, numbers)
