"""Mining against brute force: value, image, row, column, box and patch, bit for bit."""

from __future__ import annotations

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
from lightning_cnnviz.core.top_patches import patch_store as patches
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import TopPatches
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


def assert_is_brute_force(found: TopPatches, model: nn.Module, images: Tensor, k: int, per_image: int | None) -> None:
    for layer in found:
        maps = feature_maps_of(model, READ[layer.layer], images)
        for channel, units in enumerate(brute_force_top_k(maps, k, per_image)):
            got = [
                (float(layer.scores[channel, rank]), float(layer.activations[channel, rank]),
                 int(layer.images[channel, rank]),
                 int(layer.rows[channel, rank]), int(layer.columns[channel, rank]))
                for rank in range(k)
                if int(layer.images[channel, rank]) >= 0
            ]  # fmt: skip
            assert got == units
            for rank, (_, _, image, _, _) in enumerate(units):
                top, left, bottom, right = layer.boxes[channel, rank].tolist()
                if channel in layer.features:
                    assert torch.equal(layer.patch(channel, rank), images[image, :, top:bottom, left:right])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 23),
    batch=st.integers(1, 9),
    k=st.integers(1, 6),
    per_image=st.sampled_from([1, 2, None]),
    shuffle=st.booleans(),
    at_once=st.booleans(),
)
def test_equals_brute_force_for_any_chunking_and_order(
    seed: int, count: int, batch: int, k: int, per_image: int | None, shuffle: bool, at_once: bool
) -> None:
    model, images = whole_number_net(seed), whole_number_images(count, seed + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(count)
    miner = PatchMiner(model, select_layers(model), k=k, per_image=per_image, features=None, at_once=at_once)
    with torch.no_grad():
        for indices in order.split(batch):
            with miner.batch(images[indices], indices):
                model(images[indices])
        found = miner.compute()
    assert [layer.layer for layer in found] == ["stem", "wide", "narrow", "last"]
    assert_is_brute_force(found, model, images, k, per_image)


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


def test_an_image_that_comes_twice_counts_once() -> None:
    model, images = whole_number_net(3), whole_number_images(10, 4)
    for per_image in (1, 2, None):
        miner = PatchMiner(model, select_layers(model), k=6, per_image=per_image, features=None)
        with torch.no_grad():
            for indices in (torch.tensor([3, 1, 3, 3]), torch.arange(10), torch.tensor([9, 0])):
                with miner.batch(images[indices], indices):
                    model(images[indices])
            assert_is_brute_force(miner.compute(), model, images, 6, per_image)


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


def test_memory_of_patches_serves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    block = patches._block
    monkeypatch.setattr(patches, "_block", lambda room: (made.append(room), block(room))[1])
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    model[0].weight.data.abs_()
    # Every image is brighter than the one before: each pushes out what was there.
    loader = [torch.full((2, 1, 16, 16), 1.0 + number) for number in range(20)]
    found = mine_top_patches(model, loader, k=2)
    assert found["0"].images.tolist() == [[38, 39]] * 4
    assert len(made) <= 4 * 2
    assert all(bool((patch == 20.0).all()) for line in found["0"].patches for patch in line)


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
