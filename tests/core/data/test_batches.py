"""What is in a batch, and which image is which."""

from __future__ import annotations

from collections import namedtuple
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_cnnviz.core.data.batches import (
    IndexReader,
    class_labels,
    has_indices,
    indexed_batches,
    numbered_batches,
    read_batch,
)

IMAGES = torch.rand(3, 1, 4, 4)
LABELS = torch.tensor([2, 0, 1])
SEVERAL = torch.tensor([[1, 0], [1, 1], [0, 1]])
MAPS = torch.zeros(3, 4, 4, dtype=torch.int64)
Pair = namedtuple("Pair", "images labels")


@pytest.mark.parametrize(
    ("batch", "label"),
    [
        (IMAGES, None),
        ((IMAGES, LABELS), LABELS),
        ([IMAGES, LABELS], LABELS),
        ([IMAGES], None),
        (Pair(IMAGES, LABELS), LABELS),
        ((IMAGES, LABELS, ["a", "b", "c"]), LABELS),
        ({"image": IMAGES, "label": LABELS}, LABELS),
        ({"pixel_values": IMAGES, "labels": LABELS}, LABELS),
        ({"x": IMAGES, "y": SEVERAL}, SEVERAL),
        ((IMAGES, MAPS), MAPS),
        ((IMAGES, {"boxes": LABELS}), None),
        ((IMAGES, LABELS[:2]), None),
        ((IMAGES, torch.tensor(1)), None),
    ],
)
def test_forms_of_batches(batch: Any, label: Tensor | None) -> None:
    images, labels = read_batch(batch)
    assert images is IMAGES
    assert labels is label


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS, [2, 0, 1]),
        (LABELS.to(torch.uint8), [2, 0, 1]),
        (LABELS[:, None], [2, 0, 1]),
        (torch.tensor([2, -100, -1]), [2, -1, -1]),
        (torch.tensor([-100, -100]), None),
        (LABELS.float(), None),
        (SEVERAL, None),
        (SEVERAL.float(), None),
        (MAPS, None),
        (LABELS > 0, None),
        (None, None),
    ],
)
def test_classes_are_whole_numbers_for_each_image(labels: Tensor | None, classes: list[int] | None) -> None:
    found = class_labels(labels)
    assert (None if found is None else found.tolist()) == classes
    assert found is None or found.dtype == torch.int64


def test_batch_fn_reads_what_we_cannot() -> None:
    images, labels = read_batch({"scan": IMAGES, "grade": LABELS}, lambda batch: (batch["scan"], batch["grade"]))
    assert images is IMAGES
    assert labels is not None


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ("text", "form str"),
        ({"scan": IMAGES}, r"\{'scan': Tensor\}.*batch_fn"),
        (([IMAGES], LABELS), r"tuple\(list, Tensor\)"),
        ((), "tuple"),
        (IMAGES[0], r"shape \(1, 4, 4\)"),
        (IMAGES.long(), "int64"),
    ],
)
def test_other_forms_say_what_was_found(batch: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        read_batch(batch)


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def assert_tells_the_truth(loader: Any, rank: int = 0, ranks: int = 1) -> None:
    reader = IndexReader(loader, rank, ranks)
    for (numbers,) in loader:
        assert reader.take(len(numbers)).tolist() == numbers.tolist()
    assert reader.indices_known


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 3))
def test_sequential_and_distributed_samplers_tell(
    count: int, batch: int, ranks: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    assert_tells_the_truth(DataLoader(numbered(count), batch_size=batch, drop_last=drop_last))
    for rank in range(ranks):
        sampler = DistributedSampler(numbered(count), ranks, rank, shuffle=shuffle, drop_last=drop_last)
        sampler.set_epoch(epoch)
        assert_tells_the_truth(DataLoader(numbered(count), batch_size=batch, sampler=sampler), rank, ranks)


def test_lightnings_own_distributed_samplers_tell() -> None:
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
    from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler

    for rank in range(2):
        unrepeated = UnrepeatedDistributedSampler(numbered(7), num_replicas=2, rank=rank, shuffle=False)
        assert_tells_the_truth(DataLoader(numbered(7), batch_size=2, sampler=unrepeated), rank, 2)
        inner = SequentialSampler(numbered(7))
        wrapper = DistributedSamplerWrapper(inner, num_replicas=2, rank=rank, shuffle=False)
        assert_tells_the_truth(DataLoader(numbered(7), batch_size=2, sampler=wrapper), rank, 2)


class OwnOrder(DistributedSampler[Any]):
    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[::-1])


class FromTheEnd(SequentialSampler):
    def __iter__(self) -> Any:
        return iter(range(len(self) - 1, -1, -1))


def test_orders_that_only_the_sampler_knows_are_not_guessed() -> None:
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
    from lightning.pytorch.overrides.distributed import (
        UnrepeatedDistributedSampler,
        UnrepeatedDistributedSamplerWrapper,
    )

    data = numbered(8)
    ranks: Any = {"num_replicas": 2, "rank": 1}
    samplers = [
        OwnOrder(data, **ranks, shuffle=False),
        FromTheEnd(data),
        # It takes no seed, other than what it is derived from.
        UnrepeatedDistributedSampler(data, **ranks, shuffle=True, seed=7),
        UnrepeatedDistributedSamplerWrapper(SequentialSampler(data), **ranks, shuffle=True, seed=7),
        DistributedSamplerWrapper(RandomSampler(data), **ranks, shuffle=False),
    ]
    for sampler in samplers:
        assert not IndexReader(DataLoader(data, batch_size=2, sampler=sampler)).indices_known
    unshuffled = UnrepeatedDistributedSamplerWrapper(SequentialSampler(data), **ranks, shuffle=False)
    assert_tells_the_truth(DataLoader(data, batch_size=3, sampler=unshuffled), 1, 2)
    wrapped = DistributedSamplerWrapper(SequentialSampler(data), **ranks, shuffle=False)
    assert_tells_the_truth(DataLoader(data, batch_size=3, sampler=wrapped), 1, 2)


@pytest.mark.parametrize("counts", [[4, 3, 4], [4, 8, 4], [2, 4, 4], [4, 4, 4, 1]])
def test_batches_that_are_not_what_the_sampler_gave(counts: list[int]) -> None:
    """A collate function left images out, or made more of them: from there on, no number is that of the data set."""
    for sampler in (SequentialSampler(numbered(12)), DistributedSampler(numbered(12), 1, 0, seed=3)):
        reader = IndexReader(DataLoader(numbered(12), batch_size=4, sampler=sampler))
        order, taken = list(sampler), []
        for count in counts:
            taken += reader.take(count).tolist()
        known = next(i for i, count in enumerate([*counts, 0]) if count != 4) * 4
        assert taken[:known] == order[:known]
        assert taken[known:] == list(range(12 + known, 12 + sum(counts)))
        assert not reader.indices_known


def test_whole_batches_as_items_have_no_numbers() -> None:
    reader = IndexReader(DataLoader([torch.rand(4, 1, 2, 2)] * 3, batch_size=None))
    assert reader.indices_known
    reader.take(4)
    assert not reader.indices_known
    lists = IndexReader([torch.rand(4, 1, 2, 2)] * 3)
    assert torch.cat([lists.take(4), lists.take(2), lists.take(7)]).tolist() == list(range(13))
    assert lists.indices_known


class Backwards(BatchSampler):
    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[::-1])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.arange(5))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(numbered(9), batch_size=2, shuffle=True),
        DataLoader(numbered(9), batch_sampler=Backwards(SequentialSampler(numbered(9)), 2, False)),
        DataLoader(Stream(), batch_size=2),
        iter([IMAGES]),
    ],
    ids=["shuffled", "own batch sampler", "stream", "iterator"],
)
def test_other_orders_are_not_known(loader: Any) -> None:
    reader = IndexReader(loader, rank=1, world_size=3)
    assert reader.take(2).tolist() == [1, 4]
    assert reader.take(3).tolist() == [7, 10, 13]
    assert not reader.indices_known


def test_a_loader_that_gives_more_than_its_sampler() -> None:
    reader = IndexReader(DataLoader(numbered(3), batch_size=3, sampler=DistributedSampler(numbered(3), 1, 0)))
    reader.take(2)
    assert len(reader.take(2)) == 2
    assert not reader.indices_known


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "order",
    [
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4, "sampler": WeightedRandomSampler([1.0] * 13, 20)},
        {"batch_sampler": Backwards(SequentialSampler(range(13)), 3, False)},
        {"batch_size": None, "sampler": SequentialSampler(range(13))},
    ],
    ids=["shuffled", "weighted", "own batch sampler", "no batches"],
)
def test_our_own_passes_know_the_indices_in_any_order(order: dict[str, Any], workers: int) -> None:
    loader = DataLoader(numbered(13), num_workers=workers, **order)
    total = 0
    for (numbers,), indices in indexed_batches(loader):
        assert indices is not None
        assert indices.tolist() == numbers.reshape(-1).tolist()
        total += len(indices)
    assert total >= 13


def test_our_own_passes_restore_the_loaders_generator() -> None:
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(numbered(13), batch_size=4, shuffle=True, generator=generator)
    sampler, before = loader.batch_sampler, generator.get_state()
    for _ in indexed_batches(loader):
        pass
    assert torch.equal(generator.get_state(), before)
    assert loader.batch_sampler is sampler


def test_streams_have_no_indices() -> None:
    assert [indices for _, indices in indexed_batches(DataLoader(Stream(), batch_size=2))] == [None] * 3


def test_stopping_early_restores_the_generators_and_touches_no_worker() -> None:
    of_loader, of_sampler = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    data = numbered(12)
    loader: Any = DataLoader(
        data,
        batch_size=2,
        sampler=RandomSampler(data, generator=of_sampler),
        generator=of_loader,
        num_workers=1,
        persistent_workers=True,
    )
    first = torch.cat([batch for (batch,) in loader])
    iterator, states = loader._iterator, [of_loader.get_state(), of_sampler.get_state()]
    with closing(indexed_batches(loader)) as batches:
        (numbers,), indices = next(batches)
        assert indices is not None
        assert numbers.tolist() == indices.tolist()
    assert loader._iterator is iterator
    assert all(map(torch.equal, [of_loader.get_state(), of_sampler.get_state()], states))
    assert torch.equal(torch.cat([batch for (batch,) in loader]).sort().values, first.sort().values)


class ByName(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, name: Any) -> Any:
        return int(name)


class ReadsAhead(DataLoader[Any]):
    """As loaders that keep their workers do: what it gives is not what the sampler is asked for now."""

    def __iter__(self) -> Any:
        yield from list(super().__iter__())


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(ByName(), batch_size=2, sampler=["03", "01", "2", "00"]), [None, None]),  # type: ignore[arg-type]
        (DataLoader(ByName(), batch_size=2, sampler=torch.tensor([3, 1, 2])), [[3, 1], [2]]),  # type: ignore[arg-type]
        (DataLoader(ByName(), batch_size=2, sampler=np.array([3, 1, 2])), [[3, 1], [2]]),  # type: ignore[arg-type]
        (DataLoader(ByName(), batch_sampler=torch.tensor([3, 1, 2, 0]).split(3)), [[3, 1, 2], [0]]),  # type: ignore[arg-type]
        (DataLoader(ByName(), batch_size=None, sampler=torch.tensor([3, 1])), [[3], [1]]),  # type: ignore[arg-type]
        (ReadsAhead(numbered(5), batch_size=3), [None, None]),
        ([1, 2], [None, None]),
    ],
    ids=["names", "tensor", "array", "tensors as batches", "no batches", "own iteration", "list"],
)
def test_what_a_sampler_may_give(loader: Any, expected: list[Any]) -> None:
    found = [indices for _, indices in indexed_batches(loader)]
    assert [None if indices is None else indices.tolist() for indices in found] == expected
    assert all(indices is None or indices.dtype == torch.int64 for indices in found)


def test_images_of_any_loader_have_a_number_each() -> None:
    data = TensorDataset(torch.arange(6.0).view(6, 1, 1, 1), torch.arange(6))
    for batch in numbered_batches(DataLoader(data, batch_size=4, shuffle=True)):
        assert batch.indices_known
        assert batch.images.flatten().tolist() == batch.indices.tolist() == batch.labels.tolist()  # type: ignore[union-attr]
    batches = [IMAGES[:0], IMAGES, (IMAGES[:2], LABELS[:2])]
    first, second = numbered_batches(batches)
    assert (first.indices.tolist(), second.indices.tolist()) == ([0, 1, 2], [3, 4])
    assert first.labels is None
    assert second.labels is not None
    assert second.given is batches[2]
    assert first.indices_known
    (stream,) = numbered_batches(iter([IMAGES]))
    assert not stream.indices_known


def test_a_collate_function_that_leaves_images_out_loses_the_indices_but_not_the_numbers() -> None:
    data = TensorDataset(torch.rand(6, 1, 2, 2))
    loader = DataLoader(data, batch_size=3, collate_fn=lambda items: torch.stack([item[0] for item in items[:2]]))
    batches = list(numbered_batches(loader))
    assert [batch.indices.tolist() for batch in batches] == [[6, 7], [8, 9]]  # no index of the data set
    assert not any(batch.indices_known for batch in batches)
    with pytest.raises(ValueError, match="the loader list is empty: it gave no image"):
        list(numbered_batches([IMAGES[:0]]))


def test_which_loaders_have_indices() -> None:
    data = TensorDataset(torch.rand(4, 1))
    assert has_indices(DataLoader(data, batch_size=2, shuffle=True))
    sampler = BatchSampler(SequentialSampler(data), 2, drop_last=False)
    assert not has_indices(DataLoader(data, batch_sampler=sampler))
    assert not has_indices([IMAGES])


def test_clips_are_refused_in_our_words_and_frames_are_taken() -> None:
    clips = torch.rand(2, 3, 4, 8, 8), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"clips \(N, C, T, H, W\).*not shown.*batch_fn=lambda batch"):
        read_batch(clips)
    images, labels = read_batch(clips, lambda batch: (batch[0][:, :, 0], batch[1]))
    assert torch.equal(images, clips[0][:, :, 0])
    assert labels is not None
    assert labels.tolist() == [0, 1]
