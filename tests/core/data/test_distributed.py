"""What ranks say to each other, by two real processes, and alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_cnnviz.core.data.distributed import (
    exchanged,
    gathered,
    gathered_objects,
    rank,
    ranks,
    summed,
    to_first,
    together,
)


def talk() -> dict[str, Any]:
    """What a rank hears."""
    number = rank()
    pixels = {0: torch.zeros(2, 3, 4), 1: torch.ones(2, 3, 4)}
    own = [pixels[number], None if number == 0 else torch.full((2, 1, 1), 7.0), pixels[0] if number == 0 else None]
    shapes = [(2, 3, 4), (2, 1, 1), (2, 3, 4)]
    total = torch.tensor([1, number])
    return {
        "rank": number,
        "ranks": ranks(),
        "gathered": gathered(torch.arange(number + 1)),
        "summed": summed(total),
        "kept": total,
        "to_first": to_first(torch.full((3 * 10**5,), number)),  # large enough to meet once more
        "exchanged": exchanged(own, shapes, torch.empty(0, 2)),
    }


def test_two_processes_hear_each_other(tmp_path: Path) -> None:
    from core.two_ranks import on_two_ranks

    heard = on_two_ranks(__file__, "talk", tmp_path)
    for number, one in enumerate(heard):
        assert (one["rank"], one["ranks"]) == (number, 2)
        assert [part.tolist() for part in one["gathered"]] == [[0], [0, 1]]  # shapes may differ
        assert one["summed"].tolist() == [2, 1]
        assert one["kept"].tolist() == [1, number]  # not written to
        told = [None if each is None else int(each.sum()) for each in one["to_first"]]
        assert told == ([0, 3 * 10**5] if number == 0 else [None, 3 * 10**5])
        first, second, third = one["exchanged"]
        assert torch.equal(first, torch.zeros(2, 3, 4))  # the lowest rank's
        assert torch.equal(second, torch.full((2, 1, 1), 7.0))
        assert torch.equal(third, torch.zeros(2, 3, 4))


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.arange(3)
    assert (rank(), ranks()) == (0, 1)
    assert gathered(tensor)[0] is tensor
    assert summed(tensor) is tensor
    assert to_first(tensor)[0] is tensor
    assert exchanged([None, tensor], [(3,)] * 2, tensor) == [None, tensor]


def attempted(heard: list[str], what: str, work: Callable[[], Any]) -> None:
    """Do something together, and note how it went on this rank."""
    try:
        with together(what):
            work()
        heard.append("well")
    except (ValueError, RuntimeError) as error:
        heard.append(f"{type(error).__name__}: {error}")


def fail() -> list[str]:
    """What a rank hears where the other one fails: in the same block, in one around it, or by doing another thing."""
    heard: list[str] = []
    attempt = partial(attempted, heard)

    def alone() -> None:
        if rank() == 1:
            raise ValueError("no such layer")
        gathered(torch.zeros(3))

    def around() -> None:
        if rank() == 1:
            raise RuntimeError("out of memory")
        attempt("inside", lambda: gathered(torch.zeros(3)))
        heard.append("went on")  # the other rank is not here

    def apart() -> None:
        gathered_objects(0) if rank() else summed(torch.zeros(1))

    for name, work in (
        ("alone", alone),
        ("around", around),
        ("apart", apart),
        ("together", lambda: summed(torch.ones(1))),
    ):
        attempt(name, work)
    return heard


def test_what_fails_on_one_rank_fails_on_both_at_the_same_place(tmp_path: Path) -> None:
    from core.two_ranks import on_two_ranks

    first, second = on_two_ranks(__file__, "fail", tmp_path)
    assert second[:2] == ["ValueError: no such layer", "RuntimeError: out of memory"]
    assert first[:2] == [
        "OtherRankError: it failed on rank 1: ValueError: no such layer",
        "OtherRankError: it failed on rank 1: RuntimeError: out of memory",
    ]
    for heard in (first, second):
        assert heard[2].startswith("RuntimeError: ranks do not do the same: rank 0 at summing (1,)")
        assert heard[3:] == ["well"]


KEPT = RuntimeError("kept")


def fail_again() -> list[str]:
    """What a rank hears where the other one raises one exception again and again, as a future's result would."""
    heard: list[str] = []
    attempt = partial(attempted, heard)

    def kept() -> None:
        if rank() == 1:
            raise KEPT

    def from_kept() -> None:
        if rank() == 1:
            raise RuntimeError("new") from KEPT

    def inside(then: Callable[[], None]) -> None:
        attempt("inside", kept)
        then()

    def passed_on() -> None:
        with together("inside"):
            kept()

    def tried_again() -> None:
        attempt("a try", kept)
        with together("another try"):
            kept()

    for name, work in (
        ("once", kept),
        ("twice", kept),
        ("from it", from_kept),
        ("passed on", passed_on),
        ("after a meeting", lambda: inside(lambda: (summed(torch.ones(1)), kept())[1])),
        ("tried again", tried_again),
        ("together", lambda: summed(torch.ones(1))),
    ):
        attempt(name, work)
    return heard


def test_an_exception_that_is_raised_again_is_told_of_again(tmp_path: Path) -> None:
    from core.two_ranks import on_two_ranks

    first, second = on_two_ranks(__file__, "fail_again", tmp_path)
    own = ["kept", "kept", "new", "kept", "kept", "kept", "kept", "kept"]
    assert second == [*(f"RuntimeError: {text}" for text in own), "well"]
    assert first == [*(f"OtherRankError: it failed on rank 1: RuntimeError: {text}" for text in own), "well"]
