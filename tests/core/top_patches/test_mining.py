"""Mining against brute force: value, image, row, column, box and patch, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.brute_force import brute_force_top_k, feature_maps_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.core.top_patches.search import diagnose, mine_top_patches


class Branched(nn.Module):
    """BatchNorm, in-place and functional ReLU, a residual sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.wide = nn.Conv2d(4, 4, 5, padding=2)
        self.narrow = nn.Conv2d(4, 3, 1)
        self.last = nn.Conv2d(7, 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.relu(self.norm(self.stem(images)))
        maps = stem + F.relu(self.wide(stem))
        return self.last(torch.cat([maps, F.relu_(self.narrow(maps))], 1))  # type: ignore[no-any-return]


# What is read behind what, for the reference: the convolution's own output, or its BatchNorm's.
READ = {"stem": "norm", "wide": "wide", "narrow": "narrow", "last": "last"}


def whole_number_net(seed: int) -> Branched:
    """Weights of whole numbers: activations are exact for any batch size, and full of ties."""
    generator = torch.Generator().manual_seed(seed)
    model = Branched().eval()
    for parameter in model.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).float()
    model.norm.eps = 0.0
    return model


def whole_number_images(count: int, seed: int, size: tuple[int, int] = (9, 12)) -> Tensor:
    return torch.randint(-1, 2, (count, 2, *size), generator=torch.Generator().manual_seed(seed)).float()


def assert_is_brute_force(
    result: TopPatches, model: nn.Module, images: Tensor, k: int, per_image: int | None, rank_by: str = "max"
) -> None:
    for layer in result:
        maps = feature_maps_of(model, READ[layer.layer], images)
        assert layer.rank_by == rank_by
        assert torch.equal(layer.maxima, maps.amax((0, 2, 3)))
        for channel, units in enumerate(brute_force_top_k(maps, k, per_image, rank_by=rank_by)):
            filled = layer.images[channel] >= 0
            parts = [layer.scores, layer.activations, layer.images, layer.rows, layer.columns]
            assert list(zip(*(part[channel][filled].tolist() for part in parts), strict=True)) == units
            for rank, (_, _, image, _, _) in enumerate(units):
                top, left, bottom, right = layer.boxes[channel, rank].tolist()
                if channel in layer.features:
                    assert torch.equal(layer.patch(channel, rank), images[image, :, top:bottom, left:right])


def mined(miner: PatchMiner, model: nn.Module, images: Tensor, batches: Iterable[Tensor]) -> TopPatches:
    """What a miner finds in passes over some images, given by their indices."""
    with torch.no_grad():
        for indices in batches:
            with miner.batch(images[indices], indices):
                model(images[indices])
    miner.merge()
    return miner.compute()


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 23),
    batch=st.integers(1, 9),
    k=st.integers(1, 6),
    per_image=st.sampled_from([1, 2, None]),
    rank_by=st.sampled_from(["max", "mean"]),
    shuffle=st.booleans(),
    at_once=st.booleans(),
)
def test_equals_brute_force_for_any_chunking_and_order(
    seed: int, count: int, batch: int, k: int, per_image: int | None, rank_by: RankBy, shuffle: bool, at_once: bool
) -> None:
    model, images = whole_number_net(seed), whole_number_images(count, seed + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(count)
    options: Any = {"k": k, "per_image": per_image, "rank_by": rank_by, "features": None, "at_once": at_once}
    result = mined(PatchMiner(model, select_layers(model), **options), model, images, order.split(batch))
    assert [layer.layer for layer in result] == ["stem", "wide", "narrow", "last"]
    assert_is_brute_force(result, model, images, k, per_image, rank_by)


class Given(nn.Module):
    """Feature maps that are the images themselves: the same numbers, to the last bit, in any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 17),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    last=st.booleans(),
    at_once=st.booleans(),
)
def test_means_of_real_numbers_rank_alike_in_any_batches(
    seed: int, batch: int, height: int, width: int, last: bool, at_once: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(17, 3, height, width, generator=generator)
    images[9:] = images[:8].flip(2)  # the same numbers in another order: means that tie, but for the rounding
    order, model = torch.randperm(17, generator=generator), Given()
    layers = select_layers(model, "maps")
    together = mined(PatchMiner(model, layers, k=9, rank_by="mean"), model, images, [torch.arange(17)])["maps"]
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    miner = PatchMiner(model, layers, k=9, rank_by="mean", at_once=at_once)
    result = mined(miner, model, images, order.split(batch))["maps"]
    for name in ("scores", "activations", "images", "rows", "columns", "boxes", "maxima"):
        assert torch.equal(getattr(result, name), getattr(together, name)), name


def test_what_ranks_what_is_shown_and_what_is_dead_are_three_things() -> None:
    maps = torch.full((3, 3, 4, 4), -1.0)
    maps[0, 0, 1, 2] = 9.0  # the strongest unit of the first map, in the image of the lowest mean
    maps[1, 0] = 2.0
    maps[2, 0], maps[2, 0, 3, 1] = 3.0, 4.0
    maps[1, 1], maps[1, 1, 0, 3] = -3.0, 0.5  # alive, though nothing that ranks is above zero
    model, labels = Given(), torch.tensor([5, 6, 6])
    result = mine_top_patches(model, [(maps, labels)], "maps", k=2, rank_by="mean")
    layer = result["maps"]
    assert layer.rank_by == "mean"
    assert layer.images.tolist() == [[2, 1], [0, 2], [0, 1]]
    assert layer.scores.tolist() == [[49 / 16, 2], [-1, -1], [-1, -1]]
    assert layer.activations.tolist() == [[4, 2], [-1, -1], [-1, -1]]
    assert (layer.rows[0, 0], layer.columns[0, 0]) == (3, 1)
    assert layer.maxima.tolist() == [9, 0.5, -1]
    (summary,) = diagnose(result, result)
    assert summary.dead_features == 1
    assert summary.stability == 1.0
    # Of the two maps that live: {6, 6} and {5, 6}.
    assert summary.label_purity == pytest.approx((1 + 1 / 2) / 2)
    by_max = mine_top_patches(model, [(maps, labels)], "maps", k=2)
    assert by_max["maps"].images.tolist() == [[0, 2], [1, 0], [0, 1]]
    assert torch.equal(by_max["maps"].scores, by_max["maps"].activations)
    assert torch.equal(by_max["maps"].maxima, layer.maxima)
    # {2, 1} and {0, 2}, {0, 2} and {1, 0}, and the same.
    assert diagnose(by_max, result)[0].stability == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)


def test_with_means_the_units_of_an_image_stand_together() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [9.0, 0.0]]], [[[4.0, 4.0], [4.0, 4.0]]]])
    layer = mine_top_patches(Given(), [maps], "maps", k=3, per_image=2, rank_by="mean")["maps"]
    assert layer.images.tolist() == [[1, 1, 0]]
    assert layer.scores.tolist() == [[4.0, 4.0, 3.0]]
    assert layer.activations.tolist() == [[4.0, 4.0, 9.0]]
    assert list(zip(layer.rows[0].tolist(), layer.columns[0].tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("at_once", [True, False])
def test_means_are_of_what_is_finite(at_once: bool) -> None:
    maps = torch.rand(6, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    maps[2, 0, 1, 1], maps[3, 0, 0, 2], maps[4, 1] = torch.nan, -torch.inf, torch.nan
    model = Given()
    for batch in (1, 6):
        miner = PatchMiner(model, select_layers(model, "maps"), k=6, rank_by="mean", at_once=at_once)
        layer = mined(miner, model, maps, torch.arange(6).split(batch))["maps"]
        assert layer.nonfinite == 2
        for channel, units in enumerate(brute_force_top_k(maps, 6, 1, rank_by="mean")):
            count = len(units)
            assert count == (6, 5)[channel]
            assert layer.images[channel, :count].tolist() == [unit[2] for unit in units]
            assert layer.scores[channel, :count].tolist() == pytest.approx([unit[0] for unit in units])
            assert layer.activations[channel, :count].tolist() == [unit[1] for unit in units]


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffled_loader_gives_data_set_indices_and_labels(workers: int) -> None:
    model, images = whole_number_net(0), whole_number_images(31, 1)
    data = TensorDataset(images, torch.arange(31) % 7)
    found = mine_top_patches(model, DataLoader(data, batch_size=4, shuffle=True, num_workers=workers), k=5)
    assert found.indices_known
    assert_is_brute_force(found, model, images, 5, 1)
    for layer in found:
        assert layer.labels is not None
        assert torch.equal(layer.labels, layer.images % 7)


@pytest.mark.parametrize("rank_by", ["max", "mean"])
def test_an_image_that_comes_twice_counts_once(rank_by: RankBy) -> None:
    model, images = whole_number_net(3), whole_number_images(10, 4)
    batches = [torch.tensor([3, 1, 3, 3]), torch.arange(10), torch.tensor([9, 0])]
    for per_image in (1, 2, None):
        options: Any = {"k": 6, "per_image": per_image, "rank_by": rank_by, "features": None}
        result = mined(PatchMiner(model, select_layers(model), **options), model, images, batches)
        assert_is_brute_force(result, model, images, 6, per_image, rank_by)


# One miner for several


def test_a_widened_miner_finds_what_each_would_find_alone() -> None:
    model, images = whole_number_net(0), whole_number_images(15, 1)
    asked: list[dict[str, Any]] = [
        {"layers": ["stem", "last"], "k": 2, "features": [3, 1]},
        {"layers": ["last", "wide"], "k": 5, "features": {"last": [4], "wide": None}, "whole_images": True},
        {"layers": ["narrow"], "k": 1, "features": 2},
    ]

    def miner(*, layers: list[str], **options: Any) -> PatchMiner:
        return PatchMiner(model, select_layers(model, layers), rank_by="mean", **options)

    alone = [mined(miner(**options), model, images, torch.arange(15).split(4)) for options in asked]
    first, *others = (miner(**options) for options in asked)
    assert [first.absorb(other) for other in others] == [True, True]
    wide = mined(first, model, images, torch.arange(15).split(4))
    assert [layer.layer for layer in wide] == ["stem", "wide", "narrow", "last"]
    # No more than what someone wants.
    assert [layer.features for layer in wide] == [(1, 3), (0, 1, 2, 3), (0, 1), (1, 3, 4)]
    for options, expected in zip(asked, alone, strict=True):
        narrow = wide.narrowed(options["layers"], options["k"], options["features"])
        assert [layer.layer for layer in narrow] == [layer.layer for layer in expected]
        for one, other in zip(narrow, expected, strict=True):
            assert one.features == other.features
            for name in ("scores", "activations", "images", "rows", "columns", "boxes", "maxima"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            for line, twin in zip(one.patches, other.patches, strict=True):
                assert all(map(torch.equal, line, twin))
    for layer, features in (("last", [4]), ("wide", [0, 1, 2, 3])):
        for image in wide[layer].images[features].flatten().tolist():
            assert torch.equal(first.images[image], images[image])


@pytest.mark.parametrize(
    "other",
    [{"per_image": 2}, {"rank_by": "mean"}, {"layers": "stem"}, {"model": whole_number_net(0)}],
    ids=lambda other: next(iter(other)),
)
def test_miners_that_look_differently_stay_apart(other: dict[str, Any]) -> None:
    model = whole_number_net(0)
    options = {"model": model, "layers": "conv", **other}
    network, layers = options.pop("model"), options.pop("layers")
    first, second = (
        PatchMiner(model, select_layers(model)),
        PatchMiner(network, select_layers(network, layers), **options),
    )
    assert not first.absorb(second)
    assert not second.absorb(first)
    assert not first.absorb("another kind of computation")
    assert first.absorb(PatchMiner(model, select_layers(model, [nn.Conv2d]), k=3))


def test_a_miner_widens_before_its_first_batch_alone_and_ends_when_ranks_are_merged() -> None:
    model, images = whole_number_net(0), whole_number_images(3, 1)
    first, second = (PatchMiner(model, select_layers(model)) for _ in range(2))
    mined(first, model, images, [torch.arange(2)])
    assert not first.absorb(second)
    assert not second.absorb(first)
    with pytest.raises(RuntimeError, match="the ranks have been merged"), first.batch(images, torch.arange(3)):
        pytest.fail("the batch must not begin")
    with pytest.raises(ValueError, match="no image was seen"):
        second.merge()
    with pytest.raises(ValueError, match="no image was seen"):
        second.compute()


# Passes of somebody else


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_live_as_long_as_the_pass(fails: bool) -> None:
    model, images = whole_number_net(0), whole_number_images(3, 1)
    miner = PatchMiner(model, select_layers(model), features=None)
    with torch.no_grad():
        try:
            with miner.batch(images, torch.arange(3)):
                assert hook_count(model) == 4
                model(images)
                if fails:
                    raise KeyError("the step's own error")
        except KeyError:
            assert fails
    assert hook_count(model) == 0
    # What a failed pass has shown does not count.
    result = mined(miner, model, images, [torch.arange(1, 3)] if fails else [])
    if fails:
        assert 0 not in result["last"].images
        assert torch.equal(result["last"].maxima, feature_maps_of(model, "last", images[1:]).amax((0, 2, 3)))
    else:
        assert_is_brute_force(result, model, images, 9, 1)


def test_our_own_error_comes_after_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("our own error")

    model, images, passed = whole_number_net(0), whole_number_images(3, 1), []
    monkeypatch.setattr("lightning_cnnviz.core.top_patches.mining.read_at_once", fails)
    miner = PatchMiner(model, select_layers(model))
    with pytest.raises(RuntimeError, match="our own error"), torch.no_grad(), miner.batch(images, torch.arange(3)):
        passed.append(model(images))
    assert len(passed) == 1
    assert hook_count(model) == 0


def test_real_numbers_equal_brute_force_on_the_same_activations() -> None:
    torch.manual_seed(0)
    model, images = Branched().eval(), torch.randn(40, 2, 11, 13)
    loader = DataLoader(TensorDataset(images), batch_size=40)
    assert_is_brute_force(mine_top_patches(model, loader, k=9, features=None), model, images, 9, 1)


def test_float64_networks_rank_in_float64() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False).double()
    conv.weight.data.fill_(1.0)
    images = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    images[0], images[1], images[2] = 1.0, 1.0 + 1e-12, 1.0 + 2e-12  # one number in float32
    assert mine_top_patches(nn.Sequential(conv), [images], k=3)["0"].images.tolist() == [[2, 1, 0]]


def test_a_result_stays_as_it_is_when_more_batches_come() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 14, bias=False))
    for conv in (model[0], model[2]):
        conv.weight.data.abs_()
    miner = PatchMiner(model, select_layers(model), k=1)
    with torch.no_grad():
        results = []
        for number in range(3):
            images = torch.full((1, 1, 16, 16), 1.0 + number)
            with miner.batch(images, torch.tensor([number])):
                model(images)
            results.append(miner.compute())
    for number, found in enumerate(results):
        assert all(bool((layer.patch(0) == 1.0 + number).all()) for layer in found)


def test_patches_hold_no_image_that_they_do_not_need() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    found = mine_top_patches(model, [torch.rand(16, 1, 32, 32) for _ in range(4)], k=2)
    for line in found["0"].patches:
        assert all(patch.untyped_storage().nbytes() <= 64 for patch in line)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_reported_and_never_ranked(strange: float, at_once: bool) -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data.fill_(1.0)
    images = torch.rand(8, 1, 4, 4)
    images[6, 0, 1, 1] = images[3, 0, 2, 2] = strange
    model = nn.Sequential(conv)
    miner = PatchMiner(model, select_layers(model), k=8, at_once=at_once)
    with torch.no_grad():
        for indices in (torch.tensor([7, 6, 5, 4]), torch.tensor([3, 2, 1, 0])):
            with miner.batch(images[indices], indices):
                model(images[indices])
        found = miner.compute()["0"]
    assert found.nonfinite == 3
    finite = torch.where(torch.isfinite(images), images, -torch.inf).amax((1, 2, 3))
    assert torch.equal(found.activations[0], finite.sort(descending=True).values)


def test_mixed_sizes_uint8_and_layers_without_space() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    batches = [torch.rand(3, 1, 9, 9), torch.rand(2, 1, 12, 7)]
    found = mine_top_patches(model, batches, layers=["0", "3"], k=5)
    assert found["3"].boxes.shape == (2, 5, 4)
    for rank in range(5):
        image = int(found["3"].images[0, rank])
        whole = batches[0][image] if image < 3 else batches[1][image - 3]
        # The last stride does not reach every row and column: a whole layer depends on what it reaches.
        top, left, bottom, right = found["3"].boxes[0, rank].tolist()
        assert torch.equal(found["3"].patch(0, rank), whole[:, top:bottom, left:right])
        assert (bottom, right) == ((9, 9) if image < 3 else (11, 7))

    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images.float() / 255)  # type: ignore[no-any-return]

    raw = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert mine_top_patches(Scaling(), [raw], k=2)["conv"].patch(0).dtype == torch.uint8


def test_mixed_precision_and_channels_last() -> None:
    torch.manual_seed(0)
    model, images = Branched().eval(), torch.randn(12, 2, 10, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mine_top_patches(model, [images], k=3)
    exact = mine_top_patches(model, [images], k=3)
    assert low["last"].activations.dtype == torch.float32
    assert torch.allclose(low["last"].activations, exact["last"].activations, atol=0.1, rtol=0.05)
    last = mine_top_patches(model.to(memory_format=torch.channels_last), [images], k=3)
    assert torch.allclose(last["last"].activations, exact["last"].activations, atol=1e-5)


def test_leaves_no_trace_also_after_an_error() -> None:
    model, images = Branched(), torch.randn(8, 2, 10, 10)
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.wide.weight.grad = torch.ones_like(model.wide.weight)
    generator = torch.Generator().manual_seed(5)
    loader: Any = DataLoader(TensorDataset(images), batch_size=4, shuffle=True, generator=generator)

    def traces() -> list[Any]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        modes = [module.training for module in model.modules()]
        needs = [parameter.requires_grad for parameter in model.parameters()]
        state = [value.tolist() for value in model.state_dict().values()]
        chance = [torch.get_rng_state().tolist(), generator.get_state().tolist()]
        return [hooks, modes, needs, state, chance, model.wide.weight.grad.sum().item()]  # type: ignore[union-attr]

    before = traces()
    mine_top_patches(model, loader, k=2)
    assert traces() == before
    with pytest.raises(TypeError, match="no images found"):
        mine_top_patches(model, loader, batch_fn=lambda batch: "nothing")
    with pytest.raises(RuntimeError):
        mine_top_patches(model, [images, images[:, :1]], k=2)
    assert traces() == before


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.never = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.twice(self.twice(self.once(images)))  # type: ignore[no-any-return]


def test_layers_that_run_twice_or_never() -> None:
    images = [torch.rand(2, 1, 9, 9)]
    with pytest.warns(UserWarning, match="run more than once.*'twice'"):
        assert [layer.layer for layer in mine_top_patches(Twice(), images)] == ["once"]
    with pytest.raises(ValueError, match="'twice' of Twice runs more than once"):
        mine_top_patches(Twice(), images, layers="twice")
    with pytest.raises(ValueError, match="'never' of Twice does not run"):
        mine_top_patches(Twice(), images, layers=["once", "never"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "convs"}, "no layer of Branched matches 'convs'"),
        ({"layers": "stemm"}, "Did you mean 'stem'"),
        ({"layers": []}, "chooses no layer"),
        ({"k": 0}, "k=0"),
        ({"per_image": 0}, "per_image=0"),
        ({"rank_by": "median"}, r"rank_by='median': images rank by one of \('max', 'mean'\)"),
        ({"features": 0}, "features=0"),
        ({"features": [4]}, r"features=\[4\] asked for, but layer 'stem' has 4 feature maps \(0 to 3\)"),
        ({"features": {"stam": [0]}}, r"\['stam'\], which are not among those chosen"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mine_top_patches(Branched(), [torch.rand(2, 2, 9, 9)], **options)


def test_wrong_data() -> None:
    with pytest.raises(ValueError, match="the loader list is empty"):
        mine_top_patches(Branched(), [])
    with pytest.raises(TypeError, match=r"batch of form dict|\{'scan': Tensor\}"):
        mine_top_patches(Branched(), [{"scan": torch.rand(2, 2, 9, 9)}])
    with pytest.raises(TypeError, match=r"shape \(2, 9\)"):
        mine_top_patches(Branched(), [torch.rand(2, 9)])
    with pytest.raises(ValueError, match="Sequential has no Conv2d; it is made of Linear"):
        mine_top_patches(nn.Sequential(nn.Linear(3, 3)), [torch.rand(2, 2, 9, 9)])


def test_diagnostics_against_plain_counting() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3))
    model[0].bias.data = torch.tensor([0.0, -9.0, 0.0, 0.0, -9.0, 0.0])  # type: ignore[union-attr]
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 3
    before = mine_top_patches(model, [(images, labels)], k=4)
    model[0].weight.data += 0.3 * torch.randn_like(model[0].weight)  # type: ignore[arg-type]
    now = mine_top_patches(model, [(images, labels)], k=4)
    (summary,) = diagnose(now, before)
    sets = [(set(a), set(b)) for a, b in zip(now["0"].images.tolist(), before["0"].images.tolist(), strict=True)]
    assert summary.stability == pytest.approx(sum(len(a & b) / len(a | b) for a, b in sets) / 6)
    assert (summary.dead_features, summary.dead_fraction) == (2, pytest.approx(1 / 3))
    alive = [now["0"].labels.tolist()[channel] for channel in (0, 2, 3, 5)]  # type: ignore[union-attr]
    assert summary.label_purity == pytest.approx(sum(max(line.count(v) for v in line) / 4 for line in alive) / 4)
    (first,) = diagnose(before)
    assert first.stability != first.stability


def test_results_can_be_stored(tmp_path: Any) -> None:
    found = mine_top_patches(Branched(), [torch.rand(4, 2, 9, 9)], k=2)
    torch.save(found, tmp_path / "found.pt")
    again = torch.load(tmp_path / "found.pt", weights_only=False)
    assert torch.equal(again["last"].activations, found["last"].activations)
    assert torch.equal(again["last"].patch(1, 1), found["last"].patch(1, 1))
    with pytest.raises(KeyError, match="no layer 'first'"):
        found["first"]
    with pytest.raises(KeyError, match="has no patch 7"):
        found["last"].patch(0, 7)


def test_timm_feature_maps_are_read_before_the_nonlinearity() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=5).eval()
    found = mine_top_patches(model, [torch.randn(3, 3, 64, 64)], k=2)
    assert len(found.layers) >= 10
    fused = [name for name, module in model.named_modules() if "BatchNormAct" in type(module).__name__]
    assert fused or model.bn1
    # Behind a ReLU there are no values below zero: a random network has some, as peaks of feature maps.
    small = mine_top_patches(timm.create_model("regnetx_002", pretrained=False).eval(), [torch.randn(2, 3, 64, 64)])
    assert any(bool((layer.activations < 0).any()) for layer in small)
