"""Which images are kept whole, and which give patches alone."""

from __future__ import annotations

import torch

from lightning_cnnviz.core.top_patches._units import Units
from lightning_cnnviz.core.top_patches.patch_store import PatchStore

IMAGE = torch.arange(2 * 20 * 20, dtype=torch.float32).view(1, 2, 20, 20)


def kept(boxes: list[tuple[int, int, int, int]]) -> tuple[PatchStore, list[torch.Tensor]]:
    """A store after one image has given a patch to each of as many lines."""
    count = len(boxes)
    nothing = torch.zeros(count, 1, dtype=torch.int64)
    units = Units.packed(
        scores=torch.ones(count, 1),
        activations=torch.ones(count, 1),
        images=torch.full((count, 1), 5),
        labels=None,
        rows=nothing,
        columns=nothing,
        boxes=torch.tensor(boxes)[:, None],
    )
    store = PatchStore(torch.arange(count))
    store.keep(units, IMAGE, torch.tensor([5]), torch.tensor([0]))
    return store, [patch for line in store.collect(units) for patch in line]


def test_large_patches_that_exceed_their_image_share_one_copy_of_it() -> None:
    boxes = [(0, 0, 15, 15), (5, 5, 20, 20), (0, 0, 2, 3)]
    store, patches = kept(boxes)
    assert list(store.whole) == [5]
    addresses = [patch.untyped_storage().data_ptr() for patch in patches]
    assert addresses[0] == addresses[1] != addresses[2]  # a small one would hold on to all of it
    for (top, left, bottom, right), patch in zip(boxes, patches, strict=True):
        assert torch.equal(patch, IMAGE[0, :, top:bottom, left:right])


def test_fewer_are_copied_by_themselves() -> None:
    boxes = [(0, 0, 15, 15), (8, 8, 20, 20)]
    store, patches = kept(boxes)
    assert not store.whole
    assert len({patch.untyped_storage().data_ptr() for patch in patches}) == 2
    for (top, left, bottom, right), patch in zip(boxes, patches, strict=True):
        assert torch.equal(patch, IMAGE[0, :, top:bottom, left:right])
