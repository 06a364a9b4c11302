from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.probing import tap
from lightning_cnnviz.core.probing.features import Features, merge_features
from lightning_cnnviz.core.probing.tap import FeatureTap, tap_features
from lightning_cnnviz.core.probing.targets import draw_pixels


class Net(nn.Module):
    """A BatchNorm, an in-place and a functional ReLU, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(self.relu(self.norm(self.conv1(images))), 2)
        logits: Tensor = self.head(F.relu(self.conv2(maps)).mean((2, 3)))
        return logits


def dataset(count: int = 21, side: int = 12) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.rand(count, 1, side, side, generator=generator), torch.arange(count) % 4)


def assert_same(first: Features, second: Features) -> None:
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.labels, second.labels)
    for one, other in zip(first, second, strict=True):
        assert one.layer == other.layer
        assert torch.allclose(one.dense(), other.dense(), atol=1e-6)


def test_features_are_what_the_next_layer_reads_pooled() -> None:
    net, data = Net().eval(), dataset()
    found = tap_features(net, DataLoader(data, batch_size=4), pool=100)
    images = data.tensors[0]
    with torch.no_grad():
        first = F.relu(net.norm(net.conv1(images)))
        second = F.relu(net.conv2(F.max_pool2d(first, 2)))
    assert [(layer.layer, layer.shape, layer.pooled) for layer in found] == [
        ("conv1", (6, 12, 12), (4, 4)),
        ("conv2", (8, 4, 4), (3, 4)),
    ]
    assert torch.allclose(found["conv1"].dense(), F.adaptive_avg_pool2d(first, (4, 4)).flatten(1), atol=1e-6)
    assert torch.allclose(found["conv2"].dense(), F.adaptive_avg_pool2d(second, (3, 4)).flatten(1), atol=1e-6)
    assert found.indices_known
    assert torch.equal(found.labels, data.tensors[1])
    assert not found["conv1"].dense().requires_grad
    whole = tap_features(net, DataLoader(data, batch_size=4), "head")
    assert whole["head"].dense().shape == (21, 4)
    with pytest.raises(KeyError, match="conv3"):
        found["conv3"]


def test_a_layer_chosen_by_name_is_read_as_it_is() -> None:
    net, data = Net().eval(), dataset()
    loader = DataLoader(data, batch_size=4)
    with torch.no_grad():
        plain = net.conv1(data.tensors[0]).flatten(1)
        normed = net.norm(net.conv1(data.tensors[0])).flatten(1)
    assert torch.allclose(tap_features(net, loader, "conv1")["conv1"].dense(), plain, atol=1e-6)
    unrectified = tap_features(net, loader, rectify=False)["conv1"].dense()
    assert torch.allclose(unrectified, normed, atol=1e-6)
    assert float(unrectified.min()) < 0


def test_what_runs_in_place_behind_a_layer_does_not_reach_its_features() -> None:
    net, data = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3)), dataset()
    found = tap_features(net, DataLoader(data, batch_size=4), "0", pool=10_000)
    with torch.no_grad():
        assert torch.allclose(found["0"].dense(), net[0](data.tensors[0]).flatten(1), atol=1e-6)
    assert float(found["0"].dense().min()) < 0


def test_whole_maps_are_streamed_to_disk(tmp_path: Path) -> None:
    net, loader = Net(), DataLoader(dataset(), batch_size=4)
    memory = tap_features(net, loader, pool=10_000)
    disk = tap_features(net, loader, pool=None, folder=tmp_path)
    assert_same(memory, disk)
    layer = disk["conv1"]
    assert layer.values is None
    assert layer.file == tmp_path / "conv1.f32"
    assert layer.file.stat().st_size == 21 * 6 * 144 * 4
    assert torch.equal(torch.cat(list(layer.chunks(100)), 1), memory["conv1"].dense())
    temporary = tap_features(net, loader, pool=None)
    file = temporary["conv2"].file
    assert file is not None
    assert file.exists()
    assert_same(memory, temporary)
    del temporary
    gc.collect()
    assert not file.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_the_data_sets_whatever_the_loader(workers: int) -> None:
    net, data = Net(), dataset()
    plain = tap_features(net, DataLoader(data, batch_size=4))
    generator = torch.Generator().manual_seed(5)
    shuffled = DataLoader(data, batch_size=5, shuffle=True, generator=generator, num_workers=workers, drop_last=True)
    state = generator.get_state()
    assert_same(tap_features(net, shuffled), plain)
    assert torch.equal(generator.get_state(), state)
    batches = [(data.tensors[0][:9], data.tensors[1][:9]), (data.tensors[0][9:], data.tensors[1][9:])]
    assert_same(tap_features(net, batches), plain)


@settings(max_examples=15, derandomize=True)
@given(st.integers(1, 5), st.one_of(st.none(), st.integers(1, 25)), st.integers(0, 9))
def test_parts_of_ranks_merge_to_the_whole(ranks: int, limit: int | None, seed: int) -> None:
    net, loader = Net(), DataLoader(dataset(), batch_size=4)
    options: dict[str, Any] = {"limit": limit, "seed": seed, "pool": 64}
    whole = tap_features(net, loader, **options)
    assert len(whole.labels) == min(limit or 21, 21)
    parts = [tap_features(net, loader, part=(rank, ranks), **options) for rank in range(ranks)]
    assert_same(merge_features(parts), whole)
    assert_same(merge_features([*parts, parts[0]]), whole)  # what comes twice counts once


def test_another_seed_draws_other_images_and_batches_have_parts_too() -> None:
    net, data = Net(), dataset()
    drawn = [tap_features(net, DataLoader(data, batch_size=4), limit=8, seed=seed).indices for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    batches = [(data.tensors[0], data.tensors[1])]
    parts = [tap_features(net, batches, part=(rank, 2), limit=10) for rank in range(2)]
    assert [part.indices.tolist() for part in parts] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


class Noisy(Dataset[tuple[Tensor, int]]):
    """Random transforms, by torch's, numpy's and Python's generators."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 12, 12), index % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_no_trace_is_left_and_random_transforms_repeat(workers: int) -> None:
    net = Net().train()
    net.norm.eval()
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers)
    state, python, weights = (
        torch.get_rng_state(),
        random.getstate(),
        {k: v.clone() for k, v in net.state_dict().items()},
    )
    first, second = tap_features(net, loader), tap_features(net, loader)
    assert_same(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert [module.training for module in (net, net.conv1, net.norm)] == [True, True, False]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="NaN"):
        tap_features(net, [(torch.full((2, 1, 12, 12), torch.nan), torch.arange(2))])
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_layers_chosen_before_are_found_in_a_copy() -> None:
    net, other = Net(), Net()
    nn.init.zeros_(other.conv1.weight)
    chosen = select_layers(net, "conv")
    loader = DataLoader(dataset(), batch_size=8)
    assert_same(tap_features(other, loader, chosen), tap_features(other, loader))
    with pytest.raises(LayerNotFoundError, match="conv1"):
        tap_features(nn.Sequential(nn.Conv2d(1, 2, 3)), loader, chosen)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(*dataset(5).tensors, strict=True)


def test_data_without_indices_is_numbered_as_it_comes() -> None:
    found = tap_features(Net(), DataLoader(Stream(), batch_size=2))
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert not found.indices_known


IMAGES = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (IMAGES, "needs the class of each image, but the batch has no labels"),
        ((IMAGES, ["a"] * 4), "labels are a list"),
        ((IMAGES, IMAGES), r"classes, labels or values, but the labels are torch.float32 of shape \(4, 1, 12, 12\)"),
        ((IMAGES, torch.full((4,), torch.nan)), r"classes, labels or values, but the labels are torch.float32"),
        ({"image": IMAGES, "label": torch.full((4, 5), -100)}, r"the labels are torch.int64 of shape \(4, 5\)"),
    ],
)
def test_labels_that_a_probe_cannot_use_are_named(batch: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tap_features(Net(), [batch])


def test_what_is_not_finite_is_named_by_layer_and_image() -> None:
    images = IMAGES.clone()
    images[2, 0, 5, 5] = torch.inf
    data = TensorDataset(images, torch.arange(4))
    with pytest.raises(ValueError, match="layer 'conv1' gives NaN or infinite features for image 2"):
        tap_features(Net(), DataLoader(data, batch_size=3, shuffle=True))


def test_bad_arguments_are_named() -> None:
    loader = DataLoader(dataset(), batch_size=4)
    with pytest.raises(ValueError, match="pool=0"):
        tap_features(Net(), loader, pool=0)
    with pytest.raises(ValueError, match="limit=0"):
        tap_features(Net(), loader, limit=0)
    with pytest.raises(ValueError, match="it gave no image"):
        tap_features(Net(), [])
    with pytest.raises(ValueError, match="no part has an image"):
        merge_features([])
    with pytest.raises(LayerNotFoundError, match="conv1"):
        tap_features(Net(), loader, "conv9")
    first, second = tap_features(Net(), loader, "conv1"), tap_features(Net(), loader, "conv2")
    with pytest.raises(ValueError, match="different layers"):
        merge_features([first, second])
    sizes = [(torch.rand(2, 1, side, side), torch.arange(2)) for side in (12, 14)]
    assert tap_features(Net(), sizes, pool=100)["conv1"].dense().shape == (4, 96)
    with pytest.raises(ValueError, match="different sizes"):
        tap_features(Net(), sizes, pool=None)


def test_only_chosen_images_are_read() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    data = TensorDataset(torch.rand(9, 1, 6, 6), torch.arange(9))
    whole = tap_features(model, DataLoader(data, batch_size=4))
    some = tap_features(model, DataLoader(data, batch_size=2, shuffle=True), indices=torch.tensor([1, 4, 7]))
    assert some.indices.tolist() == some.labels.tolist() == [1, 4, 7]
    assert torch.allclose(some["0"].dense(), whole["0"].dense()[[1, 4, 7]])
    with pytest.raises(ValueError, match="the loader list has no indices to choose by"):
        tap_features(model, [(torch.rand(2, 1, 6, 6), torch.arange(2))], indices=torch.tensor([1]))


def in_batches(net: nn.Module, places: Tensor, wanted: Tensor | None = None) -> FeatureTap:
    """What a tap gathers from passes that somebody else makes, in inference mode."""
    images, labels = dataset().tensors
    taps = FeatureTap(net, select_layers(net), pool=64, wanted=wanted)
    for part in places.split(4):
        with torch.inference_mode(), taps.batch(images[part], part, labels[part]):
            net(images[part])
    return taps


@pytest.mark.parametrize("wanted", [None, [2, 3, 11]])
def test_passes_of_somebody_else_give_the_same(wanted: list[int] | None) -> None:
    net = Net().eval()
    indices = None if wanted is None else torch.tensor(wanted)
    found = in_batches(net, torch.randperm(21), indices).compute()
    assert_same(found, tap_features(net, DataLoader(dataset(), batch_size=4), pool=64, indices=indices))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_ranks_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net().eval()
    taps = [in_batches(net, torch.arange(22)[rank::2] % 21) for rank in range(2)]  # image 0 comes on both
    exchanged: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        monkeypatch.setattr(tap, "ranks", lambda: 2)
        monkeypatch.setattr(tap, "gathered", lambda own, rank=rank: exchanged[rank].append(own) or [own, own])
        taps[rank].merge()
        taps[rank]._merged = None
    pairs = iter(zip(*exchanged, strict=True))
    monkeypatch.setattr(tap, "gathered", lambda own: list(next(pairs)))
    taps[0].merge()
    assert_same(taps[0].compute(), tap_features(net, DataLoader(dataset(), batch_size=4), pool=64))


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    net, (images, labels) = Net().eval(), dataset().tensors
    taps = FeatureTap(net, select_layers(net), pool=64)
    with pytest.raises(RuntimeError, match="it failed"), taps.batch(images, torch.arange(21), labels):
        raise RuntimeError("it failed")
    with pytest.raises(ValueError, match=r"layers \['conv1', 'conv2'\] gave no features of so many"):  # noqa: SIM117
        with taps.batch(images, torch.arange(21), labels):
            pass
    with pytest.raises(ValueError, match="a probe needs the class of each image"):  # noqa: SIM117
        with taps.batch(images, torch.arange(21), None):
            net(images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert len(taps.compute().indices) == 0


def test_labels_values_and_pixels_are_gathered_beside_features() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [-1, -1, -1], [1, 1, 0]])
    several = tap_features(Net(), [(IMAGES, labels)])
    assert (several.labels.dtype, several.labels.tolist()) == (torch.int8, [[1, 0, 1], [0, 0, 1], [1, 1, 0]])
    assert (several.indices.tolist(), several.images) == ([0, 1, 3], 3)
    values = tap_features(Net(), [(IMAGES, torch.tensor([0.5, torch.nan, 3.0, -1.0]))])
    assert (values.labels[:, 0].tolist(), values.indices.tolist()) == ([0.5, 3.0, -1.0], [0, 2, 3])


def test_pixels_have_the_features_of_the_cell_that_they_lie_in() -> None:
    maps = torch.zeros(4, 12, 12, dtype=torch.int64)
    maps[:, :, 6:] = 1
    maps[3] = 255
    model = Net().eval()
    found = tap_features(model, [(IMAGES, maps)], ["conv1"])
    assert (len(found.labels), found.pixels, found.images) == (24, 8, 3)
    assert found.labels.bincount().tolist() == [12, 12]
    drawn = draw_pixels(maps.masked_fill(maps == 255, -1), torch.arange(4))
    values = model.conv1(IMAGES)
    size = values.shape[-1]
    rows = found["conv1"].dense()
    for number, (image, pixel) in enumerate((image, pixel) for image in range(3) for pixel in range(8)):
        row, column = (int(place * size) for place in drawn.places[image, pixel].tolist())
        torch.testing.assert_close(rows[number], values[image, :, row, column].detach())
        assert int(found.labels[number]) == int(drawn.places[image, pixel, 1] >= 0.5)
