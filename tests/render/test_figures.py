"""Colors, lines and names that figures share."""

from __future__ import annotations

import pytest
import torch

from lightning_cnnviz.render.figures import COLORS, class_label, line_style, overlaid


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
    styles = [line_style(number) for number in range(2 * len(COLORS))]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 2 * len(COLORS)
