from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.brute_force import Unit, brute_force_top_k
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_cnnviz.core.top_patches.search import TopPatches, mine_top_patches
from lightning_cnnviz.core.top_patches.top_k import NO_LABEL, TopK, pack, strongest_units, unpack

Result = tuple[Tensor, Tensor, Tensor]


def random_maps(images: int, channels: int = 3, side: int = 3, seed: int = 0, levels: int = 5) -> Tensor:
    """Feature maps `(N, C, H, W)` of few whole numbers, so that most units are tied with others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels // 2, levels // 2 + 1, (images, channels, side, side), generator=generator).float()


def candidates(maps: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All units of some images as candidates: values, images `(C, M)` and details `(C, M, 4)`."""
    count, channels, height, width = maps.shape
    values = maps.transpose(0, 1).flatten(1)
    images = indices.repeat_interleave(height * width).expand(channels, -1)
    positions = torch.arange(height * width).repeat(count)
    rows, columns = positions // width, positions % width
    # The rest of the details tells the unit again, to see that it stays beside its value.
    details = torch.stack([_labels(images[0]), pack(rows, columns), pack(rows, rows), pack(columns, columns)], -1)
    return values, images, details.to(torch.int32).expand(channels, -1, -1)


def _labels(images: Tensor) -> Tensor:
    return images * 7 - 3


def ranked(maps: Tensor, chunks: Sequence[Tensor], k: int, per_image: int | None) -> TopK:
    """Rank the images of each chunk, one chunk after the other; `chunks` hold indices."""
    top = TopK(maps.shape[1], k, per_image=per_image, dtype=maps.dtype)
    generator = torch.Generator().manual_seed(0)
    for indices in chunks:
        made = candidates(maps[indices], indices)
        order = torch.randperm(made[0].shape[1], generator=generator)
        top.update(torch.arange(maps.shape[1]), *(part[:, order] for part in made))
    return top


def units_of(result: Result) -> list[list[Unit]]:
    """The result as the reference gives it; looks at once whether all that belongs to a unit is still beside it."""
    values, images, details = result
    rows, columns = unpack(details[..., 1])
    units = []
    for line in range(len(values)):
        filled = images[line] >= 0
        assert torch.equal(filled, values[line] > -torch.inf)
        assert torch.equal(filled, filled.sort(descending=True, stable=True).values)
        assert not details[line][~filled].any()
        assert torch.equal(details[line, :, 0][filled].long(), _labels(images[line][filled]))
        assert torch.equal(details[line, :, 2], pack(rows[line], rows[line]))
        assert torch.equal(details[line, :, 3], pack(columns[line], columns[line]))
        found = zip(*(part[line][filled].tolist() for part in (values, images, rows, columns)), strict=True)
        units.append(list(found))
    return units


orders = st.integers(0, 14).flatmap(lambda extra: st.permutations([*range(10), *[n % 10 for n in range(extra)]]))
limits = st.sampled_from([1, 2, 3, None])


@given(orders, st.lists(st.integers(1, 24), max_size=6), st.integers(1, 12), limits, st.integers(0, 50))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_any_order_and_any_chunks_give_the_best_of_all(
    order: list[int], cuts: list[int], k: int, per_image: int | None, seed: int
) -> None:
    """Images that come twice count once, as those do that a distributed sampler pads with."""
    maps = random_maps(10, seed=seed)
    chunks = torch.tensor(order).tensor_split(sorted(cuts))
    found = ranked(maps, [chunk for chunk in chunks if len(chunk)], k, per_image).compute()
    assert units_of(found) == brute_force_top_k(maps, k, per_image)


@given(st.lists(st.integers(1, 11), max_size=5), st.integers(1, 12), limits, st.integers(0, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_images_that_come_in_order_need_less_work(cuts: list[int], k: int, per_image: int | None, seed: int) -> None:
    maps = random_maps(12, seed=seed)
    top = TopK(3, k, per_image=per_image)
    units = min(per_image or k, k, 9)
    for indices in torch.arange(12).tensor_split(sorted(cuts)):
        values, images, details = candidates(maps[indices], indices)
        # Of each image its strongest units, as many as may count.
        _, best = strongest_units(maps[indices].transpose(0, 1).flatten(0, 1), units)
        places = (best.view(3, -1, units) + 9 * torch.arange(len(indices))[:, None]).flatten(1)
        chosen = [part.gather(1, places) for part in (values, images)]
        top.update(torch.arange(3), *chosen, details.gather(1, places[..., None].expand(-1, -1, 4)), fresh=True)
    assert units_of(top.compute()) == brute_force_top_k(maps, k, per_image)


@given(st.permutations(range(12)), st.integers(1, 5), st.integers(1, 15), limits, st.integers(0, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ranks_merge_to_the_answer_of_one_process(
    order: list[int], ranks: int, k: int, per_image: int | None, seed: int
) -> None:
    maps = random_maps(12, seed=seed)
    # As many images for each, so some come twice.
    order = order + order[: -len(order) % ranks]
    parts = [torch.tensor(order[rank::ranks]) for rank in range(ranks)]
    tops = [ranked(maps, part.split(3), k, per_image) for part in parts]
    merged = copy.deepcopy(tops[0])
    # What torchmetrics does with states that have no reduction of their own.
    for state in ("values", "images", "details"):
        setattr(merged, state, torch.stack([getattr(top, state) for top in tops]))
    found = merged.compute()
    assert units_of(found) == brute_force_top_k(maps, k, per_image)
    for state, expected in zip(found, ranked(maps, [torch.arange(12)], k, per_image).compute(), strict=True):
        assert torch.equal(state, expected)


@given(st.permutations(range(9)), st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_not_admitted_would_not_enter(order: list[int], size: int, k: int, seed: int) -> None:
    maps = random_maps(9, seed=seed)
    top = TopK(3, k)
    for indices in torch.tensor(order).split(size):
        admitted = top.admits(0, maps[indices].amax((2, 3)), indices)
        values, images, details = candidates(maps[indices], indices)
        for number in admitted.tolist():
            image, channel = divmod(number, 3)
            tried = copy.deepcopy(top)
            one = candidates(maps[indices[image]][None], indices[image][None])
            tried.update(torch.tensor([channel]), *(part[channel][None] for part in one))
            assert int(indices[image]) in tried.images[channel].tolist()
        tried = copy.deepcopy(top)
        outside = torch.ones(len(indices), 3, dtype=torch.bool)
        outside.view(-1)[admitted] = False
        units = maps.shape[2] * maps.shape[3]
        left = values.masked_fill(outside.T.repeat_interleave(units, 1), -torch.inf)
        tried.update(torch.arange(3), left, images, details)
        top.update(torch.arange(3), values, images, details)
        for ours, theirs in zip(tried.compute(), top.compute(), strict=True):
            assert torch.equal(ours, theirs)


def test_admits_looks_at_the_lines_of_one_layer() -> None:
    top = TopK(4, 1)
    values, images, details = candidates(torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1), torch.tensor([5]))
    top.update(torch.arange(4), values, images, details)
    peaks = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [4.0, 5.0]])
    # Image 4 comes before the one that it ties with; image 9 is stronger.
    assert top.admits(2, peaks, torch.tensor([4, 5, 6, 9])).tolist() == [0, 1, 6, 7]
    # Where all images come behind all earlier ones, no tie is won.
    assert top.admits(2, peaks, None).tolist() == [6, 7]


def test_of_a_crowd_only_those_that_may_stay_are_admitted() -> None:
    peaks = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    top = TopK(7, 3)
    strongest = peaks.topk(3, dim=0).indices
    assert top.admits(2, peaks, None).tolist() == sorted((strongest * 5 + torch.arange(5)).flatten().tolist())
    # Ones that tie for the last place are all named, for which of them stays is not decided here.
    assert len(top.admits(2, torch.ones(200, 5), None)) == 1000


def test_only_the_named_rows_change() -> None:
    maps = random_maps(4, channels=2)
    top = TopK(5, 3)
    top.update(torch.tensor([1, 4]), *candidates(maps, torch.arange(4)))
    expected = brute_force_top_k(maps, 3, 1)
    assert units_of(top.compute()) == [[], expected[0], [], [], expected[1]]


def test_more_places_than_units_stay_empty() -> None:
    maps = random_maps(3, side=2)
    values, images, details = ranked(maps, [torch.arange(3)], 40, None).compute()
    assert values.shape == (3, 40)
    assert bool((values[:, 12:] == -torch.inf).all())
    assert bool((images[:, 12:] == -1).all())
    assert not details[:, 12:].any()
    assert units_of((values, images, details)) == brute_force_top_k(maps, 40, None)


def test_minus_zero_ties_with_zero() -> None:
    maps = torch.tensor([0.0, -0.0, 0.0, -0.0]).view(4, 1, 1, 1)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 2, 0]):
        top = ranked(maps, torch.tensor(order).split(1), 3, 1)
        assert top.compute()[1].tolist() == [[0, 1, 2]]
        assert not top.compute()[0].signbit().any()
        assert top.admits(0, torch.tensor([[-0.0], [0.0]]), torch.tensor([1, 3])).tolist() == [0]


def test_float64_activations_keep_their_digits() -> None:
    maps = (1 + torch.arange(6, dtype=torch.float64) * 1e-12).view(6, 1, 1, 1)
    found = ranked(maps, torch.arange(6).split(2), 3, 1).compute()
    assert found[0].dtype == torch.float64
    assert units_of(found) == brute_force_top_k(maps, 3, 1)
    assert found[1].tolist() == [[5, 4, 3]]


def test_half_precision_is_ranked_as_it_is() -> None:
    maps = random_maps(8).to(torch.bfloat16)
    top = TopK(3, 4)
    for indices in torch.arange(8).split(3):
        top.update(torch.arange(3), *candidates(maps[indices], indices))
    assert units_of(top.compute()) == brute_force_top_k(maps, 4, 1)


def test_the_state_takes_28_bytes_a_unit() -> None:
    top = ranked(random_maps(5, channels=6), [torch.arange(5)], 9, None)
    states = [getattr(top, name) for name in top._defaults]
    assert sum(state.untyped_storage().nbytes() for state in states) == 28 * 6 * 9


def test_nothing_seen_and_reset() -> None:
    top = ranked(random_maps(5), [torch.arange(5)], 2, 1)
    top.reset()
    assert (top.values == -torch.inf).all()
    top.update(torch.arange(0), top.values[:0], top.images[:0], top.details[:0])
    assert units_of(top.compute()) == [[], [], []]


def test_it_works_in_inference_mode_and_survives_pickling() -> None:
    maps = random_maps(6)
    top = TopK(3, 4)
    with torch.inference_mode():
        top.update(torch.arange(3), *candidates(maps[:3], torch.arange(3)))
    again: TopK = pickle.loads(pickle.dumps(top))
    again.update(torch.arange(3), *candidates(maps[3:], torch.arange(3, 6)))
    assert units_of(again.compute()) == brute_force_top_k(maps, 4, 1)


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k=0: at least one unit"), ({"k": -2}, "k=-2: at least one unit"),
    ({"per_image": 0}, "per_image=0: at least one unit of an image counts; None for any number"),
])  # fmt: skip
def test_wrong_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopK(3, **options)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_strongest_units_of_a_map(height: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (5, height, width), generator=generator).float()
    values, positions = strongest_units(maps, count)
    assert values.shape == positions.shape == (5, min(count, height * width))
    expected = brute_force_top_k([maps], count, None)
    for line, units in enumerate(expected):
        assert values[line].tolist() == [unit[0] for unit in units]
        assert positions[line].tolist() == [unit[2] * width + unit[3] for unit in units]


@given(st.lists(st.tuples(st.integers(0, 2**15 - 1), st.integers(0, 2**15 - 1)), min_size=1))
@settings(deadline=None, derandomize=True)
def test_packed_numbers_come_back_and_keep_their_order(pairs: list[tuple[int, int]]) -> None:
    high, low = torch.tensor(pairs).unbind(1)
    packed = pack(high.to(torch.int16), low.to(torch.int16))
    assert packed.dtype == torch.int32
    assert [tuple(pair) for pair in torch.stack(unpack(packed), 1).tolist()] == pairs
    assert torch.equal(packed.sort().values, pack(*torch.tensor(sorted(pairs)).unbind(1)))
    assert bool((packed != NO_LABEL).all())


# Two processes


def whole_number_network() -> nn.Module:
    """Weights are small whole numbers, so that sums are exact, and ties are many."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
    )
    for parameter in network.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).float()
    network[3].eps = 0.0
    return network


class WholeNumbers(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, length: int) -> None:
        self.images = torch.randint(0, 3, (length, 1, 9, 11), generator=torch.Generator().manual_seed(1)).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 3


def _work(rank: int, ranks: int, folder: str) -> None:
    """What each process does (see `two_processes`)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    maps = random_maps(13)
    # The last image comes to the first rank a second time.
    own = torch.tensor([*range(13), 12])[rank::ranks]
    tops = {per_image: ranked(maps, own.split(2), 4, per_image).compute() for per_image in (1, None)}
    mined = {}
    for per_image in (1, 2, None):
        dataset = WholeNumbers(13)
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=True)  # type: ignore[var-annotated]
        loader = DataLoader(dataset, batch_size=3, sampler=sampler)
        mined[per_image] = mine_top_patches(whole_number_network(), loader, k=4, features=3, per_image=per_image)
    torch.save((tops, mined), Path(folder, f"rank{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[dict[int | None, Result], dict[int | None, TopPatches]]]:
    """What each of two processes, connected by gloo, has computed."""
    folder = tmp_path_factory.mktemp("ranks")
    # Forked, as the workers of a loader are: to import everything again takes longer than all that is tested.
    torch.multiprocessing.start_processes(_work, (2, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("per_image", [1, None])
def test_two_processes_compute_what_one_does(two_processes: list[tuple], per_image: int | None) -> None:
    maps = random_maps(13)
    expected = ranked(maps, [torch.arange(13)], 4, per_image).compute()
    for tops, _ in two_processes:
        assert units_of(tops[per_image]) == brute_force_top_k(maps, 4, per_image)
        assert all(map(torch.equal, tops[per_image], expected))


@pytest.mark.parametrize("per_image", [1, 2, None])
def test_two_processes_find_the_patches_that_one_finds(two_processes: list[tuple], per_image: int | None) -> None:
    loader = DataLoader(WholeNumbers(13), batch_size=13)
    expected = mine_top_patches(whole_number_network(), loader, k=4, features=3, per_image=per_image)
    for _, mined in two_processes:
        assert [found.layer for found in mined[per_image]] == ["0", "2"]
        for found, alone in zip(mined[per_image], expected, strict=True):
            for name in ("activations", "images", "labels", "rows", "columns", "boxes"):
                assert torch.equal(getattr(found, name), getattr(alone, name)), name
            assert len(found.patches) == len(alone.patches) == 3
            for patches, others in zip(found.patches, alone.patches, strict=True):
                assert all(map(torch.equal, patches, others))
                assert len(patches) == len(others) == 4
