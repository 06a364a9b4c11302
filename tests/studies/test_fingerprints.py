from __future__ import annotations

import importlib
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from studies.study_parts import TinyNet, image_folder
from torch import nn

from lightning_cnnviz.studies import fingerprints
from lightning_cnnviz.studies.fingerprints import (
    data_fingerprint,
    network_fingerprint,
    plain_description,
    weights_description,
)


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


@pytest.mark.fault(
    "stale",
    "a study's images are replaced by others of equal names, sizes and times",
    "they are told apart by their content: no old result is used",
)
def test_images_of_equal_names_sizes_and_times_are_told_apart_by_their_content(tmp_path: Path) -> None:
    folder, manifest = image_folder(tmp_path / "data"), tmp_path / "images.json"
    before = data_fingerprint(str(folder), {}, manifest)
    file = next((folder / "train" / "class0").iterdir())
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert data_fingerprint(str(folder), {}, manifest) != before
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    assert data_fingerprint(str(folder), {}, manifest) == before


def test_images_that_were_not_touched_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = image_folder(tmp_path / "data"), tmp_path / "images.json"
    before = data_fingerprint(str(folder), {}, manifest)
    read: list[Path] = []
    real = fingerprints._file_hash
    monkeypatch.setattr(fingerprints, "_file_hash", lambda file: (read.append(file), real(file))[1])
    assert data_fingerprint(str(folder), {}, manifest) == before
    assert read == []
    for damaged in ("[", "[]", '{"a": 1}'):
        manifest.write_text(damaged)
        assert data_fingerprint(str(folder), {}, manifest) == before
    assert len(read) == 3 * len(list(folder.rglob("*.png")))


@pytest.mark.fault(
    "stale",
    "the factory that makes a study's network is changed",
    "its network is another one: no old result is used",
)
def test_a_factory_that_was_changed_makes_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    seen = []
    for width in (4, 16, 4):
        (tmp_path / "a_factory.py").write_text(f"from torch import nn\ndef Tiny(): return nn.Conv2d(3, {width}, 3)\n")
        sys.modules.pop("a_factory", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        seen.append(network_fingerprint("a_factory:Tiny"))
    assert seen[0] == seen[2] != seen[1]
    sys.modules.pop("a_factory", None)
    state = torch.get_rng_state()
    assert network_fingerprint("squeezenet1_1")["versions"]["torch"] == torch.__version__
    assert torch.equal(torch.get_rng_state(), state)


FACTORY = {
    "net.py": """
        from torch import nn
        from a_package.parts import Block
        def make(): return nn.Sequential(Block(), nn.Flatten())
    """,
    "parts.py": """
        from torch import nn
        import a_package.functions as functions
        from a_package.base import Base
        class Block(Base):
            def forward(self, x): return functions.activation(self.conv(x))
    """,
    "base.py": """
        from torch import nn
        class Base(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
    """,
    "functions.py": """
        import torch
        def activation(x): return torch.relu(x)
    """,
    "unused.py": "x = 1",
}


@pytest.mark.fault(
    "stale",
    "code that runs in a study's network is changed: of a block, a base class, a function of another file",
    "its network is another one: no old result is used; comments do not count",
)
def test_code_behind_the_factory_counts_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "a_package").mkdir()

    def seen(file: str = "", old: str = "", new: str = "") -> dict[str, Any]:
        for name, text in {"__init__.py": "", **FACTORY}.items():
            changed = textwrap.dedent(text).replace(old, new) if name == file else textwrap.dedent(text)
            assert (changed != textwrap.dedent(text)) == (name == file)
            (tmp_path / "a_package" / name).write_text(changed)
        for name in [name for name in sys.modules if name.partition(".")[0] == "a_package"]:
            sys.modules.pop(name)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "a_package" / "__pycache__", ignore_errors=True)
        return network_fingerprint("a_package.net:make")

    before = seen()
    assert seen() == before
    for file, old, new in (
        ("parts.py", "self.conv(x)", "-self.conv(x)"),
        ("functions.py", "torch.relu", "torch.tanh"),
        ("base.py", "super().__init__()", "super().__init__(); self.scale = 2"),
        ("net.py", "Flatten()", "Flatten(2)"),
    ):
        after = seen(file, old, new)
        assert after["code"] != before["code"], file
        assert after["versions"] == before["versions"]
    assert seen("functions.py", "import torch", "# A comment.\n\nimport torch") == before
    assert seen("unused.py", "1", "2") == before
    for name in [name for name in sys.modules if name.partition(".")[0] == "a_package"]:
        sys.modules.pop(name)


@pytest.mark.fault(
    "stale",
    "torch or torchvision has another version than when a study was made",
    "its networks are others: no old result is used",
)
def test_another_version_of_a_library_makes_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    before = network_fingerprint("squeezenet1_1")
    for library in (torch, torchvision):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "99.0")
            assert network_fingerprint("squeezenet1_1") != before
    assert network_fingerprint("squeezenet1_1") == before


def test_a_file_of_weights_is_its_content(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (weights_description(str(tmp_path / f"{name}.pt")) for name in "abc")
    assert first == same != other
    assert weights_description("DEFAULT") == "DEFAULT"
    assert weights_description(None) is None
