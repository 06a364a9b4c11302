"""Which images of each class train, and which are held out: drawn by a seed, the same at every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["ImageSplit", "listed_names", "seed_of", "split_images"]

_NAMED = 8  # so many names stand in a message


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Numbers of images, sorted, none of them twice.

    Attributes:
        train: Those to learn from.
        val: Those held out for validation.
        test: Those held out for testing.
    """

    train: list[int]
    val: list[int]
    test: list[int]


def split_images(
    by_class: Mapping[str, Sequence[int]],
    seed: int,
    *,
    val: float = 0,
    test: float = 0,
    per_class: int | None = None,
    where: str = "the data",
) -> ImageSplit:
    """Draw from each class which images train, and which are held out.

    What is drawn from a class depends on the seed, the class's name and its images alone. Held-out images are the last
    in the drawn order: whatever is held out, the training images begin with the same ones.

    Args:
        by_class: The images of each class.
        seed: What is drawn.
        val: Held out for validation, after those for testing: a fraction of each class, or a number of images a class.
        test: Held out for testing, likewise.
        per_class: Number of training images of each class; None for all that remain.
        where: The data's name, for messages.

    Raises:
        ValueError: Classes have too few images; names them.

    Example:
        >>> split_images({"cat": [0, 1, 2, 3], "dog": [4, 5, 6, 7]}, 0, val=1, per_class=2)
        ImageSplit(train=[0, 3, 4, 5], val=[2, 6], test=[])
    """
    train: dict[str, list[int]] = {}
    held_out: dict[str, list[int]] = {"val": [], "test": []}
    for name, indices in by_class.items():
        drawn = _permuted(indices, f"{seed}/{name}")
        # Held out from the end.
        last = max(len(drawn) - _amount(test, len(drawn)), 0)
        first = max(last - _amount(val, last), 0)
        train[name] = drawn[:first]
        held_out["val"] += drawn[first:last]
        held_out["test"] += drawn[last:]
    few = [f"{name} ({len(indices)})" for name, indices in train.items() if len(indices) < (per_class or 1)]
    if few:
        wanted = f"per_class={per_class}: " if per_class else ""
        held = " and ".join(f"{name}={amount:g}" for name, amount in (("val", val), ("test", test)) if amount)
        after = f", after {held} held out" if held else ""
        raise ValueError(f"{wanted}{where} has too few training images of {listed_names(few, quote=False)}{after}")
    return ImageSplit(
        train=sorted(index for indices in train.values() for index in indices[:per_class]),
        val=sorted(held_out["val"]),
        test=sorted(held_out["test"]),
    )


def seed_of(key: str) -> int:
    """Return a seed of 63 bits; keys that differ little have seeds that differ much."""
    return (
        int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big", signed=False)
        >> 1
    )


def listed_names(names: Sequence[str], *, quote: bool = True) -> str:
    """Return names for a message: the first few of many."""
    shown = [f"'{name}'" if quote else name for name in names[:_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _amount(asked: float, count: int) -> int:
    """How many of `count` images are asked for, as a number or a fraction; of a fraction above 0 at least one."""
    if asked == 0 or asked >= 1:
        return int(asked)
    return max(1, int(count * asked + 0.5))


def _permuted(indices: Sequence[int], key: str) -> list[int]:
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed_of(key)))
    return [indices[place] for place in order.tolist()]
