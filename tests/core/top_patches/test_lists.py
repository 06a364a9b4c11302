"""The running lists: which patches they keep for whom, and what they note of every image that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches._batch import Batch
from lightning_cnnviz.core.top_patches._lists import RunningLists, Wanted
from lightning_cnnviz.core.top_patches._reading import read_at_once
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def traced() -> dict[str, FeatureMaps]:
    """Two layers of three feature maps, each of which is a channel of the image."""
    model = nn.Sequential(nn.Identity(), nn.Identity())
    return {maps.layer: maps for maps in trace_feature_maps(model, IMAGES[:1], select_layers(model, ["0", "1"]))}


def lists_of(*wanted: tuple[str, Any, bool], k: int = 2) -> RunningLists:
    members = [Wanted(frozenset(layers), k, features, whole) for layers, features, whole in wanted]
    return RunningLists(list(traced().values()), members, 1, torch.float32)


def take(lists: RunningLists, images: Tensor, indices: list[int]) -> None:
    batch = Batch(images, torch.tensor(indices), torch.tensor(indices) % 2, lists.seen)
    readings = {
        layer: read_at_once(images, "max", 1, lambda scores, layer=layer: lists.admits(layer, scores, batch))
        for layer in lists.layers
    }
    lists.take(batch, readings, traced())


def test_each_layer_keeps_what_anyone_wants_of_it() -> None:
    lists = lists_of(("0", [2], False), ("01", {"1": [0, 1], "0": [0]}, False), ("1", 1, False))
    take(lists, IMAGES, [0, 1, 2, 3])
    assert [result.features for result in lists.results("max")] == [(0, 2), (0, 1)]
    assert not lists.store.whole


def test_images_stay_whole_where_one_wants_that() -> None:
    lists = lists_of(("0", [0], False), ("1", [1], True))
    take(lists, IMAGES, [0, 1, 2, 3])
    first, second = lists.results("max")
    assert sorted(lists.store.whole) == sorted(second.images[1].tolist())
    assert first.patch(0).untyped_storage().nbytes() <= 64


def test_images_that_come_again_change_nothing() -> None:
    lists = lists_of(("01", None, False))
    take(lists, IMAGES, [3, 1, 0, 2])
    before = lists.results("max")
    take(lists, IMAGES + 5, [2, 2, 0, 1])
    for result, twin in zip(lists.results("max"), before, strict=True):
        for name in ("scores", "activations", "images", "labels", "maxima"):
            assert torch.equal(getattr(result, name), getattr(twin, name)), name
    assert torch.equal(before[0].maxima, IMAGES.amax((0, 2, 3)))


def test_the_lowest_image_without_a_finite_maximum_is_noted() -> None:
    lists = lists_of(("01", None, False))
    spoiled = IMAGES.clone()
    spoiled[1, 2, 3, 3] = spoiled[3, 0, 0, 0] = torch.nan
    take(lists, spoiled[2:], [9, 8])
    take(lists, spoiled[:2], [5, 7])
    assert [result.nonfinite for result in lists.results("max")] == [7, 7]
    lists = lists_of(("01", None, False))
    take(lists, IMAGES, [0, 1, 2, 3])
    assert [result.nonfinite for result in lists.results("max")] == [None, None]


def test_merging_one_rank_changes_nothing() -> None:
    lists = lists_of(("01", None, False), k=9)
    take(lists, IMAGES, [3, 1, 0, 2])
    before = lists.results("max")
    lists.merge()
    for result, twin in zip(lists.results("max"), before, strict=True):
        for name in ("scores", "activations", "images", "labels", "rows", "columns", "boxes", "maxima"):
            assert torch.equal(getattr(result, name), getattr(twin, name)), name
        assert result.nonfinite is None
