"""Two processes share the images of an epoch, and the work of looking for corrupt files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from finetune.ddp_data_run import main
from PIL import Image


@pytest.mark.filterwarnings("ignore:2 files cannot be read")
def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "images", np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(numbers.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")
        (folder / name / "broken.png").write_bytes(b"nothing")
    main(1, folder, tmp_path / "one")
    processes.run(main, (2, folder, tmp_path / "two"))
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert one["files"] == first["files"] == second["files"]
    assert len(one["files"]) == 8
    assert one["broken"] == first["broken"] == second["broken"] == [str(folder / n / "broken.png") for n in "ab"]
    for number in (0, 1):
        alone, ours, theirs = (
            torch.cat([images for epoch, images in found["seen"] if epoch == number]) for found in (one, first, second)
        )
        assert len(ours) == len(theirs) == 4
        both = torch.stack([ours, theirs], 1).flatten(0, 1)  # torch deals the images out in turn
        assert torch.equal(both, alone)
