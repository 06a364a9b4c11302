"""How large letters are on the pictures that a dashboard gets, shown 400 pixels wide."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import ImageDraw
from torch import Tensor

from lightning_cnnviz.sinks import _dashboard

PANEL = 400
DRAW_FIGURES = ("occlusion", "invariance", "correlation", "confusion", "comparison", "charts")


def ticks(axes: Any) -> list[Text]:
    return [*axes.get_xticklabels(), *axes.get_yticklabels()]


def measured_letters(patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Watch what is drawn from now on; the least size of letters, in pixels, by what is written above or below."""
    sizes: dict[int, float] = {}  # by picture
    kept: list[Tensor] = []  # so that no other picture gets the place of one in memory
    found: dict[str, float] = {}

    def note(pixels: Tensor, least: float) -> Tensor:
        sizes[pixels.data_ptr()] = least * PANEL / pixels.shape[-1]
        kept.append(pixels)
        return pixels

    for name in DRAW_FIGURES:
        module = importlib.import_module(f"lightning_cnnviz.render.{name}")
        plain = module.figure_pixels

        def drawn(figure: Any, plain: Any = plain) -> Tensor:
            off = {id(text) for axes in figure.findobj(Axes) if not axes.axison for text in ticks(axes)}
            texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
            texts = [text for text in texts if id(text) not in off]
            return note(plain(figure), min(text.get_fontsize() for text in texts) * figure.dpi / 72)

        patch.setattr(module, "figure_pixels", drawn)

    written: list[float] = []
    text, panel, files, overview = (
        ImageDraw.ImageDraw.text,
        _dashboard.draw_panel,
        _dashboard._files,
        _dashboard.overview,
    )

    def spied_text(self: Any, xy: Any, text_: Any, *args: Any, **options: Any) -> None:
        if str(text_).strip():
            written.append(options["font"].size)
        text(self, xy, text_, *args, **options)

    def spied_panel(gallery: Any, *, title: str) -> Tensor:
        written.clear()
        pixels = panel(gallery, title=title)
        return note(pixels, min(written))

    def spied_files(pictures: Any) -> Any:
        widest = max(pixels.shape[-1] for pixels, _ in pictures)
        for pixels, caption in pictures:
            size = sizes.get(pixels.data_ptr(), math.inf) * pixels.shape[-1] / widest
            found[caption] = min(size, found.get(caption, math.inf))
        return files(pictures)

    def spied_overview(galleries: Any, **options: Any) -> Any:
        tiles = [tile for gallery in galleries for row in gallery.rows for tile in row.tiles]
        for tile in tiles:
            if tile.pixels.data_ptr() in sizes:  # words, shrunk to a tile
                found[f"a tile of {options['name']}"] = 0
        return overview(galleries, **options)

    patch.setattr(ImageDraw.ImageDraw, "text", spied_text)
    patch.setattr(_dashboard, "draw_panel", spied_panel)
    patch.setattr(_dashboard, "_files", spied_files)
    patch.setattr(_dashboard, "overview", spied_overview)
    return found
