from __future__ import annotations

from pathlib import Path

import pytest
import torch
from studies.study_parts import TinyNet, image_folder
from torch import nn

from lightning_cnnviz.studies.fingerprints import data_fingerprint, plain_description, weights_description


def test_what_stands_for_a_value_in_a_description() -> None:
    assert plain_description(TinyNet(), "x") == plain_description(TinyNet(), "x")
    assert plain_description(TinyNet(), "x") != plain_description(TinyNet(seed=1), "x")
    assert plain_description(nn.ReLU(), "x") != plain_description(nn.ReLU(inplace=True), "x")
    assert plain_description({"a": (1, Path("b"))}, "x") == {"a": [1, "b"]}
    assert plain_description(torch.optim.SGD, "x") == "torch.optim.sgd:SGD"
    with pytest.raises(TypeError, match=r"x\['a'\]\[1\] is <function .*give a function or a class of a module"):
        plain_description({"a": [1, lambda: None]}, "x")


def test_data_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    one = data_fingerprint(str(image_folder(tmp_path / "one")), {})
    assert data_fingerprint(str(image_folder(tmp_path / "far" / "two")), {}) == one
    fewer = image_folder(tmp_path / "three")
    next((fewer / "train" / "class0").iterdir()).unlink()
    assert data_fingerprint(str(fewer), {}) != one
    assert data_fingerprint("digits", {})["name"] == "digits"


def test_a_file_of_weights_is_its_content(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (weights_description(str(tmp_path / f"{name}.pt")) for name in "abc")
    assert first == same != other
    assert weights_description("DEFAULT") == "DEFAULT"
    assert weights_description(None) is None
