"""The choice of C: a grid that is extended until the best one lies inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["choose_strength"]

_MOST_UNDERFITTING = 8


class Choice(NamedTuple):
    """A chosen C, and between what it was chosen.

    Attributes:
        C: The most accurate; of equal ones the smallest.
        lowest: The smallest C that was tried.
        highest: The largest one.
        bracketed: Whether it lies inside what was tried, or accuracy no longer changes at that end.
    """

    C: float
    lowest: float
    highest: float
    bracketed: bool


def choose_strength(
    accuracies_of: Callable[[Sequence[float]], Sequence[float]],
    grid: Sequence[float],
    extensions: int,
    *,
    underfits: Callable[[], bool] = lambda: False,
    held_out: int = 0,
) -> Choice:
    """Choose the most accurate C; while that is an end of the grid, and better than its neighbor, go on beyond it.

    Where all are equally accurate, but for chance, and the classifier of the largest underfits, larger ones are tried,
    too, up to eight: one channel that dominates leaves accuracy at chance until C is large enough. Steps beyond an end
    have the ratio of the last two there.

    Args:
        accuracies_of: Takes values of C, ascending, and returns the accuracy of each.
        grid: Two or more values to begin with; a single one is taken as it is.
        extensions: How many steps beyond the grid at most, for each of the two reasons; 0 for none.
        underfits: Whether the classifier of the largest C that was asked for misses images that it has learned from,
            and would not with a larger one.
        held_out: On how many images accuracies are measured: what two standard errors tell is chance. 0 for values
            without any.

    Example:
        >>> choose_strength(lambda Cs: [-abs(C - 200) for C in Cs], (0.1, 1.0, 10.0), 4)
        Choice(C=100.0, lowest=0.1, highest=1000.0, bracketed=True)
    """
    tried = sorted(set(grid))
    if len(tried) == 1:
        return Choice(C=tried[0], lowest=tried[0], highest=tried[0], bracketed=True)
    accuracies = list(accuracies_of(tried))
    below, above = tried[1] / tried[0], tried[-1] / tried[-2]
    left, left_of_underfitting = extensions, _MOST_UNDERFITTING if extensions else 0
    while True:
        by_chance = bool(left_of_underfitting) and _alike(accuracies, held_out) and underfits()
        end = True if by_chance else _end_of_choice(accuracies) if left else None
        following = _rounded(tried[-1] * above if end else tried[0] / below)
        if end is None or not 0 < following < math.inf:
            break
        left, left_of_underfitting = left - (not by_chance), left_of_underfitting - by_chance
        at = len(tried) if end else 0
        tried.insert(at, following)
        accuracies[at:at] = accuracies_of([following])
    return Choice(
        C=tried[_choice(accuracies)],
        lowest=tried[0],
        highest=tried[-1],
        bracketed=_end_of_choice(accuracies, underfits) is None,
    )


def _alike(accuracies: list[float], held_out: int) -> bool:
    """Whether accuracies differ by no more than chance."""
    best, worst = max(accuracies), min(accuracies)
    if not worst > -math.inf:
        return False
    likely = min(max(best, 0.0), 1.0)
    return best - worst <= 2 * math.sqrt(likely * (1 - likely) / held_out) if held_out else best == worst


def _choice(accuracies: list[float]) -> int:
    return accuracies.index(max(accuracies))


def _end_of_choice(accuracies: list[float], underfits: Callable[[], bool] = lambda: False) -> bool | None:
    """Whether the choice is the last, True, or the first, False, and better than its neighbor; else None."""
    choice, best = _choice(accuracies), max(accuracies)
    if choice == len(accuracies) - 1:
        return True
    if choice == 0 and best > accuracies[1]:
        return False
    return True if min(accuracies) == best > -math.inf and underfits() else None


def _rounded(value: float) -> float:
    """Without what division leaves behind: 0.01, not 0.010000000000000002."""
    return float(f"{value:.12g}")
