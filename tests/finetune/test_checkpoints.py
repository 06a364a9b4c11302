"""A checkpoint says what a network is, and never what is imported and run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cnnviz.cli import main
from lightning_cnnviz.explore import load_network
from lightning_cnnviz.finetune.checkpoints import read_checkpoint, stored_settings
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.finetune.networks import make_network

EVIL = "import pathlib; pathlib.Path('ran').touch()\ndef make(): pathlib.Path('ran').touch()\nclass Kind: pass\n"
KNOWN = ("backbone", "num_classes", "head", "optimizer", "scheduler", "lr", "optimizer_options", "class_names")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which a module lies that says when it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "evilmod.py").write_text(EVIL)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    return tmp_path


def checkpoint(path: Path, state: dict[str, Any] | None = None, **settings: Any) -> Path:
    settings = {"backbone": "squeezenet1_1", "num_classes": 2, "image_size": [3, 64, 64], **settings}
    about = {"pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0, "loops": {}, "callbacks": {}}
    torch.save({**about, "state_dict": state or {}, "hyper_parameters": settings}, path)
    return path


NAMING_CODE = [
    {"backbone": "os:abort"},
    {"backbone": "evilmod:make"},
    {"backbone": {"class_path": "evilmod.Kind"}},
    {"optimizer": "evilmod.Kind"},
    {"scheduler": "evilmod.Kind"},
    {"head": {"class_path": "evilmod.Kind"}},
    {"optimizer_options": {"betas": [{"class_path": "evilmod.Kind"}]}},
    {"_instantiator": "evilmod.make"},
    {"_class_path": "evilmod.Kind"},
]


@pytest.mark.fault(
    "inputs",
    "a checkpoint without a pickle names code: a backbone `os:abort`, a file beside it",
    "nothing that it names is imported or called",
)
@pytest.mark.parametrize("settings", NAMING_CODE)
def test_no_way_to_load_a_checkpoint_runs_what_it_names(here: Path, settings: dict[str, Any]) -> None:
    file = checkpoint(here / "bad.ckpt", **settings)
    (name,) = settings
    said = rf"bad\.ckpt (says {name}=|has the setting '{name}')"
    with pytest.raises(ValueError, match=said):
        load_network(str(file))
    with pytest.raises(ValueError, match=said):
        FineTuner.load_from_checkpoint(file)
    with file.open("rb") as opened, pytest.raises(ValueError, match=rf"the checkpoint (says {name}=|has the setting)"):
        FineTuner.load_from_checkpoint(opened)
    assert "evilmod" not in sys.modules
    assert not (here / "ran").exists()


@pytest.mark.parametrize("settings", NAMING_CODE[1:5])
def test_no_command_runs_what_a_checkpoint_names(
    here: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(here / "bad.ckpt", **settings)
    words = ["predict", "--data.data", "digits", "--model.backbone", "squeezenet1_1", "--ckpt_path", str(file)]
    quiet = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main([*words, *quiet]) == 2
    assert "No code is run that a file names" in capsys.readouterr().err
    assert "evilmod" not in sys.modules
    assert not (here / "ran").exists()


def test_explore_says_how_to_give_the_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkpoint(here / "mine.ckpt", backbone="evilmod:make")
    with pytest.raises(SystemExit, match="2"):
        main(["explore", str(file), "--data", "digits", "--input", "3", "64", "64"])
    error = " ".join(capsys.readouterr().err.split())
    assert "backbone='evilmod:make'" in error
    assert "--backbone NAME" in error
    assert not (here / "ran").exists()


def test_a_network_that_the_user_names_is_imported_and_has_the_checkpoints_weights(here: Path) -> None:
    (here / "my_own_nets.py").write_text("import torchvision\ndef make(): return torchvision.models.squeezenet1_1()\n")
    tuner = FineTuner("squeezenet1_1", 2, image_size=[3, 64, 64], sinks=[])
    file = checkpoint(here / "mine.ckpt", tuner.state_dict(), backbone="my_own_nets:make")
    before = [*sys.path]
    network = load_network(str(file), backbone="my_own_nets:make")
    assert all(torch.equal(value, tuner.network.state_dict()[name]) for name, value in network.state_dict().items())
    # Behind all others: what lies in the current folder takes the place of no package.
    assert sys.path == [*before, str(here)]
    loaded = FineTuner.load_from_checkpoint(file, backbone="my_own_nets:make")
    assert loaded.backbone_name == "my_own_nets:make"
    with pytest.raises(ValueError, match="is for a checkpoint, and 'squeezenet1_1' is no file"):
        load_network("squeezenet1_1", backbone="my_own_nets:make")


@pytest.mark.fault(
    "inputs",
    "a file of the current folder has the name of a package",
    "the package is imported",
)
def test_a_file_in_the_current_folder_takes_the_place_of_no_package(here: Path) -> None:
    (here / "torchvision.py").write_text(EVIL)
    (here / "timm.py").write_text(EVIL)
    before = [*sys.path]
    assert isinstance(make_network("torchvision.models:squeezenet1_1"), nn.Module)
    assert sys.path == before  # it was found without
    assert not (here / "ran").exists()


def test_settings_are_plain() -> None:
    stored = {
        "backbone": "timm/resnet18",
        "num_classes": 2,
        "weights": "DEFAULT",
        "optimizer": "SGD",
        "scheduler": None,
    }
    found = stored_settings({"hyper_parameters": stored}, "x.ckpt", KNOWN)
    assert found == {name: value for name, value in stored.items() if name != "weights"}
    assert stored_settings({}, "x.ckpt", KNOWN) == {}
    assert stored_settings({"hyper_parameters": {"backbone": "a:b"}}, "x.ckpt", KNOWN, typed=["backbone"]) == {}


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no checkpoint")
    with pytest.raises(ValueError, match="a cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "a")
    torch.save({"network": nn.ReLU()}, tmp_path / "b")
    with pytest.raises(ValueError, match="b cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="c"):
        read_checkpoint(tmp_path / "c")


NO_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "empty": (b"", "cannot be read as a checkpoint"),
    "text": (b"hello", "cannot be read as a checkpoint"),
    "users": (b"root:x:0:0:root:/root:/bin/bash\n", "cannot be read as a checkpoint"),
    "cut": (b"PK\x03\x04xxxx", "cannot be read as a checkpoint"),
    "a list": ([1], "has no weights under 'state_dict'"),
    "no weights": ({"hyper_parameters": {}}, "has no weights under 'state_dict'"),
    "words": ({"state_dict": "x"}, "has no weights under 'state_dict'"),
    "lists": ({"state_dict": {"a": [1]}}, "has no weights under 'state_dict'"),
    "settings": ({"state_dict": {}, "hyper_parameters": [1]}, "its 'hyper_parameters' are no settings by name"),
    "none": ({"state_dict": {}}, "does not have all settings of its network: give backbone=.* and num_classes="),
}


@pytest.mark.fault(
    "inputs",
    "a checkpoint is empty, cut off, text, or lacks weights or settings",
    "the error names the file and says what it lacks",
)
@pytest.mark.parametrize(("content", "message"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_of_a_finetuner_is_said(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=rf"a\.ckpt .*{message}"):
        FineTuner.load_from_checkpoint(file)
