"""Which images are kept whole, and which give patches alone."""

from __future__ import annotations

import torch
from torch import nn

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches._units import Units
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.patch_store import PatchStore
from lightning_cnnviz.core.top_patches.results import SourceImage

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


def test_images_of_kept_patches_are_there_in_8_bits_and_no_others() -> None:
    images = torch.randint(0, 256, (40, 3, 9, 9), generator=torch.Generator().manual_seed(0)) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    network = nn.Sequential(nn.Conv2d(3, 5, 3))
    miner = PatchMiner(network, select_layers(network, "conv"), k=2, features=[0, 3], sources=True)
    with torch.no_grad():
        for start in range(0, 40, 8):
            batch = (images[start : start + 8] - mean) / std
            with miner.batch(batch, torch.arange(start, start + 8)):
                network(batch)
    result = miner.compute()
    assert [source.index for source in result.sources] == result.shown_images()
    assert 1 < len(result.sources) < 40
    for source in result.sources:
        restored = (source.values() * std + mean) * 255
        assert torch.equal(restored.round(), (images[source.index] * 255).round())
    narrow = result.narrowed(["0"], 1, [3])
    assert [source.index for source in narrow.sources] == [int(result["0"].images[3, 0])]


def test_what_is_not_finite_counts_as_zero_in_8_bits() -> None:
    image = torch.tensor([[[0.0, 1.0], [float("nan"), float("inf")]]])
    assert SourceImage.of(3, image).values().tolist() == [[[0.0, 1.0], [0.0, 0.0]]]
    assert SourceImage.of(3, torch.full((1, 2, 2), 0.5)).values().tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
