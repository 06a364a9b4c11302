from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cnnviz.core.probing.probe import probe
from lightning_cnnviz.core.probing.protocols import Protocol, draw_splits
from lightning_cnnviz.core.probing.strengths import Choice, choose_strength


class Accuracy:
    """Told values for powers of ten, the last one on either side for all beyond; remembers what was asked."""

    def __init__(self, values: dict[int, float]) -> None:
        self.values, self.asked = values, list[float]()

    def __call__(self, strengths: Sequence[float]) -> list[float]:
        assert list(strengths) == sorted(strengths)
        self.asked += strengths
        powers = [round(torch.tensor(strength).log10().item()) for strength in strengths]
        return [self.values[min(max(power, min(self.values)), max(self.values))] for power in powers]


@pytest.mark.parametrize(
    ("values", "extensions", "expected"),
    [
        # The best lies inside from the first: nothing more is tried.
        ({-1: 0.5, 0: 0.7, 1: 0.6}, 4, (1.0, 0.1, 10.0, True)),
        # As on 101 categories: 10 is the best of the grid, and 100 is better.
        ({-1: 0.7, 0: 0.8, 1: 0.8394, 2: 0.8475, 3: 0.84}, 4, (100.0, 0.1, 1000.0, True)),
        ({-3: 0.4, -2: 0.9, -1: 0.8, 0: 0.7, 1: 0.6}, 4, (0.01, 0.001, 10.0, True)),
        # Accuracy that no longer changes: the smallest of equal ones.
        ({-1: 0.5, 0: 0.6, 1: 0.7}, 4, (10.0, 0.1, 100.0, True)),
        ({-1: 0.5, 0: 0.5, 1: 0.5}, 4, (0.1, 0.1, 10.0, True)),
        ({-1: 0.6, 0: 0.5, 1: 0.4}, 4, (0.01, 0.01, 10.0, True)),
        # Both ends are the best: of equal ones the smallest.
        ({-2: 0.6, -1: 0.7, 0: 0.6, 1: 0.7, 2: 0.8}, 4, (0.1, 0.01, 10.0, True)),
        # Still rising where it has to end.
        ({-1: 0.1, 0: 0.2, 1: 0.3, 2: 0.4, 3: 0.5, 4: 0.6}, 2, (1000.0, 0.1, 1000.0, False)),
        ({-1: 0.1, 0: 0.2, 1: 0.3, 2: 0.4}, 0, (10.0, 0.1, 10.0, False)),
    ],
)
def test_the_grid_is_extended_until_the_best_lies_inside(
    values: dict[int, float], extensions: int, expected: tuple[float, float, float, bool]
) -> None:
    C, lowest, highest, bracketed = expected
    accuracy = Accuracy(values)
    found = choose_strength(accuracy, (1.0, 10.0, 0.1, 1.0), extensions)
    assert found == Choice(C=C, lowest=lowest, highest=highest, bracketed=bracketed)
    assert len(accuracy.asked) == len(set(accuracy.asked))  # none twice


@pytest.mark.parametrize(
    ("values", "fits_from", "expected"),
    [
        # One channel that dominates: chance, until C is large enough.
        ({-1: 0.3, 0: 0.3, 1: 0.3, 2: 0.3, 3: 0.9, 4: 0.9}, 3, (1000.0, 0.1, 10000.0, True)),
        ({-1: 0.3, 0: 0.4, 1: 0.4}, 9, (1.0, 0.1, 10.0, True)),
        # Its own images are fitted, so that larger ones change nothing.
        ({-1: 0.5, 0: 0.5, 1: 0.5}, 1, (0.1, 0.1, 10.0, True)),
        ({-1: 0.5, 0: 0.5, 1: 0.5}, 2, (0.1, 0.1, 100.0, True)),
        # To the end nothing is fitted: who knows what lies beyond?
        ({-1: 0.3, 0: 0.3, 1: 0.3}, 12, (0.1, 0.1, 1e9, False)),
        # They are not equal.
        ({-1: 0.4, 0: 0.4, 1: 0.3}, 9, (0.1, 0.1, 10.0, True)),
    ],
)
def test_larger_ones_are_tried_while_a_classifier_misses_what_it_has_learned_from(
    values: dict[int, float], fits_from: int, expected: tuple[float, float, float, bool]
) -> None:
    accuracy = Accuracy(values)
    underfits = lambda: max(accuracy.asked) < 10**fits_from  # noqa: E731
    found = choose_strength(accuracy, (0.1, 1.0, 10.0), 4, underfits=underfits)
    assert tuple(found) == expected


def test_accuracies_that_differ_by_chance_alone_do_not_hide_it() -> None:
    accuracy = Accuracy({-1: 0.37, 0: 0.35, 1: 0.36, 2: 0.38, 3: 0.4, 4: 0.8, 5: 0.9})
    underfits = lambda: max(accuracy.asked) < 1e5  # noqa: E731
    found = choose_strength(accuracy, (0.1, 1.0, 10.0), 4, underfits=underfits, held_out=60)
    assert found == Choice(C=1e5, lowest=0.1, highest=1e6, bracketed=True)
    # With so many images they are told apart: the smaller ones are better.
    accuracy = Accuracy({-2: 0.36, -1: 0.37, 0: 0.36, 1: 0.35, 2: 0.9})
    found = choose_strength(accuracy, (0.1, 1.0, 10.0), 4, underfits=lambda: True, held_out=20_000)
    assert found == Choice(C=0.1, lowest=0.01, highest=10.0, bracketed=True)
    assert (
        choose_strength(accuracy, (1.0, 10.0), 0, underfits=lambda: True, held_out=9).highest == 10
    )  # none is allowed


@pytest.mark.parametrize("head", ["svm", "softmax"])
@pytest.mark.parametrize("scale", [1e2, 1e3, 1e4])
def test_a_channel_that_dominates_does_not_leave_a_probe_at_chance(head: str, scale: float) -> None:
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    features = torch.randn(3, 20)[labels] + 0.8 * torch.randn(120, 20)
    noisy = torch.cat([torch.randn(120, 1) * scale, features], 1)
    found = probe(noisy, labels, Protocol(per_class=20, splits=3, heads=(head,)))
    assert float(found.accuracy.min()) > 0.95  # 0.36 with the grid alone
    assert bool(found.bracketed.all() if found.bracketed is not None else False)


def test_noise_that_no_probe_fits_is_no_reason_to_go_on() -> None:
    torch.manual_seed(0)
    labels = torch.arange(900) % 3
    found = probe(torch.randn(900, 5), labels, Protocol(per_class=200, splits=1))
    assert found.tried is not None
    assert float(found.tried[..., 1].max()) <= 1e5


def test_a_single_c_is_taken_as_it_is() -> None:
    accuracy = Accuracy({0: 0.5})
    assert choose_strength(accuracy, (3.0, 3.0), 4) == Choice(C=3.0, lowest=3.0, highest=3.0, bracketed=True)
    assert not accuracy.asked


@given(st.lists(st.integers(0, 4), min_size=20, max_size=20), st.integers(0, 5))
def test_the_choice_is_the_best_of_all_that_were_tried(values: list[int], extensions: int) -> None:
    accuracy = Accuracy({power: float(value) for power, value in zip(range(-10, 10), values, strict=True)})
    found = choose_strength(accuracy, (0.1, 1.0, 10.0), extensions)
    told = dict(zip(accuracy.asked, Accuracy(accuracy.values)(sorted(accuracy.asked)), strict=True))
    told = {strength: accuracy([strength])[0] for strength in told}
    assert min(strength for strength, value in told.items() if value == max(told.values())) == found.C
    order = sorted(told)
    assert (order[0], order[-1]) == (found.lowest, found.highest)
    assert len(order) <= 3 + extensions
    if found.bracketed and order[-1] == found.C:
        assert told[order[-2]] == told[order[-1]]
    if found.bracketed and order[0] == found.C:
        assert told[order[1]] == told[order[0]]


@pytest.mark.parametrize("head", ["svm", "softmax"])
@pytest.mark.parametrize("size", [120, 30], ids=["gram", "features"])
def test_a_probe_goes_beyond_its_grid(head: str, size: int) -> None:
    """Features that tell classes by small differences want a large C; the digest says the same images."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(240) % 3
    features = torch.randn(240, size, generator=generator)
    features[:, :3] += 6 * torch.nn.functional.one_hot(labels)
    features[:, 3:6] += 30 * torch.randn(240, 3, generator=generator)
    protocol = Protocol(per_class=30, val_per_class=10, splits=2, heads=(head,), Cs=(0.01, 0.1))
    found = probe(features, labels, protocol)
    alone = probe(features, labels, replace(protocol, extensions=0))
    assert alone.bracketed is not None
    assert found.bracketed is not None
    assert found.tried is not None
    assert not bool(alone.bracketed.all())
    assert bool(found.bracketed.all())
    assert float(found.C.max()) > 0.1
    assert bool((found.tried[..., 0] <= found.C).all())
    assert bool((found.tried[..., 1] >= found.C).all())
    assert found.mean(head) > alone.mean(head)
    assert found.digest == alone.digest == draw_splits(labels, protocol).digest
    with pytest.raises(ValueError, match="extensions=-1: give 0 or more"):
        replace(protocol, extensions=-1)
