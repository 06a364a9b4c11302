"""Colors, lines and names that figures share."""

from __future__ import annotations

import pytest
import torch
from matplotlib.colors import to_hex

from lightning_cnnviz.render._text import one_line
from lightning_cnnviz.render.figures import COLORS, GRID, INK, PENCIL, class_color, class_label, line_style, overlaid


@pytest.mark.parametrize("signed", [False, True])
def test_values_beyond_the_scale_have_the_full_color(signed: bool) -> None:
    image = torch.full((3, 1, 2), 90, dtype=torch.uint8)
    assert torch.equal(
        overlaid(image, torch.tensor([[1.0, 7.0]]), signed=signed)[..., 0],
        overlaid(image, torch.tensor([[1.0, 7.0]]), signed=signed)[..., 1],
    )


def test_names_of_classes_and_styles_of_lines() -> None:
    assert class_label(["hen", "cock"], 1) == "cock"
    assert class_label(["hen"], 5) == class_label(None, 5) == "class 5"
    assert len(class_label(["x" * 100], 0, 20)) == 20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n02483708_siamang", "siamang"),
        ("n02106166_Border_collie 97 %", "Border collie 97 %"),
        ("true class n02012849_crane", "true class crane"),
        ("n02106166_3.JPEG", "n02106166_3.JPEG"),
        ("photos/n02483708_siamang/0.jpg", "photos/n02483708_siamang/0.jpg"),
        ("photos/ n02483708_siamang/0.jpg", "photos/ n02483708_siamang/0.jpg"),
        ("my_class", "my_class"),
        ("n0248370_short", "n0248370_short"),
    ],
)
def test_folders_of_imagenet_are_read_as_classes(text: str, shown: str) -> None:
    assert one_line(text) == shown
    styles = [line_style(number) for number in range(2 * len(COLORS))]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 2 * len(COLORS)


def test_a_class_has_the_same_color_over_an_image_and_in_the_legend_in_both_themes() -> None:
    colors = [to_hex(class_color(number)) for number in range(len(COLORS))]
    assert len({*colors}) == len(COLORS)
    assert not {*colors} & {INK, PENCIL, GRID, "#ffffff"}  # the house's own follow the theme, and white is all others
