"""Two processes that unfreeze stage by stage learn what one learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import torch
from finetune.ddp_tuner_run import main


def run(ranks: int, out: Path) -> list[Any]:
    processes.run(main, (ranks, out))
    return [torch.load(out.with_suffix(f".{rank}")) for rank in range(ranks)]


def test_gradients_of_what_is_unfrozen_are_reduced(tmp_path: Path) -> None:
    (one,) = run(1, tmp_path / "one.pt")
    first, second = run(2, tmp_path / "two.pt")
    assert len(one) == len(first) == len(second) == 5
    for epoch, (alone, mine, theirs) in enumerate(zip(one, first, second, strict=True)):
        for key, value in alone.items():
            assert torch.equal(mine[key], theirs[key]), (epoch, key)
            assert torch.allclose(value, mine[key], rtol=0, atol=1e-6), (epoch, key)
    # The stages did learn, each from its epoch on.
    for epoch in range(1, 5):
        moved = {key.split(".")[0] for key, value in one[epoch].items() if not torch.equal(value, one[epoch - 1][key])}
        assert moved == ({"6", "11"} if epoch < 3 else {"3", "6", "11"}), epoch
