"""What a tape knows of the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.deconvnet.tape import FarEnough, ProjectionError, Seed, Tape

IMAGES = torch.rand(2, 1, 8, 8)
FILTERS = torch.rand(1, 1, 3, 3)
ZERO = torch.tensor([0])


def taped(method: str = "deconvnet", **options: int) -> Tape:
    tape = Tape(method)  # type: ignore[arg-type]
    with torch.no_grad(), tape.record(IMAGES, **options):
        maps = torch.conv2d(IMAGES, FILTERS)
        tape.mark("conv", maps)
        maps = torch.max_pool2d(torch.relu(maps), 2)
        tape.mark("pool", maps)
        tape.mark("sum", maps.sum((2, 3)))
    return tape


def test_what_lies_behind_a_layer() -> None:
    tape = taped()
    assert [tape.needs_data(layer) for layer in tape.marked] == [False, True, True]
    assert [tape.rectifies(layer) for layer in tape.marked] == [False, True, True]
    assert [tape.follows_windows(layer) for layer in tape.marked] == [True, True, False]
    assert [tape.convolutions(layer) for layer in tape.marked] == [1, 1, 1]
    assert tape.operations_with_data(["conv"]) == 0
    assert tape.operations_with_data(["pool"]) == 3


def test_the_gradient_is_that_of_autograd() -> None:
    image = IMAGES[1:].clone().requires_grad_()
    maps: Tensor = torch.max_pool2d(torch.relu(torch.conv2d(image, FILTERS)), 2)
    (expected,) = torch.autograd.grad(maps[0, 0, 2, 1], image)
    pixels, (top, left) = taped("gradient").project(
        "pool", Seed(slots=ZERO + 1, channels=ZERO, rows=ZERO + 2, columns=ZERO + 1)
    )
    whole = torch.zeros(1, 1, 8, 8)
    height, width = pixels.shape[-2:]
    whole[..., top : top + height, left : left + width] = pixels
    torch.testing.assert_close(whole, expected)


def test_a_recording_that_ends_early_is_completed_by_another() -> None:
    tape = taped(enough=1)
    assert tape.marked == {}
    assert tape.complete(taped())
    assert list(tape.marked) == ["conv", "pool", "sum"]
    other = Tape("deconvnet")
    with torch.no_grad(), other.record(IMAGES):
        other.mark("flipped", IMAGES.flip(2))
    assert not other.complete(taped())


def test_a_constant_is_no_layer() -> None:
    tape = Tape("deconvnet")
    with pytest.raises(ProjectionError, match="layer 'ones' computes nothing from the image"), tape.record(IMAGES):
        tape.mark("ones", torch.ones(2, 1, 8, 8))


def test_far_enough_is_stopped_by_no_except_of_a_network() -> None:
    assert not issubclass(FarEnough, Exception)
