from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_cnnviz.core.probing.protocols import (
    PROTOCOLS,
    Manifest,
    Protocol,
    draw_splits,
    find_protocol,
    restricted,
)


def counts(labels: Tensor, places: Tensor) -> list[int]:
    """Images of each class."""
    return torch.bincount(labels[places], minlength=int(labels.max()) + 1).tolist()


def same(first: Manifest, second: Manifest) -> bool:
    pairs = zip(first.splits, second.splits, strict=True)
    names = ("train", "fit", "held_out", "test")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for one, other in pairs for name in names)


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.integers(5, 12), min_size=2, max_size=5),
    st.integers(2, 4),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 99),
)
def test_each_split_is_a_partition_with_the_numbers_asked_for(
    sizes: list[int], per_class: int, most: int | None, splits: int, own_test: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    tested = torch.arange(3 * len(sizes)) % len(sizes) if own_test else None
    protocol = Protocol(per_class=per_class, splits=splits, test_per_class=most, seed=seed)
    manifest = draw_splits(labels, protocol, test_labels=tested)
    assert len(manifest.splits) == splits
    assert manifest.fewer == ()
    for split in manifest.splits:
        assert counts(labels, split.train) == [per_class] * len(sizes)
        assert counts(labels, split.held_out) == [max(1, per_class // 5)] * len(sizes)
        assert sorted(split.fit.tolist() + split.held_out.tolist()) == split.train.tolist()
        left = [size - per_class for size in sizes] if tested is None else [3] * len(sizes)
        expected = [min(count, most or count) for count in left]
        assert counts(labels if tested is None else tested, split.test) == expected
        if tested is None:
            assert not set(split.train.tolist()) & set(split.test.tolist())


def test_deeper_protocols_have_the_papers_numbers() -> None:
    labels = torch.arange(3 * 90) % 3
    for name, per_class, held, most in (
        ("caltech101-15", 15, 3, 50),
        ("caltech101-30", 30, 6, 50),
        ("caltech256-15", 15, 3, 50),
        ("caltech256-30", 30, 6, 50),
        ("caltech256-45", 45, 9, 45),
        ("caltech256-60", 60, 12, 30),
        ("decaf-30", 30, 5, 60),  # C is chosen on 25/5; all the rest are tested
    ):
        manifest = draw_splits(labels, find_protocol(name))
        assert len(manifest.splits) == 5
        for split in manifest.splits:
            assert counts(labels, split.train) == [per_class] * 3
            assert counts(labels, split.fit) == [per_class - held] * 3
            assert counts(labels, split.test) == [most] * 3
        assert PROTOCOLS[name].average == "class"
        assert PROTOCOLS[name].paper
        assert len({tuple(split.train.tolist()) for split in manifest.splits}) == 5
    (split,) = draw_splits(labels, find_protocol("full"), test_labels=labels[:9]).splits
    assert len(split.train) == 270
    assert len(split.test) == 9
    (split,) = draw_splits(labels, find_protocol("full")).splits
    assert (len(split.train), len(split.test)) == (216, 54)


def test_the_digest_tells_whether_the_images_are_the_same() -> None:
    labels = torch.arange(60) % 3
    protocol = Protocol(per_class=5, splits=2)
    first, again = draw_splits(labels, protocol), draw_splits(labels, protocol)
    assert same(first, again)
    assert first.digest == again.digest
    assert len(first.digest) == 64
    changed = [
        draw_splits(labels, find_protocol(protocol, seed=1)),
        draw_splits(labels, find_protocol(protocol, per_class=6)),
        draw_splits(labels, protocol, indices=torch.arange(60) + 1),
        draw_splits(labels, protocol, test_labels=labels[:30]),
    ]
    digests = {first.digest, *(manifest.digest for manifest in changed)}
    assert len(digests) == 5
    # A name and what a paper printed are no part of what is measured.
    named = find_protocol(protocol, name="mine", paper={"me": "99"})
    assert draw_splits(labels, named).digest == first.digest


@settings(max_examples=30, derandomize=True)
@given(st.permutations(range(30)), st.booleans())
def test_the_order_in_which_images_come_makes_no_difference(order: list[int], own_test: bool) -> None:
    labels, indices = torch.arange(30) % 3, 100 + 7 * torch.arange(30)
    protocol, moved = Protocol(per_class=4, splits=2, test_per_class=2), torch.tensor(order)
    test: dict[str, Any] = {"test_labels": labels, "test_indices": indices} if own_test else {}
    moved_test = {name: values[moved] for name, values in test.items()}
    first = draw_splits(labels, protocol, indices=indices, **test)
    second = draw_splits(labels[moved], protocol, indices=indices[moved], **moved_test)
    assert first.digest == second.digest
    for one, other in zip(first.splits, second.splits, strict=True):
        for name in ("train", "fit", "held_out", "test"):
            assert set(indices[getattr(one, name)].tolist()) == set(indices[moved][getattr(other, name)].tolist())


@settings(max_examples=30, derandomize=True)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=30))
def test_labels_of_a_test_set_choose_no_training_image(found: list[int]) -> None:
    labels = torch.arange(30) % 3
    protocol = Protocol(per_class=4, splits=3, test_per_class=2)
    plain = draw_splits(labels, protocol, test_labels=torch.arange(12) % 3)
    other = draw_splits(labels, protocol, test_labels=torch.tensor(found))
    for one, two in zip(plain.splits, other.splits, strict=True):
        for name in ("train", "fit", "held_out"):
            assert torch.equal(getattr(one, name), getattr(two, name))


def test_too_few_images_are_named_with_their_counts() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 5 + [7] * 2)
    with pytest.raises(
        ValueError, match=r"needs 6 or more .* only class 1: 3, class 2: 5, class 7: 2: give Protocol.allow_fewer"
    ):
        draw_splits(labels, Protocol(per_class=5))
    with pytest.raises(
        ValueError, match=r"needs 5 or more images a class \(5 to learn from\), .* only class 1: 3, class 7: 2"
    ):
        draw_splits(labels, Protocol(per_class=5), test_labels=labels)
    many = torch.arange(40) % 20
    with pytest.raises(ValueError, match="class 9: 2 and 10 more"):
        draw_splits(many, Protocol(per_class=5))


def test_fewer_are_taken_where_that_is_allowed() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 5)
    manifest = draw_splits(labels, Protocol(per_class=5, allow_fewer=True))
    assert manifest.fewer == (1, 2)
    for split in manifest.splits:
        assert counts(labels, split.train) == [5, 2, 4]
        assert counts(labels, split.test) == [4, 1, 1]
    with pytest.raises(
        ValueError, match=r"needs 3 or more .*\(1 to learn from and 1 to choose C on and 1 to test on\).*1: 2: leave"
    ):
        draw_splits(torch.tensor([0] * 9 + [1] * 2), Protocol(per_class=5, allow_fewer=True))


@pytest.mark.parametrize(
    ("labels", "test", "match"),
    [
        (torch.zeros(5, dtype=torch.int64), None, r"all 5 images are of class \[0\]"),
        (torch.rand(5), None, r"labels are torch.float32 of shape \(5,\)"),
        (torch.ones(5, 3, dtype=torch.int64), None, "from one class number an image"),
        (torch.arange(5), None, "needs 3 or more images a class"),
        (torch.arange(12) % 3, torch.tensor([0, 4]), r"classes \[4\] of which the training set has no image"),
        (torch.arange(12) % 3, torch.rand(2), "test labels are torch.float32"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(labels: Tensor, test: Tensor | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        draw_splits(labels, Protocol(), test_labels=test)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"per_class": 0}, "per_class=0"),
        ({"splits": 0}, "splits=0"),
        ({"heads": ("ridge",)}, r"heads=\('ridge',\)"),
        ({"heads": ()}, r"heads=\(\)"),
        ({"Cs": ()}, r"Cs=\(\)"),
        ({"Cs": (1.0, -1.0)}, "positive"),
        ({"scaling": "minmax"}, "scaling='minmax'"),
        ({"average": "sample"}, "average='sample'"),
        ({"per_class": 5, "val_per_class": 5}, "leaves none to fit"),
    ],
)
def test_wrong_protocols_are_refused_at_once(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Protocol(**changes)


def test_no_image_to_choose_c_on_and_no_such_protocol() -> None:
    with pytest.raises(ValueError, match="one image of a class leaves no training image to choose C on"):
        draw_splits(torch.arange(12) % 3, Protocol(per_class=1))
    (split,) = draw_splits(torch.arange(12) % 3, Protocol(per_class=1, splits=1, Cs=(1.0,))).splits
    assert len(split.held_out) == 0
    assert torch.equal(split.fit, split.train)
    with pytest.raises(ValueError, match="protocol='caltech-30': there are caltech101-15, "):
        find_protocol("caltech-30")
    assert find_protocol("decaf-30", per_class=None).per_class == 30  # None leaves a field


@pytest.mark.parametrize("own_test", [True, False])
def test_a_manifest_over_the_images_that_it_needs_means_the_same_ones(own_test: bool) -> None:
    labels = torch.arange(60) % 3
    tested = torch.arange(30) % 3 if own_test else None
    manifest = draw_splits(labels, Protocol(per_class=4, test_per_class=2, splits=3), test_labels=tested)
    smaller, learned, others = restricted(manifest, own_test=own_test)
    assert len(learned) < 60
    assert (others is not None) == own_test
    assert smaller.digest == manifest.digest
    for before, after in zip(manifest.splits, smaller.splits, strict=True):
        for name in ("train", "fit", "held_out"):
            assert torch.equal(learned[getattr(after, name)], getattr(before, name))
        assert torch.equal((learned if others is None else others)[after.test], before.test)
