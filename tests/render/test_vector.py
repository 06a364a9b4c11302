"""Figures as SVG: in both themes, the same each time, and no larger than their pixels."""

from __future__ import annotations

import base64
import io
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lightning_cnnviz import channel_correlation
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.render.figures import figure_pixels, new_figure, show_pixels
from lightning_cnnviz.render.html import html_part
from lightning_cnnviz.render.image import encode_tile, from_image
from lightning_cnnviz.render.vector import figure_svg, late_svg
from lightning_cnnviz.render.views import Seen, draw_view
from lightning_cnnviz.report import Picture, Report, Step
from lightning_cnnviz.sinks._dashboard import encode_report


def drawn(image: Tensor) -> tuple[Tensor, str]:
    """A line that is black, with a legend, and an image in white on black."""
    with new_figure(4, 2) as figure:
        line, shown = figure.subplots(1, 2)
        line.plot([0, 1], [0, 1], color="#010101", label="<a> & $b$")
        line.legend()
        show_pixels(shown, image, "an image")
        shown.axhline(20, color="white")
        return figure_pixels(figure), figure_svg(figure)


def photograph() -> Tensor:
    rows = torch.linspace(0, 255, 96).expand(96, 96)
    noise = torch.randint(0, 40, (3, 96, 96), generator=torch.Generator().manual_seed(0))
    return (torch.stack([rows, rows.T, 255 - rows]) * 0.8 + noise).to(torch.uint8)


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert drawn(photograph())[1] == drawn(photograph())[1]


def test_only_the_houses_colors_depend_on_the_theme() -> None:
    _, svg = drawn(photograph())
    body = re.sub(r"<style>:root.*?</style>", "", svg, flags=re.DOTALL)
    assert {*re.findall(r"#[0-9a-f]{6}", body)} == {"#ffffff"}  # the line over the image
    assert {*re.findall(r"var\(--(\w+)\)", body)} == {"ink", "pencil", "paper", "grid"}
    assert "<metadata>" not in svg


def test_the_figure_itself_stays_as_it_was() -> None:
    with new_figure(2, 1) as figure:
        figure.add_subplot().plot([0, 1], [0, 1], label="a")
        figure.legend()
        before = figure_pixels(figure)
        figure_svg(figure)
        assert torch.equal(figure_pixels(figure), before)


def test_images_are_kept_as_the_page_keeps_them() -> None:
    _, svg = drawn(photograph())
    (media, encoded), *others = re.findall(r"data:(image/\w+);base64,([\w+/=]+)", svg)
    assert (media, others) == ("image/jpeg", [])
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert len(base64.b64decode(encoded)) <= len(encode_tile(from_image(image.convert("RGB")))[1]) * 1.1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_the_pixels_in_light_and_is_dark_in_dark(scheme: str, browser_page: Any) -> None:
    pixels, svg = drawn(photograph())
    height, width = pixels.shape[-2:]
    uri = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    browser_page.emulate_media(color_scheme=scheme)
    browser_page.set_viewport_size({"width": width, "height": height})
    browser_page.set_content(
        f'<meta name="color-scheme" content="light dark"><body style="margin:0"><img width={width} src="{uri}">'
    )
    browser_page.wait_for_function("document.images[0].complete")
    with Image.open(io.BytesIO(browser_page.screenshot())) as image:
        seen = from_image(image.convert("RGB")).float()
    expected = pixels.float()
    left = slice(0, width // 2)
    if scheme == "light":
        assert float((seen - expected).abs().mean()) < 4
    else:
        assert seen[:, 2, 2].tolist() == [28, 30, 34]
        # Where light paper has ink, dark paper has light.
        ink = expected[:, :, left].mean(0) < 40
        assert float(seen[:, :, left].mean(0)[ink].mean()) > 150
        image_part = (slice(None), slice(height // 3, height // 3 + 20), slice(width * 2 // 3, width * 2 // 3 + 30))
        assert float((seen - expected)[image_part].abs().mean()) < 8  # an image is itself


def test_transparent_images_stay_so() -> None:
    values = np.zeros((8, 8, 4), dtype=np.uint8)
    values[:4, :, 3] = 255
    with new_figure(2, 2) as figure:
        figure.add_subplot().imshow(values, interpolation="nearest")
        figure_pixels(figure)
        svg = figure_svg(figure)
    assert re.findall(r"data:(image/\w+);base64", svg) == ["image/png"]


def test_lines_and_letters_are_drawn_for_who_reads_them_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Figure] = []
    savefig = Figure.savefig

    def counted(figure: Figure, *args: Any, **options: Any) -> None:
        written.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", counted)
    reports = {
        "confusion": confusion_report(torch.eye(3, dtype=torch.int64)),
        "several heads": several_heads(),
    }
    for name, report in reports.items():
        encode_report(report, Step(epoch=1, global_step=1))
        assert not written, f"{name}: W&B takes pixels alone"
        pictures = [item for item in report.items if isinstance(item, Picture)]
        for _ in range(2):
            html_part(report, report.items)
        assert len(written) == len(pictures) > 0, name
        written.clear()


def several_heads() -> Report:
    """The correlations of a network of two heads, whose pictures have the heads' names."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    result = channel_correlation(net, [torch.rand(2, 3, 8, 8)], ["0"])
    return draw_view("correlation", Seen(result=ByHead(names=("a", "b"), results=(result, result))))


def test_what_another_process_draws_is_the_same() -> None:
    with new_figure(2, 1) as figure:
        figure.add_subplot().plot([0, 1], [0, 1])
        shown = Picture("lines", figure_pixels(figure), svg=late_svg(figure))
    sent = pickle.loads(pickle.dumps(shown))
    assert sent.svg == shown.svg != ""


def test_a_picture_has_no_lines_and_letters_unless_it_is_given_them() -> None:
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert Picture("a", pixels).svg == ""
    assert Picture("a", pixels, svg="<svg/>").called("b").svg == "<svg/>"
