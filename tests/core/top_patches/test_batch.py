"""Which images of a batch count, and in which order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnviz.core.data import once
from lightning_cnnviz.core.data.once import SeenImages
from lightning_cnnviz.core.top_patches._batch import Batch, size_of

indices_of_batches = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), min_size=1, max_size=5)


def batch_of(indices: list[int], seen: SeenImages) -> Batch:
    return Batch(torch.zeros(len(indices), 1, 2, 2), torch.tensor(indices), None, seen)


@given(indices_of_batches, st.sampled_from([4, 2**24]))
@settings(deadline=None, derandomize=True)
def test_of_each_image_the_first_counts(batches: list[list[int]], most: int) -> None:
    seen, earlier = SeenImages(), set[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(once, "_MOST_SEEN", most)
        for indices in batches:
            batch = batch_of(indices, seen)
            assert seen.highest == max(earlier, default=-1)
            assert batch.fresh == (min(indices) > max(earlier, default=-1))
            # What is beyond the last index that is remembered counts in every batch, but once in each.
            first = {index: indices.index(index) for index in indices if index not in earlier or index >= most}
            assert batch.places.tolist() == [first[index] for index in sorted(first)]
            values = batch.counted(torch.ones(len(indices), 2))
            assert (values[:, 0] > 0).nonzero().flatten().tolist() == sorted(first.values())
            assert torch.equal(values[:, 0], values[:, 1])
            seen.add(batch.indices)
            earlier |= set(indices)
    assert len(batch) == len(batches[-1])


def test_pairs_are_sorted_by_line_then_image() -> None:
    batch = batch_of([30, 10, 20], SeenImages())
    lines, places = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0, 0, 1, 2, 2])
    order = batch.by_line(lines, places)
    assert [(int(lines[n]), int(batch.indices[places[n]])) for n in order] == [
        (0, 20),
        (0, 30),
        (1, 10),
        (1, 20),
        (1, 30),
    ]


def test_images_too_large_for_packed_positions_are_refused() -> None:
    assert size_of(torch.empty(1, 1, 2, 2**15 - 1)) == (2, 2**15 - 1)
    with pytest.raises(ValueError, match="images of 32768 x 2 px are too large: at most 32,767 px a side"):
        size_of(torch.empty(1, 1, 2**15, 2))
