"""Threads of one process that play the ranks of a distributed run, for tests of what ranks exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def as_ranks(
    work: Callable[[int], Any], count: int, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType
) -> list[Any]:
    """What `work(rank)` returns for each of some ranks; in these modules, whatever is exchanged waits for all of them.

    One thread runs at a time, since looks set modes of the whole process.
    """
    local, barrier = threading.local(), threading.Barrier(count, timeout=60)
    board: list[Any] = [None] * count
    results: list[Any] = [None] * count
    turn = threading.Lock()

    def gathered(tensor: Tensor) -> list[Tensor]:
        board[local.rank] = tensor
        turn.release()
        barrier.wait()
        everyone = [part.clone() for part in board]
        barrier.wait()
        turn.acquire()
        return everyone

    def play(rank: int) -> None:
        local.rank = rank
        with turn:
            results[rank] = work(rank)

    played = {
        "ranks": lambda: count,
        "rank": lambda: local.rank,
        "gathered": gathered,
        "summed": lambda tensor: torch.stack(gathered(tensor)).sum(0),
    }
    for module in modules:
        for name in played.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, played[name])
    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
