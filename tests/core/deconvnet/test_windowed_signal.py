"""Signals in windows against signals over whole maps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.deconvnet.windowed_signal import Seed, Signal, Window, add, gathered_at, placed, whole

SHAPE = (1, 2, 5, 6)
SEED = Seed(
    slots=torch.tensor([0, 1, 0]),
    channels=torch.tensor([0, 0, 0]),
    rows=torch.tensor([0, 2, 4]),
    columns=torch.tensor([1, 0, 5]),
)
WINDOW = Window((1, 1), (-1, -1))  # 3 x 3 around each unit


def signal(window: Window = WINDOW, size: tuple[int, int] = (3, 3)) -> Signal:
    return placed(torch.rand(3, 2, *size), window, SHAPE, SEED)


def test_a_window_lies_around_its_unit_and_is_cut_at_the_border() -> None:
    values = torch.ones(3, 2, 3, 3)
    maps = whole(placed(values.clone(), WINDOW, SHAPE, SEED), SHAPE, SEED)
    expected = torch.zeros(3, 2, 5, 6)
    expected[0, :, 0:2, 0:3], expected[1, :, 1:4, 0:2], expected[2, :, 3:5, 4:6] = 1, 1, 1
    assert torch.equal(maps, expected)


def test_signals_add_up_as_whole_maps_do() -> None:
    def same(first: Signal, second: Signal) -> Tensor:
        joined = whole(add(first, second, SHAPE, SEED), SHAPE, SEED)
        torch.testing.assert_close(joined, whole(first, SHAPE, SEED) + whole(second, SHAPE, SEED))
        return joined

    first = signal()
    same(first, signal())
    same(first, signal(Window((1, 1), (0, -2)), (2, 4)))
    same(first, signal(Window((2, 2), (0, 0))))
    assert bool(same(first, Signal(torch.rand(3, 2, 5, 6), None)).all())


def test_what_a_pass_has_saved_is_read_at_the_places_of_a_signal() -> None:
    data = torch.rand(2, 2, 5, 6)
    values = gathered_at(data, signal(), SEED)
    assert torch.equal(values[1, :, :, 1:], data[1, :, 1:4, 0:2])
    assert torch.equal(values[2, :, :2, :2], data[0, :, 3:5, 4:6])
    assert torch.equal(gathered_at(data, Signal(torch.rand(3, 2, 5, 6), None), SEED), data[SEED.slots])
