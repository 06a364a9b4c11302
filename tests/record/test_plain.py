"""Any argument can be described, whatever it is and does."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_cnnviz import ClassScore, Transform
from lightning_cnnviz.record.data import plain, to_tree

SAME = torch.arange(3)
HASH = to_tree(SAME)[0]["tensor"]


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    @property
    def __name__(self) -> str:
        raise SystemError("no")


class Settings:
    pass


def turned(image: Any) -> Any:
    return image


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (None, None),
        (True, True),
        (9, 9),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
        (2**64, "0x10000000000000000"),
        ("conv1", "conv1"),
        ("x" * 3000, "x" * 2000 + "..."),
        ("\udcff", "\udcff"),
        (("a", ["b"]), ["a", ["b"]]),
        ({"b", "a"}, ["a", "b"]),
        ({1: 2, ("a", 1): None}, {"1": 2, "['a', 1]": None}),
        (SAME, {"dtype": "int64", "shape": [3], "hash": HASH}),
        (SAME.numpy(), {"dtype": "int64", "shape": [3], "hash": HASH}),
        (torch.empty(2, device="meta"), {"dtype": "float32", "shape": [2]}),
        (np.array(["a"]), {"dtype": "<U1", "shape": [1]}),
        (turned, f"{__name__}.turned"),
        (Settings, f"{__name__}.Settings"),
        (nn.ReLU(), "torch.nn.modules.activation.ReLU"),
        (len, "builtins.len"),
        (json, "json"),
        (functools.partial(turned, 3), {"function": f"{__name__}.turned", "arguments": [3], "keywords": {}}),
        (Path("a") / "b", f"a{os.sep}b"),
        (torch.float16, "torch.float16"),
        (Settings(), f"<{__name__}.Settings object>"),
        (Silent(), f"<{__name__}.Silent>"),
        (
            ClassScore(3, "jay"),
            {"type": "lightning_cnnviz.core.maximization.objectives.ClassScore", "index": 3, "name": "jay"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_said_of_a_value(value: Any, described: Any) -> None:
    assert plain(value) == described
    assert plain([value]) == [described]
    json.dumps(plain(value), allow_nan=False)


def test_dataclasses_are_described_by_their_fields() -> None:
    found = plain(Transform("none", turned, (0.0, 1.0)))
    assert found["apply"] == f"{__name__}.turned"
    assert found["values"] == [0.0, 1.0]


def test_values_that_hold_themselves_have_an_end() -> None:
    one: list[Any] = []
    one.append(one)
    assert str(plain(one)).count("[") == 9
    many: list[Any] = []
    many[:] = [many] * 1000
    assert len(json.dumps(plain(many))) < 100_000
    assert plain(list(range(10_000)))[-2:] == [4998, "..."]


@given(
    st.recursive(
        st.none() | st.floats() | st.text(st.characters(exclude_categories=())) | st.binary() | st.complex_numbers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.floats() | st.binary(), inner),
        max_leaves=8,
    )
)
def test_whatever_it_is_it_can_be_written(value: Any) -> None:
    assert isinstance(json.dumps(plain(value), allow_nan=False), str)
