"""Files of a record: packs of tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from lightning_cnnviz.record._files import write_pack


def test_a_pack_is_what_safetensors_reads(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {str(kind): torch.arange(6).view(2, 3).to(kind) for kind in (*kinds, torch.int8, torch.uint8)}
    tensors |= {"bool": torch.tensor([True, False, True]), "number": torch.tensor(1.5), "none": torch.zeros(0, 4)}
    tensors["turned"] = torch.rand(3, 4).T
    size = write_pack(tmp_path / "pack", tensors)
    assert size == (tmp_path / "pack").stat().st_size
    # The library's own reader, which checks offsets, order and size.
    read = safetensors.torch.load_file(tmp_path / "pack")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    assert write_pack(tmp_path / "empty", {}) == (tmp_path / "empty").stat().st_size
    assert safetensors.torch.load_file(tmp_path / "empty") == {}


def test_a_pack_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", {"a": torch.zeros(2)})
    with pytest.raises(KeyError, match="complex64"):
        write_pack(tmp_path / "pack", {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex64)})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "pack")["a"], torch.zeros(2))
