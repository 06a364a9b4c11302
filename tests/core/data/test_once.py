from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.data import once
from lightning_cnnviz.core.data.once import EachOnce, SeenImages


def test_fresh_images_are_told_once_in_the_order_of_their_indices() -> None:
    seen = SeenImages()
    assert seen.fresh(torch.tensor([5, 2, 5, 9, 2])).tolist() == [1, 0, 3]
    seen.add(torch.tensor([5, 2, 9]))
    assert seen.fresh(torch.tensor([9, 3, 2])).tolist() == [1]
    assert seen.indices.tolist() == [2, 5, 9]
    assert seen.highest == 9


def test_indices_that_are_too_high_to_be_remembered_are_fresh_again() -> None:
    seen = SeenImages()
    seen.add(torch.tensor([2**24, 3]))
    assert seen.fresh(torch.tensor([2**24, 3])).tolist() == [0]
    assert seen.highest == 2**24


def test_one_process_counts_at_once() -> None:
    counted: list[int] = []
    images = EachOnce(SeenImages(), lambda values: counted.extend(values.tolist()))
    images.take(torch.tensor([0, 7]), torch.tensor([1, 2]))
    images.take(torch.tensor([], dtype=torch.int64), torch.tensor([]))
    assert counted == [1, 2]
    images.merge()
    images.count_waiting()
    assert counted == [1, 2]


def test_images_of_another_rank_wait_and_count_where_nobody_else_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rank 1 of 2: 1 and 3 are its own. Rank 0 has seen 0 and 2; of those that wait, 4 is nowhere else.
    of_rank_0 = iter([torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)])
    monkeypatch.setattr(once, "ranks", lambda: 2)
    monkeypatch.setattr(once, "rank", lambda: 1)
    monkeypatch.setattr(once, "gathered", lambda tensor: [next(of_rank_0), tensor])
    counted: list[int] = []

    def count(values: Tensor, doubled: Tensor) -> None:
        assert torch.equal(2 * values, doubled)
        counted.extend(values.tolist())

    seen = SeenImages()
    images = EachOnce(seen, count)
    for indices in (torch.tensor([1, 2, 3]), torch.tensor([4])):
        images.take(indices, indices, 2 * indices)
        seen.add(indices)
    assert counted == [1, 3]
    images.merge()
    assert counted == [1, 3, 4]
