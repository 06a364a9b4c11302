"""Results go to files and come back equal to the bit; what is no such file is refused."""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import layer_table, load, mine_top_patches, save
from lightning_cnnviz.record.data import from_tree, to_tree


def differences(one: Any, other: Any, where: str = "value") -> list[str]:
    """Where two values differ, to the bit: types, orders of keys, dtypes, shapes and NaNs too."""
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
        return [] if same else [f"{where}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"]
    if is_dataclass(one):
        pairs = [(field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
        return [found for name, *two in pairs for found in differences(*two, f"{where}.{name}")]
    if isinstance(one, dict):
        return differences(list(one.items()), list(other.items()), where)
    if isinstance(one, (tuple, list)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} parts"]
        both = enumerate(zip(one, other, strict=True))
        return [found for place, two in both for found in differences(*two, f"{where}[{place}]")]
    if isinstance(one, float):
        return [] if struct.pack(">d", one) == struct.pack(">d", other) else [f"{where}: {one} and {other}"]
    if isinstance(one, complex):
        return differences((one.real, one.imag), (other.real, other.imag), where)
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def through_tree(value: Any) -> Any:
    tree, tensors = to_tree(value)
    return from_tree(tree, tensors.__getitem__)


NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def mined() -> Any:
    data = TensorDataset(images(), torch.arange(6) % 3)
    return mine_top_patches(NETWORK, DataLoader(data, 2), layers=["0"], k=3)


def test_a_result_is_saved_and_loaded(tmp_path: Any) -> None:
    found = mined()
    path = save(found, tmp_path / "patches")
    assert path == tmp_path / "patches.safetensors"
    assert differences(load(tmp_path / "patches"), found) == []
    assert differences(load(str(path)), found) == []


def test_a_table_is_saved_and_loaded(tmp_path: Any) -> None:
    table = layer_table(NETWORK, (3, 8, 8))
    assert differences(load(save(table, tmp_path / "conv1.2")), table) == []
    assert (tmp_path / "conv1.2.safetensors").exists()


def test_equal_tensors_are_there_once() -> None:
    one = torch.arange(12.0).reshape(3, 4)
    tree, tensors = to_tree([one, one.t().contiguous().t(), one.clone(), one[:2], one.double(), one.reshape(4, 3)])
    assert len(tensors) == 4
    assert [part["tensor"] for part in tree[:3]] == [tree[0]["tensor"]] * 3


PLAIN_KEYS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())) | st.floats()
PLAIN = st.recursive(
    PLAIN_KEYS | st.complex_numbers() | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(PLAIN_KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_are_kept_to_the_bit(value: Any) -> None:
    assert differences(through_tree(value), value) == []


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (2**5000, 2**5000),
        (-0.0, -0.0),
        (Fraction(-1, 3), Fraction(-1, 3)),
        (torch.Size([2, 0]), torch.Size([2, 0])),
        (torch.bfloat16, torch.bfloat16),
        ("\ud83d\ude00", "\ud83d\ude00"),
        ("\udcff.png", "\udcff.png"),
    ],
)
def test_special_values(value: Any, read: Any) -> None:
    assert differences(through_tree(value), read) == []
