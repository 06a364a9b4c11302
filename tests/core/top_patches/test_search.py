"""Mining whole loaders: against brute force on real networks, without a trace, and with any data."""

from __future__ import annotations

import gc
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from reference.brute_force import brute_force_top_k, feature_maps_by_batch
from reference.support import nan_boxes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, default_collate

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.activity import FeatureActivity
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.core.top_patches.search import diagnose, mine_top_patches
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3, stride=2))


def assert_same_activity(found: FeatureActivity, expected: FeatureActivity) -> None:
    """Sums are of another order of images: to rounding."""
    assert found.features == expected.features
    for part in fields(FeatureActivity):
        first, second = getattr(found, part.name), getattr(expected, part.name)
        if isinstance(first, Tensor):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9, equal_nan=True)


def assert_equal(found: TopPatches, expected: TopPatches) -> None:
    assert (found.k, found.indices_known) == (expected.k, expected.indices_known)
    for mine, theirs in zip(found, expected, strict=True):
        for part in fields(LayerTopPatches):
            first, second = getattr(mine, part.name), getattr(theirs, part.name)
            if part.name == "patches":
                first, second = ([patch for line in lines for patch in line] for lines in (first, second))
                assert len(first) == len(second)
                assert all(map(torch.equal, first, second))
            elif isinstance(first, Tensor):
                assert first.dtype == second.dtype
                assert torch.equal(first, second), part.name
            elif isinstance(first, FeatureActivity):
                assert_same_activity(first, second)
            else:
                assert first == second


# Against brute force


class Plain(nn.Module):
    """Convolutions alone, the nonlinearity a function, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 4, 2, dilation=2), nn.Conv2d(4, 6, (1, 3))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu_(self.a(images.to(self.a.weight.dtype)))
        x = F.max_pool2d(F.relu(self.b(x)), 3, 2, ceil_mode=True)
        return self.c(x).mul_(0.5)  # type: ignore[no-any-return]


def read_at(model: nn.Module) -> dict[str, str]:
    """Of each convolution the module whose output is its feature map: the BatchNorm of the same block, or itself."""
    if isinstance(model, Plain):
        return {"a": "a", "b": "b", "c": "c"}
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    read = {}
    for (name, module), (next_name, following) in zip(modules, [*modules[1:], ("", nn.Identity())], strict=True):
        if isinstance(module, nn.Conv2d):
            # ResNet's basic blocks register conv1, bn1, relu, conv2, bn2: a BatchNorm comes right behind.
            read[name] = next_name if isinstance(following, nn.BatchNorm2d) else name
    return read


def resnet() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


Setting = tuple[Callable[[], nn.Module], list[Tensor], Callable[[], AbstractContextManager[Any]]]

SETTINGS: dict[str, Setting] = {
    "plain": (Plain, [noise(4, 3, 19, 23), noise(3, 3, 19, 23, seed=1)], nullcontext),
    "residual": (resnet, [noise(3, 3, 33, 47), noise(4, 3, 33, 47, seed=1)], nullcontext),
    "inverted residual": (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.25), [noise(3, 3, 40, 33), noise(2, 3, 40, 33)],
        nullcontext,
    ),
    "concatenation": (
        lambda: torchvision.models.squeezenet1_1(), [noise(3, 3, 35, 41), noise(3, 3, 35, 41, seed=1)], nullcontext
    ),
    "sizes of many kinds": (
        Plain, [noise(3, 3, 19, 23), noise(2, 3, 30, 17, seed=1), noise(4, 3, 17, 17, seed=2), noise(1, 3, 19, 23)],
        nullcontext,
    ),
    "uint8": (Plain, list((noise(8, 3, 19, 23) * 60 + 120).clamp(0, 255).to(torch.uint8).split(3)), nullcontext),
    "float64": (lambda: Plain().double(), [noise(5, 3, 19, 23).double()], nullcontext),
    "bfloat16": (
        Plain, [noise(4, 3, 19, 23), noise(3, 3, 19, 23, seed=1)], lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    ),
    "channels last": (
        lambda: resnet().to(memory_format=torch.channels_last),
        [noise(4, 3, 33, 47).to(memory_format=torch.channels_last)], nullcontext,
    ),
}  # fmt: skip


@pytest.mark.parametrize("per_image", [1, 2, None])
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_brute_force_on_the_same_activations(name: str, per_image: int | None) -> None:
    make, batches, context = SETTINGS[name]
    torch.manual_seed(0)
    model = make().eval()
    read = read_at(model)
    with context():
        seen = feature_maps_by_batch(model, {*read.values()}, batches)
        found = mine_top_patches(model, batches, k=4, features=3, per_image=per_image)
    assert {layer.layer for layer in found} == set(read)
    images = [image for batch in batches for image in batch]
    boxes = {size: true_boxes(model, size, images[0].dtype) for size in {tuple(image.shape[1:]) for image in images}}
    for layer in found:
        maps = [maps for batch in seen[read[layer.layer]] for maps in batch]
        for channel, units in enumerate(brute_force_top_k(maps, 4, per_image)):
            filled = layer.images[channel] >= 0
            got = [layer.scores, layer.activations, layer.images, layer.rows, layer.columns]
            assert list(zip(*(part[channel][filled].tolist() for part in got), strict=True)) == units
            for rank, (_, _, image, row, column) in enumerate(units):
                box = boxes[tuple(images[image].shape[1:])][layer.layer][channel, row, column].tolist()
                assert layer.boxes[channel, rank].tolist() == box
                if channel < 3:
                    expected = images[image][:, box[0] : box[2], box[1] : box[3]]
                    assert layer.patch(channel, rank).dtype == expected.dtype
                    assert torch.equal(layer.patch(channel, rank), expected)


TRUE_BOXES: dict[Any, dict[str, Tensor]] = {}


def true_boxes(model: nn.Module, size: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The boxes of each convolution, by NaN; the same for networks of one kind."""

    def compute(image: Tensor, see: Callable[[str, Tensor], None]) -> None:
        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: see(name, output))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        model(image)
        for handle in handles:
            handle.remove()

    key = (type(model), size)
    if key not in TRUE_BOXES:
        image = torch.rand(1, 3, *size, dtype=dtype if dtype.is_floating_point else torch.float32)
        with torch.no_grad():
            TRUE_BOXES[key] = nan_boxes(compute, image)
    return TRUE_BOXES[key]


@pytest.mark.parametrize("per_image", [1, 2, None])
@pytest.mark.parametrize("name", ["plain", "residual", "sizes of many kinds", "bfloat16", "channels last", "float64"])
def test_ranking_at_the_end_of_the_batch_finds_the_same(name: str, per_image: int | None) -> None:
    """As on accelerators, where hooks must not wait for the device."""
    make, batches, context = SETTINGS[name]
    torch.manual_seed(0)
    model = make().eval()
    results = []
    for at_once in (True, False):
        miner = PatchMiner(model, select_layers(model), k=4, per_image=per_image, at_once=at_once)
        with torch.no_grad(), context():
            # Backwards, so that no batch is behind all earlier ones.
            first = sum(map(len, batches))
            for images in batches[::-1]:
                first -= len(images)
                with miner.batch(images, torch.arange(first, first + len(images)), torch.arange(len(images))):
                    model(images)
            results.append(miner.compute())
    assert_equal(*results)


def test_maps_that_are_searched_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small_network().eval(), [noise(5, 2, 9, 9), noise(7, 2, 9, 9, seed=1)]
    expected = mine_top_patches(model, batches, k=4, per_image=2, features=None)
    monkeypatch.setattr("lightning_cnnviz.core.top_patches._reading._CHUNK", 3 * 7 * 7)
    assert_equal(mine_top_patches(model, batches, k=4, per_image=2, features=None), expected)


def test_a_named_convolution_is_read_as_it_is_and_one_by_kind_behind_its_norm() -> None:
    model = small_network().eval()
    model[1].running_mean.copy_(noise(4))
    images = noise(6, 2, 9, 9)
    maps = feature_maps_by_batch(model, ["0", "1"], [images])
    named, by_kind = mine_top_patches(model, [images], "0", k=2), mine_top_patches(model, [images], k=2)
    assert torch.equal(named["0"].activations[:, 0], maps["0"][0].amax((0, 2, 3)))
    assert torch.equal(by_kind["0"].activations[:, 0], maps["1"][0].amax((0, 2, 3)))


def test_timm_networks_are_read_between_norm_and_nonlinearity() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("regnetx_002", pretrained=False).eval()
    fused = {name: module for name, module in model.named_modules() if type(module).__name__ == "BatchNormAct2d"}
    for module in fused.values():
        nn.init.uniform_(module.bias, -4, -2)  # so low that a ReLU would leave nothing
    images = noise(4, 3, 64, 64)
    found = mine_top_patches(model, [images], k=3)
    behind = {layer.layer: fused.get(layer.layer.removesuffix("conv") + "bn") for layer in found}
    convolutions = [name for name, norm in behind.items() if norm is not None]
    assert len(convolutions) > 3
    lowest = 0.0
    for name in convolutions:
        norm = behind[name]
        before = feature_maps_by_batch(model, [name], [images])[name][0]
        maps = F.batch_norm(before, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        assert torch.equal(found[name].activations[:, 0], maps.amax((0, 2, 3)))
        lowest = min(lowest, float(found[name].activations.min()))
    assert lowest < 0


# Any order, any data


class Numbered(Dataset[tuple[Tensor, int]]):
    """Images of whole numbers, so that activations are the same in any batch; or the image's number, if random."""

    def __init__(self, length: int, *, draws: bool = False) -> None:
        self.images = noise(length, 2, 9, 9).round()
        self.draws = draws

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if self.draws:
            return self.images[number] + random.random() + np.random.rand() + torch.rand(()), number
        return self.images[number], number


def whole_number_network() -> nn.Sequential:
    model = small_network().eval()
    model[1].eps = 0.0
    for parameter in model.parameters():
        parameter.data.mul_(4).round_()
    return model


@pytest.mark.parametrize("options", [
    {"batch_size": 3}, {"batch_size": 4, "shuffle": True}, {"batch_size": 5, "shuffle": True, "num_workers": 2},
    {"batch_size": 4, "num_workers": 1, "persistent_workers": True}, {"batch_size": 2, "sampler": range(12, -1, -1)},
])  # fmt: skip
def test_every_loader_of_a_data_set_gives_the_same(options: dict[str, Any]) -> None:
    model, data = whole_number_network(), Numbered(13)
    expected = mine_top_patches(model, DataLoader(data, batch_size=13), k=4, per_image=2)
    loader = DataLoader(data, **options)
    for _ in range(2):
        found = mine_top_patches(model, loader, k=4, per_image=2)
        assert_equal(found, expected)
        assert found["3"].labels is not None
        assert torch.equal(found["3"].labels, found["3"].images)


def test_an_image_that_comes_again_counts_the_first_time() -> None:
    """It may look different: with replacement, the data set's random transforms are drawn anew."""
    model = small_network().eval()
    images = noise(12, 2, 9, 9)
    indices = torch.tensor([5, 2, 5, 0, 2, 1, 5, 3, 3, 7, 0, 1])  # each batch of four has one that came before
    first = [0, 1, 3, 5, 7, 9]
    results = []
    for at_once in (True, False):
        miner = PatchMiner(model, select_layers(model), k=9, features=None, per_image=None, at_once=at_once)
        with torch.no_grad():
            for places in torch.arange(12).split(4):
                with miner.batch(images[places], indices[places]):
                    model(images[places])
            found = miner.compute()
        results.append(found)
        maps = feature_maps_by_batch(model, ["3"], images[first].split(1))["3"]
        units = brute_force_top_k([m[0] for m in maps], 9, None, indices[first].tolist())
        for channel in range(3):
            assert found["3"].images[channel].tolist() == [unit[2] for unit in units[channel]]
            for rank, (_, _, image, _, _) in enumerate(units[channel]):
                top, left, bottom, right = found["3"].boxes[channel, rank].tolist()
                pixels = images[indices.tolist().index(image)]
                assert torch.equal(found["3"].patch(channel, rank), pixels[:, top:bottom, left:right])
    assert_equal(*results)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(noise(7, 2, 9, 9))


def test_streams_are_numbered_as_they_arrive() -> None:
    model, images = small_network().eval(), noise(7, 2, 9, 9)
    expected = mine_top_patches(model, list(images.split(3)), k=3)
    assert expected.indices_known
    loader: Any
    for loader in (DataLoader(Stream(), batch_size=3), iter(images.split(3))):
        found = mine_top_patches(model, loader, k=3)
        assert not found.indices_known
        assert_equal(replace(found, indices_known=True), expected)
        assert diagnose(found, found)[0].stability != diagnose(found, found)[0].stability


def leave_out_the_odd(batch: list[Any]) -> Any:
    return default_collate([(image, number) for image, number in batch if number % 2 == 0])


def twice_each(batch: list[Any]) -> Any:
    return default_collate([(image + extra, number) for image, number in batch for extra in (0, 5)])


@pytest.mark.parametrize("collate", [leave_out_the_odd, twice_each])
def test_a_collate_function_may_leave_images_out_or_make_more(collate: Callable[[list[Any]], Any]) -> None:
    model, data = whole_number_network(), Numbered(12)
    loader = DataLoader(data, batch_size=4, collate_fn=collate, shuffle=True)
    torch.manual_seed(0)
    batches = list(loader)
    torch.manual_seed(0)
    found = mine_top_patches(model, loader, k=30, features=None)
    assert not found.indices_known
    expected = mine_top_patches(model, batches, k=30, features=None)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.activations, theirs.activations)
        assert torch.equal(mine.labels, theirs.labels)
        for first, second in zip(mine.patches, theirs.patches, strict=True):
            assert len(first) == sum(len(images) for images, _ in batches)
            assert all(map(torch.equal, first, second))
        # No number of theirs is that of another image in the data set.
        assert int(mine.images[mine.images >= 0].min()) >= len(data)


def test_empty_batches_are_passed_over_and_progress_is_told_of_every_batch() -> None:
    told = []

    def progress(batches: Any) -> Iterator[Any]:
        for item in batches:
            told.append(1)
            yield item

    images = noise(5, 2, 9, 9)
    batches = [images[:0], images[:2], images[2:2], images[2:]]
    found = mine_top_patches(small_network(), batches, k=3, progress=progress)
    assert len(told) == 4
    assert_equal(found, mine_top_patches(small_network(), list(images.split((2, 3))), k=3))


def test_batch_fn_and_mappings() -> None:
    images, labels = noise(5, 2, 9, 9), torch.arange(5)
    expected = mine_top_patches(small_network(), [(images, labels)], k=3)
    read = mine_top_patches(
        small_network(), [[labels, {"scan": images}]], k=3, batch_fn=lambda batch: (batch[1]["scan"], batch[0])
    )
    assert_equal(read, expected)
    assert_equal(mine_top_patches(small_network(), [{"pixel_values": images, "labels": labels}], k=3), expected)


@pytest.mark.parametrize(("features", "kept"), [
    (2, ((0, 1), (0, 1))), (16, ((0, 1, 2, 3), (0, 1, 2))), (None, ((0, 1, 2, 3), (0, 1, 2))),
    ([2, 0], ((0, 2), (0, 2))), ({"3": [1]}, ((), (1,))), ({"0": 3, "3": [2]}, ((0, 1, 2), (2,))), ([], ((), ())),
])  # fmt: skip
def test_patches_are_kept_of_the_features_that_are_asked_for(features: Any, kept: tuple[tuple[int, ...], ...]) -> None:
    images = noise(6, 2, 9, 9)
    everything = mine_top_patches(small_network(), [images], k=3, features=None)
    found = mine_top_patches(small_network(), [images], k=3, features=features)
    assert tuple(layer.features for layer in found) == kept
    for layer in found:
        assert torch.equal(layer.activations, everything[layer.layer].activations)
        for feature in range(len(layer.activations)):
            if feature in layer.features:
                assert torch.equal(layer.patch(feature, 2), everything[layer.layer].patch(feature, 2))
            else:
                with pytest.raises(KeyError, match=f"has no patch 0 of feature {feature}"):
                    layer.patch(feature)


# Activations that are no numbers


class Spoiled(nn.Module):
    """Where an image's first pixel is no number, one unit of what the second layer reads is that."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        inner = self.a(images.nan_to_num(0, 0, 0)).clone()
        inner[:, 0, 1, 2] += torch.where(first.isfinite(), 0, first)
        return self.b(inner)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_no_number_is_told_layer_by_layer(at_once: bool) -> None:
    torch.manual_seed(0)
    model = Spoiled()
    for parameter in model.parameters():  # small integers: no rounding that depends on the batch
        parameter.data.mul_(8).round_()
    model.b.weight.data.abs_()
    images = torch.randint(9, (9, 1, 6, 6)).float()
    for number, value in ((7, torch.nan), (4, torch.inf), (5, -torch.inf)):
        images[number, 0, 0, 0] = value
    images[2] = images[1]  # tied
    (maps,) = feature_maps_by_batch(model, ["b"], [images])["b"]
    results = []
    for batches in (torch.arange(9).split(2), torch.arange(9).flip(0).split(4)):
        miner = PatchMiner(model, select_layers(model), k=141, per_image=None, at_once=at_once)
        with torch.no_grad():
            for indices in batches:
                with miner.batch(images[indices], indices):
                    model(images[indices])
            results.append(miner.compute())
    for found in results:
        assert found["a"].nonfinite is None
        assert found["b"].nonfinite == 4
        # Both feature maps read the spoiled unit; all other units of the same images count.
        for channel, units in enumerate(brute_force_top_k(maps, 141, None)):
            assert len(units) == 9 * 16 - 3
            assert found["b"].activations[channel].tolist() == [unit[1] for unit in units]
            assert found["b"].images[channel].tolist() == [unit[2] for unit in units]


@pytest.mark.parametrize("at_once", [True, False])
def test_minus_infinity_is_a_mask_unless_it_is_all_there_is(at_once: bool) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mask = nn.Conv2d(1, 1, 1), nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            masked: Tensor = self.mask(self.conv(images).masked_fill(images < 0, -torch.inf))
            return masked

    model = Masked()
    images = torch.rand(3, 1, 4, 4)
    images[1, 0, 2] = -1

    def nonfinite() -> int | None:
        miner = PatchMiner(model, select_layers(model, "mask"), k=2, at_once=at_once)
        with torch.no_grad():
            with miner.batch(images, torch.arange(3)):
                model(images)
            return miner.compute()["mask"].nonfinite

    assert nonfinite() is None
    images[2] = -1
    assert nonfinite() == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_network_that_gives_nothing_but_nan(at_once: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model[0].weight.data.fill_(torch.nan)
    miner = PatchMiner(model, select_layers(model), k=2, at_once=at_once)
    with torch.no_grad():
        for indices in torch.arange(6).split(2):
            with miner.batch(torch.rand(2, 1, 5, 5), indices):
                model(torch.rand(2, 1, 5, 5))
        found = miner.compute()
    assert found["0"].nonfinite == 0
    assert bool((found["0"].images == -1).all())
    assert found["0"].patches == ((), ())
    assert found["0"].maxima.isnan().all()
    assert not found["0"].dead.any()
    (summary,) = diagnose(found, found)
    for number in (summary.dead_features, summary.dead_fraction, summary.stability):
        assert number != number


@pytest.mark.fault(
    "numbers",
    "feature maps are NaN on some of the images",
    "one that is above zero on another image is alive, one that is not is neither dead nor alive: the dead fraction is "
    "NaN",
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_not_finite_is_not_dead(at_once: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    model[0].weight.data.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    images = torch.rand(3, 1, 4, 4) + 0.1
    images[1, 0, 0, 0] = torch.nan
    miner = PatchMiner(model, select_layers(model), k=2, at_once=at_once)
    with torch.no_grad(), miner.batch(images, torch.arange(3)):
        model(images)
    found = miner.compute()["0"]
    assert found.maxima.isnan().tolist() == [False, True]
    assert not found.dead.any()
    (summary,) = diagnose(miner.compute())
    assert summary.dead_fraction != summary.dead_fraction
    assert summary.label_purity != summary.label_purity


# Memory


def test_images_that_no_patch_needs_are_let_go() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))
    for parameter in model[2].parameters():
        parameter.data[1] = parameter.data[0]  # the same images for both
    miner = PatchMiner(model, select_layers(model), k=2)
    alive = []
    with torch.no_grad():
        for start in range(0, 40, 4):
            images = noise(4, 2, 11, 11, seed=start)
            alive.append(weakref.ref(images))
            with miner.batch(images, torch.arange(start, start + 4)):
                model(images)
        del images
        found = miner.compute()
        assert miner._lists is not None
        store = miner._lists.store
        # A small patch has memory of its own; nearly whole ones of one image share that image.
        held = [patch for line in store._held for patch in line.values()]
        assert len(held) == 10
        assert sorted(store.whole) == sorted(set(found["2"].images.flatten().tolist()))
        sizes = {patch.untyped_storage().data_ptr(): patch.untyped_storage().nbytes() for patch in held}
        assert len(sizes) == 6 + 2
        assert sum(sizes.values()) == 6 * (2 * 3 * 3 * 4) + 2 * (2 * 11 * 11 * 4)
    gc.collect()
    assert [reference() for reference in alive] == [None] * 10
    assert found["2"].patch(0).shape == (2, 11, 11)


# No trace


def random_states() -> list[Any]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_changed_by_looking(workers: int, fails: bool) -> None:
    model = small_network().train()
    model[1].eval()  # a frozen BatchNorm in a network that trains
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = noise(*model[3].weight.shape)
    calls = []

    def stumble(*_: Any) -> None:
        calls.append(1)
        if fails and len(calls) == 4:
            raise KeyError("stumbled")

    handle = model[3].register_forward_pre_hook(stumble)
    data = Numbered(11, draws=True)
    of_loader, of_sampler = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sampler = RandomSampler(data, generator=of_sampler)
    loader = DataLoader(
        data, 2, sampler=sampler, generator=of_loader, num_workers=workers, persistent_workers=workers > 0
    )
    next(iter(loader))  # so that persistent workers are alive

    def trace() -> list[Any]:
        hooks = [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]
        modes = [module.training for module in model.modules()]
        weights = [
            (id(p), p.requires_grad, None if p.grad is None else id(p.grad), p.tolist()) for p in model.parameters()
        ]
        buffers = [buffer.tolist() for buffer in model.buffers()]
        generators = [of_loader.get_state().tolist(), of_sampler.get_state().tolist()]
        of_loop = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), id(loader._iterator), id(loader.sampler))
        return [hooks, modes, weights, buffers, generators, random_states(), of_loop]

    before = trace()
    if fails:
        # While the error is in hand, its traceback keeps everything alive that was under way.
        with pytest.raises(KeyError, match="stumbled") as caught:
            mine_top_patches(model, loader, k=2)
        assert trace() == before
        del caught
    else:
        mine_top_patches(model, loader, k=2)
    assert trace() == before
    assert len(calls) >= 4
    handle.remove()


def test_it_looks_from_inference_mode_and_into_what_has_no_gradient() -> None:
    model, images = small_network(), noise(4, 2, 9, 9)
    expected = mine_top_patches(model, [images], k=2)
    with torch.inference_mode():
        assert_equal(mine_top_patches(model, [images], k=2), expected)
    assert_equal(mine_top_patches(model.requires_grad_(False), [images], k=2), expected)
    assert not any(patch.requires_grad for layer in expected for line in layer.patches for patch in line)
    assert not any(getattr(layer, name).requires_grad for layer in expected for name in ("activations", "boxes"))


# Compiled networks


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_is_mined_without_its_compiled_code(in_place: bool) -> None:
    images = noise(4, 2, 9, 9)
    expected = mine_top_patches(small_network(), [images], k=2)
    model: Any = small_network().eval()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(images)
    assert_equal(mine_top_patches(model, [images], k=2), expected)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("in_place", [True, False])
def test_passes_of_compiled_code_are_refused_where_they_do_not_see_hooks(in_place: bool) -> None:
    images = noise(4, 2, 9, 9)
    expected = mine_top_patches(small_network(), [images], k=2)
    model: Any = small_network().eval()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(images)
        miner = PatchMiner(model, select_layers(model), k=2)
        try:
            with miner.batch(images, torch.arange(4)):
                model(images)
        except RuntimeError as error:
            assert "layer '0', '3' were never called: the network is compiled" in str(error)  # noqa: PT017
        else:  # torch 2.6 compiles a network anew that was compiled in place, with the hooks
            assert in_place
            assert_equal(miner.compute(), expected)


# Passes of somebody else


def test_a_layer_that_does_not_run_this_time_is_told() -> None:
    model = small_network()
    miner = PatchMiner(model, select_layers(model), k=2)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="layer '0', '3' did not run when this batch was processed"),
        miner.batch(noise(2, 2, 9, 9), torch.arange(2)),
    ):
        model[0](noise(2, 2, 9, 9))


def test_a_pass_over_other_images_is_told_after_it() -> None:
    model = small_network()
    miner = PatchMiner(model, select_layers(model), k=2)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"layer '0' gave \(5, 4, 7, 7\) where the batch's images give \(2, 4, 7"),
        miner.batch(noise(2, 2, 9, 9), torch.arange(2)),
    ):
        assert model(noise(5, 2, 9, 9)).shape[0] == 5


def test_the_first_of_several_passes_counts() -> None:
    model, images = small_network().eval(), noise(6, 2, 9, 9)
    expected = mine_top_patches(model, [images], k=3)
    miner = PatchMiner(model, select_layers(model), k=3)
    with torch.no_grad():
        with miner.batch(images, torch.arange(6)):
            for seen in (images, images.flip(3)):
                model(seen)
        model(images * 2)  # between batches
    assert_equal(miner.compute(), expected)


# What is refused


@pytest.mark.parametrize(("model", "options", "error", "message"), [
    (small_network, {"layers": "conv9"}, ValueError, "no layer of Sequential matches 'conv9'"),
    (small_network, {"features": {"3": [0, 3]}}, ValueError, r"features=\[3\] asked for, but layer '3' has 3 feature"),
    (small_network, {"features": {"0": 1, "9": 1}}, ValueError, r"layers \['9'\], which are not among those chosen"),
    (small_network, {"layers": "2", "features": [4]}, ValueError, r"features=\[4\] asked for, but layer '2' has 4"),
    (small_network, {"k": -1}, ValueError, "k=-1: at least one unit"),
    (small_network, {"per_image": 0}, ValueError, "per_image=0: at least one unit"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(162, 2)), {}, ValueError, "Sequential has no Conv2d; it is made of"),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(2)), {"layers": "1"}, TypeError, "'1' .Flatten. returns no"),
])  # fmt: skip
def test_wrong_arguments_are_refused_and_leave_no_trace(
    model: Callable[[], nn.Module], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    network = model().train()
    states = random_states()
    with pytest.raises(error, match=message):
        mine_top_patches(network, [noise(2, 2, 9, 9)], **options)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    # Making the network drew from the global generator, looking did not.
    assert random_states() == states


@pytest.mark.parametrize(("loader", "error", "message"), [
    ([], ValueError, "the loader list is empty: it gave no image"),
    ([torch.zeros(0, 2, 9, 9)], ValueError, "the loader list is empty"),
    (DataLoader(TensorDataset(torch.zeros(0, 2, 9, 9))), ValueError, "the loader DataLoader is empty"),
    (["images"], TypeError, "no images found in a batch of form str"),
    ([{"scan": torch.zeros(2, 2, 9, 9)}], TypeError, r"form \{'scan': Tensor\}: it takes"),
    ([torch.zeros(2, 2, 9, 9, dtype=torch.int64)], TypeError, r"torch.int64 of shape \(2, 2, 9, 9\); images are float"),
    ([torch.zeros(2, 9, 9)], TypeError, r"shape \(2, 9, 9\); images are float or uint8"),
    ([torch.zeros(1, 2, 3, 2**15)], ValueError, "images of 3 x 32768 px are too large"),
])  # fmt: skip
def test_wrong_data_is_refused(loader: Any, error: type[Exception], message: str) -> None:
    model = small_network()
    with pytest.raises(error, match=message):
        mine_top_patches(model, loader)
    assert all(module.training for module in model.modules())


def test_windows_have_no_feature_maps_of_the_image() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inside = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.before(images)
            windows = maps.unflatten(3, (2, 4)).permute(0, 3, 1, 2, 4).flatten(0, 1)
            return self.inside(windows)  # type: ignore[no-any-return]

    model = Windows()
    found = mine_top_patches(model, [torch.rand(3, 1, 8, 8)], k=2)
    assert [layer.layer for layer in found] == ["before"]
    with pytest.raises(TypeError, match=r"layer 'inside' \(Conv2d\) returns no feature maps"):
        trace_feature_maps(model, torch.rand(1, 1, 8, 8), select_layers(model, "inside"))


# Diagnostics and results


def layer_result(scores: Any, images: Any, labels: Any = None, name: str = "a", maxima: Any = None) -> LayerTopPatches:
    scores = torch.tensor(scores)
    empty = torch.zeros(scores.shape, dtype=torch.int64)
    return LayerTopPatches(
        layer=name,
        scores=scores,
        activations=scores.clone(),
        images=torch.tensor(images),
        labels=None if labels is None else torch.tensor(labels),
        rows=empty,
        columns=empty,
        boxes=torch.zeros(*scores.shape, 4, dtype=torch.int64),
        maxima=scores[:, 0].clone() if maxima is None else torch.tensor(maxima),
        features=(),
        patches=(),
    )


def result_of(*layers: LayerTopPatches, k: int = 3) -> TopPatches:
    return TopPatches(layers=layers, k=k)


def test_diagnostics_of_a_small_example() -> None:
    none = -torch.inf
    now = layer_result(
        [[3.0, 2, 1], [0.0, -1, -2], [2.0, 1, none], [-1.0, -2, -3], [none, none, none]],
        [[1, 2, 3], [4, 5, 6], [7, 8, -1], [1, 5, 9], [-1, -1, -1]],
        [[5, 5, 6], [1, 2, 3], [7, 8, 0], [1, 1, 1], [0, 0, 0]],
    )
    before = layer_result([[0.0] * 3] * 5, [[3, 2, 9], [4, 5, 6], [-1, -1, -1], [2, 3, 4], [-1, -1, -1]])
    (summary,) = diagnose(result_of(now), result_of(before))
    # The second, fourth and fifth were never above zero.
    assert (summary.layer, summary.dead_features, summary.dead_fraction) == ("a", 3, pytest.approx(0.6))
    # {1 2 3} and {2 3 9}: 2 of 4; {4 5 6}: all; {7 8} and nothing: none; {1 5 9} and {2 3 4}: none; nothing twice: no
    # say.
    assert summary.stability == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    # Two of three, and one of two.
    assert summary.label_purity == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_diagnostics_that_cannot_be_told_are_nan() -> None:
    result = result_of(layer_result([[1.0]], [[0]]), k=1)
    for summaries in (
        diagnose(result),
        diagnose(result, result_of(layer_result([[1.0]], [[0]], name="b"), k=1)),
        diagnose(result, result_of(layer_result([[1.0], [1.0]], [[0], [0]]), k=1)),
        diagnose(result, replace(result, indices_known=False)),
        diagnose(replace(result, indices_known=False), result),
    ):
        assert summaries[0].stability != summaries[0].stability
        assert summaries[0].label_purity != summaries[0].label_purity
    dead = result_of(layer_result([[-1.0]], [[0]], [[3]]), k=1)
    assert diagnose(dead, dead)[0].stability == 1.0
    assert diagnose(dead)[0].label_purity != diagnose(dead)[0].label_purity


def test_a_result_can_be_stored_and_holds_no_more_than_it_says(tmp_path: Any) -> None:
    model = small_network()
    found = mine_top_patches(model, [(noise(9, 2, 9, 9), torch.arange(9))], k=3, features=2)
    stored = pickle.dumps(found)
    assert_equal(pickle.loads(stored), found)
    assert len(stored) < 20_000
    torch.save(found, tmp_path / "found.pt")
    assert_equal(torch.load(tmp_path / "found.pt", weights_only=False), found)
