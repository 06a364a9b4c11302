from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.probing.targets import (
    PIXELS,
    draw_pixels,
    have_targets,
    probe_targets,
    settled_targets,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "wanted", "dtype"),
    [
        (torch.tensor([2, -100]), [2, -1], torch.int64),
        (torch.tensor([True, False]), [1, 0], torch.int64),
        (torch.tensor([[1.0, 0.0], [NAN, 0.0]]), [[1, 0], [-1, -1]], torch.int8),
        (torch.tensor([[1, 1], [-1, -1]]), [[1, 1], [-1, -1]], torch.int8),
        (torch.tensor([[True, False]]), [[1, 0]], torch.int8),
        (torch.tensor([[0.2, 0.8], [1.0, 0.0]]), [[0, 1], [1, 0]], torch.int8),  # mixed by CutMix or the like
        (torch.tensor([0.0, 1.0]), [[0.0], [1.0]], torch.float32),
        (torch.tensor([[2.5, -1.0]]), [[2.5, -1.0]], torch.float32),
        (torch.tensor([[3, 0, 7]]), [[3.0, 0.0, 7.0]], torch.float32),
        (torch.tensor([[[0, 255], [3, 1]]]), [[[0, -1], [3, 1]]], torch.int64),
        (torch.tensor([[[[0.0, 1.0]]]]), [[[0, 1]]], torch.int64),
    ],
)
def test_labels_have_one_form(labels: Tensor, wanted: list[object], dtype: torch.dtype) -> None:
    found = probe_targets(labels)
    assert found is not None
    assert (found.tolist(), found.dtype) == (wanted, dtype)


@pytest.mark.parametrize(
    "labels",
    [None, torch.tensor([NAN]), torch.rand(2, 1, 4, 4), torch.ones(2, 3, 4, 4), torch.full((2, 3, 3), 255)],
)
def test_what_is_no_label_is_none(labels: Tensor | None) -> None:
    assert probe_targets(labels) is None


def test_images_without_targets_are_told() -> None:
    assert have_targets(torch.tensor([[1, 0], [-1, -1]], dtype=torch.int8)).tolist() == [True, False]
    assert have_targets(torch.tensor([[[-1, -1]], [[-1, 2]]])).tolist() == [False, True]


def test_one_label_in_each_row_is_a_class() -> None:
    ones = torch.eye(3, dtype=torch.int8)[[1, 2, 1]]
    assert settled_targets(ones).tolist() == [1, 2, 1]
    several = torch.cat([ones, torch.ones(1, 3, dtype=torch.int8)])
    assert settled_targets(several) is several
    values = torch.tensor([[0.0], [0.5]])
    assert settled_targets(values) is values


def test_pixels_are_of_an_images_classes_in_turn() -> None:
    maps = torch.zeros(3, 40, 50, dtype=torch.int64)
    maps[0, :10, :10] = 4  # a twentieth
    maps[1] = -1
    maps[2, :, 25:] = -1
    drawn = draw_pixels(maps, torch.arange(3))
    assert drawn.classes[0].bincount(minlength=5).tolist() == [PIXELS // 2, 0, 0, 0, PIXELS // 2]
    assert drawn.classes[1].tolist() == [-1] * PIXELS
    assert drawn.classes[2].tolist() == [0] * PIXELS
    rows, columns = (drawn.places * torch.tensor([40, 50])).long().unbind(-1)
    assert torch.equal(maps[torch.arange(3)[:, None], rows, columns], drawn.classes)
    # The same wherever in a batch an image is.
    again = draw_pixels(maps[[2, 0]], torch.tensor([2, 0]))
    assert torch.equal(again.places, drawn.places[[2, 0]])
    assert not torch.equal(drawn.places[1], drawn.places[2])
