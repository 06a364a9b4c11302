"""Two real processes that exchange tensors: `on_two_ranks(__file__, "work", folder)` calls `work()` in each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import processes
import torch


def on_two_ranks(file: str, function: str, folder: Path) -> list[Any]:
    """What a function of a test's file returns in each of two processes of one group."""
    processes.run(main, *[(file, function, rank, folder) for rank in range(2)])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def main(file: str, function: str, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    spec = importlib.util.spec_from_file_location("work", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save(getattr(module, function)(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
