"""The running top-k of units against brute force: any order, any chunks, any number of ranks."""

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

from lightning_cnnviz.core.top_patches._reading import strongest_units
from lightning_cnnviz.core.top_patches._units import Units
from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.core.top_patches.top_k import TopK


def random_maps(images: int, channels: int = 3, side: int = 3, seed: int = 0, levels: int = 5) -> Tensor:
    """Feature maps `(N, C, H, W)` of few whole numbers, so that most units are tied with others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels // 2, levels // 2 + 1, (images, channels, side, side), generator=generator).float()


def candidates(maps: Tensor, indices: Tensor, scores: Tensor | None = None) -> Units:
    """All units `(C, M)` of some images as candidates; ranked by activation, or with their image's scores `(N, C)`."""
    count, channels, height, width = maps.shape
    activations = maps.transpose(0, 1).flatten(1)
    positions = torch.arange(height * width).repeat(count).expand(channels, -1)
    rows, columns = positions // width, positions % width
    images = indices.repeat_interleave(height * width).expand(channels, -1)
    # The label and the box tell the unit again, to see that they stay beside it.
    return Units.packed(
        scores=activations if scores is None else scores.T.repeat_interleave(height * width, 1),
        activations=activations,
        images=images,
        labels=_labels(images),
        rows=rows,
        columns=columns,
        boxes=torch.stack([rows, rows, columns, columns], -1),
    )


def _labels(images: Tensor) -> Tensor:
    return images * 7 - 3


def ranked(maps: Tensor, chunks: Sequence[Tensor], k: int, per_image: int | None, scores: Tensor | None = None) -> TopK:
    """Rank the images of each chunk, one chunk after the other; `chunks` hold indices."""
    top = TopK(maps.shape[1], k, per_image=per_image, dtype=maps.dtype)
    generator = torch.Generator().manual_seed(0)
    for indices in chunks:
        made = candidates(maps[indices], indices, None if scores is None else scores[indices])
        order = torch.randperm(made.scores.shape[1], generator=generator)
        top.update(torch.arange(maps.shape[1]), made.each(lambda part, order=order: part[:, order]))
    return top


def units_of(units: Units) -> list[list[Unit]]:
    """The units as the reference gives them; looks at once whether all that belongs to one is still beside it."""
    lines = []
    for line in range(len(units.scores)):
        filled = units.images[line] >= 0
        assert torch.equal(filled, units.scores[line] > -torch.inf)
        assert torch.equal(filled, units.activations[line] > -torch.inf)
        assert torch.equal(filled, filled.sort(descending=True, stable=True).values)
        assert not units.details[line][~filled].any()
        rows, columns = units.rows[line], units.columns[line]
        assert torch.equal(units.labels[line][filled], _labels(units.images[line][filled]))
        assert torch.equal(units.boxes[line], torch.stack([rows, rows, columns, columns], -1))
        parts = (units.scores[line], units.activations[line], units.images[line], rows, columns)
        lines.append(list(zip(*(part[filled].tolist() for part in parts), strict=True)))
    return lines


orders = st.integers(0, 14).flatmap(lambda extra: st.permutations([*range(10), *[n % 10 for n in range(extra)]]))
limits = st.sampled_from([1, 2, 3, None])
rules = st.sampled_from(["max", "mean"])


def scores_of(maps: Tensor, rank_by: str) -> Tensor | None:
    """Each image's score for each channel `(N, C)`; None where units rank by themselves. Sums of whole numbers."""
    return None if rank_by == "max" else maps.double().mean((2, 3)).to(maps.dtype)


@given(orders, st.lists(st.integers(1, 24), max_size=6), st.integers(1, 12), limits, rules, st.integers(0, 50))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_order_and_any_chunks_give_the_best_of_all(
    order: list[int], cuts: list[int], k: int, per_image: int | None, rank_by: str, seed: int
) -> None:
    """Images that come twice count once, as those do that a distributed sampler pads with."""
    maps = random_maps(10, seed=seed)
    chunks = [chunk for chunk in torch.tensor(order).tensor_split(sorted(cuts)) if len(chunk)]
    top = ranked(maps, chunks, k, per_image, scores_of(maps, rank_by))
    assert units_of(top.units) == brute_force_top_k(maps, k, per_image, rank_by=rank_by)


@given(st.lists(st.integers(1, 11), max_size=5), st.integers(1, 12), limits, rules, st.integers(0, 50))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_images_that_come_in_order_need_less_work(
    cuts: list[int], k: int, per_image: int | None, rank_by: str, seed: int
) -> None:
    maps = random_maps(12, seed=seed)
    scores = scores_of(maps, rank_by)
    top = TopK(3, k, per_image=per_image)
    count = min(per_image or k, k, 9)
    for indices in torch.arange(12).tensor_split(sorted(cuts)):
        # Of each image its strongest units, as many as may count.
        _, best = strongest_units(maps[indices].transpose(0, 1).flatten(0, 1), count)
        places = (best.view(3, -1, count) + 9 * torch.arange(len(indices))[:, None]).flatten(1)
        made = candidates(maps[indices], indices, None if scores is None else scores[indices])
        top.update(torch.arange(3), made.ordered(places), fresh=True)
    assert units_of(top.units) == brute_force_top_k(maps, k, per_image, rank_by=rank_by)


@given(st.permutations(range(12)), st.integers(1, 5), st.integers(1, 15), limits, rules, st.integers(0, 50))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_ranks_merge_to_the_answer_of_one_process(
    order: list[int], ranks: int, k: int, per_image: int | None, rank_by: str, seed: int
) -> None:
    maps = random_maps(12, seed=seed)
    scores = scores_of(maps, rank_by)
    # As many images for each, so some come twice.
    order = order + order[: -len(order) % ranks]
    parts = [torch.tensor(order[rank::ranks]) for rank in range(ranks)]
    tops = [ranked(maps, part.split(3), k, per_image, scores) for part in parts]
    merged = tops[0].best_of([top.units for top in tops])
    assert units_of(merged) == brute_force_top_k(maps, k, per_image, rank_by=rank_by)
    alone = ranked(maps, [torch.arange(12)], k, per_image, scores).units
    assert all(map(torch.equal, merged, alone))


@given(st.permutations(range(9)), st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_not_admitted_would_not_enter(order: list[int], size: int, k: int, seed: int) -> None:
    maps = random_maps(9, seed=seed)
    top = TopK(3, k)
    for indices in torch.tensor(order).split(size):
        admitted = top.admits(0, maps[indices].amax((2, 3)), indices)
        made = candidates(maps[indices], indices)
        for number in admitted.tolist():
            image, channel = divmod(number, 3)
            tried = copy.deepcopy(top)
            one = candidates(maps[indices[image]][None], indices[image][None])
            tried.update(torch.tensor([channel]), one.each(lambda part, channel=channel: part[channel][None]))
            assert int(indices[image]) in tried.units.images[channel].tolist()
        tried = copy.deepcopy(top)
        outside = torch.ones(len(indices), 3, dtype=torch.bool)
        outside.view(-1)[admitted] = False
        of_each = outside.T.repeat_interleave(maps.shape[2] * maps.shape[3], 1)
        tried.update(torch.arange(3), made._replace(scores=made.scores.masked_fill(of_each, -torch.inf)))
        top.update(torch.arange(3), made)
        assert all(map(torch.equal, tried.units, top.units))


def test_admits_looks_at_the_lines_of_one_layer() -> None:
    top = TopK(4, 1)
    top.update(torch.arange(4), candidates(torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1), torch.tensor([5])))
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


def test_only_the_named_lines_change() -> None:
    maps = random_maps(4, channels=2)
    top = TopK(5, 3)
    top.update(torch.tensor([1, 4]), candidates(maps, torch.arange(4)))
    expected = brute_force_top_k(maps, 3, 1)
    assert units_of(top.units) == [[], expected[0], [], [], expected[1]]


def test_more_places_than_units_stay_empty() -> None:
    maps = random_maps(3, side=2)
    units = ranked(maps, [torch.arange(3)], 40, None).units
    assert units.scores.shape == (3, 40)
    assert units_of(units) == brute_force_top_k(maps, 40, None)
    assert all(len(line) == 12 for line in units_of(units))


def test_minus_zero_ties_with_zero() -> None:
    maps = torch.tensor([0.0, -0.0, 0.0, -0.0]).view(4, 1, 1, 1)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 2, 0]):
        top = ranked(maps, torch.tensor(order).split(1), 3, 1)
        assert top.units.images.tolist() == [[0, 1, 2]]
        assert not top.units.scores.signbit().any()
        assert not top.units.activations.signbit().any()
        assert top.admits(0, torch.tensor([[-0.0], [0.0]]), torch.tensor([1, 3])).tolist() == [0]


def test_float64_activations_keep_their_digits() -> None:
    maps = (1 + torch.arange(6, dtype=torch.float64) * 1e-12).view(6, 1, 1, 1)
    units = ranked(maps, torch.arange(6).split(2), 3, 1).units
    assert units.scores.dtype == units.activations.dtype == torch.float64
    assert units_of(units) == brute_force_top_k(maps, 3, 1)
    assert units.images.tolist() == [[5, 4, 3]]


def test_half_precision_is_ranked_as_it_is() -> None:
    maps = random_maps(8).to(torch.bfloat16)
    top = TopK(3, 4)
    for indices in torch.arange(8).split(3):
        top.update(torch.arange(3), candidates(maps[indices], indices))
    assert units_of(top.units) == brute_force_top_k(maps, 4, 1)


def test_the_state_takes_32_bytes_a_unit() -> None:
    top = ranked(random_maps(5, channels=6), [torch.arange(5)], 9, None)
    assert sum(part.untyped_storage().nbytes() for part in top.units) == 32 * 6 * 9


def test_it_works_in_inference_mode_and_survives_pickling() -> None:
    maps = random_maps(6)
    top = TopK(3, 4)
    with torch.inference_mode():
        top.update(torch.arange(3), candidates(maps[:3], torch.arange(3)))
    again: TopK = pickle.loads(pickle.dumps(top))
    again.update(torch.arange(3), candidates(maps[3:], torch.arange(3, 6)))
    assert units_of(again.units) == brute_force_top_k(maps, 4, 1)


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k=0: at least one unit"), ({"k": -2}, "k=-2: at least one unit"),
    ({"per_image": 0}, "per_image=0: at least one unit of an image counts; None for any number"),
])  # fmt: skip
def test_wrong_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopK(3, **options)


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
    tops = {}
    for per_image in (1, None):
        top = ranked(maps, own.split(2), 4, per_image)
        top.merge()
        tops[per_image] = top.units
    mined = {}
    for per_image in (1, 2, None):
        dataset = WholeNumbers(13)
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=True)  # type: ignore[var-annotated]
        loader = DataLoader(dataset, batch_size=3, sampler=sampler)
        for rank_by in ("max", "mean"):
            mined[per_image, rank_by] = mine_top_patches(
                whole_number_network(), loader, k=4, features=3, per_image=per_image, rank_by=rank_by
            )
    torch.save((tops, mined), Path(folder, f"rank{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[dict[int | None, Units], dict[tuple[int | None, str], TopPatches]]]:
    """What each of two processes, connected by gloo, has computed."""
    folder = tmp_path_factory.mktemp("ranks")
    # Forked, as the workers of a loader are: to import everything again takes longer than all that is tested.
    torch.multiprocessing.start_processes(_work, (2, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("per_image", [1, None])
def test_two_processes_compute_what_one_does(two_processes: list[tuple], per_image: int | None) -> None:
    maps = random_maps(13)
    expected = ranked(maps, [torch.arange(13)], 4, per_image).units
    for tops, _ in two_processes:
        assert units_of(tops[per_image]) == brute_force_top_k(maps, 4, per_image)
        assert all(map(torch.equal, tops[per_image], expected))


@pytest.mark.parametrize("rank_by", ["max", "mean"])
@pytest.mark.parametrize("per_image", [1, 2, None])
def test_two_processes_find_the_patches_that_one_finds(
    two_processes: list[tuple], per_image: int | None, rank_by: RankBy
) -> None:
    loader = DataLoader(WholeNumbers(13), batch_size=13)
    expected = mine_top_patches(whole_number_network(), loader, k=4, features=3, per_image=per_image, rank_by=rank_by)
    for _, mined in two_processes:
        result = mined[per_image, rank_by]
        assert [layer.layer for layer in result] == ["0", "2"]
        for layer, alone in zip(result, expected, strict=True):
            for name in ("scores", "activations", "images", "labels", "rows", "columns", "boxes", "maxima"):
                assert torch.equal(getattr(layer, name), getattr(alone, name)), name
            assert len(layer.patches) == len(alone.patches) == 3
            for patches, others in zip(layer.patches, alone.patches, strict=True):
                assert all(map(torch.equal, patches, others))
                assert len(patches) == len(others) == 4
