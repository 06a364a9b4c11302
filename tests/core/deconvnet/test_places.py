"""Which elements of its memory a tensor is made of."""

from __future__ import annotations

import torch

from lightning_cnnviz.core.deconvnet._places import Place


def test_the_elements_are_where_the_strides_say() -> None:
    memory = torch.arange(24)
    view = memory.view(2, 3, 4)[:, 1:, ::2].transpose(1, 2)
    indices = Place.of(view).indices()
    assert torch.equal(memory[indices], view)
    row = memory.view(2, 3, 4)[0, 1]
    assert Place.of(view).elements_at(Place.of(row).indices()).tolist() == [0, -1, 2, -1]


def test_strides_of_a_single_row_do_not_matter() -> None:
    first, second = torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1).to(memory_format=torch.channels_last)
    assert first.stride() != second.stride()
    assert Place.of(first).same_elements(Place.of(second))
    assert not Place.of(first).same_elements(Place.of(torch.zeros(2, 4, 1, 1)[:, 1:]))
