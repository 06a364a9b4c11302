"""`cnnviz layers`: networks by name, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lightning_cnnviz
from lightning_cnnviz.cli import main

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())

def of_signals():
    return nn.Sequential(nn.Conv1d(12, 4, 7, stride=2), nn.ReLU(), nn.Conv1d(4, 8, 5))

ready = small()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    (tmp_path / "cnnviz_own_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cnnviz_own_networks", raising=False)
    return "cnnviz_own_networks"


def test_a_torchvision_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "alexnet"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("AlexNet on an image of 3x224x224\n")
    (row,) = (line for line in printed.splitlines() if line.startswith("features.10 "))
    assert row.split()[-3:] == ["16", "163", "15"]
    assert "61,100,840 parameters · 714 M multiply-adds" in printed


def test_a_network_that_looks_at_values_while_it_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "regnet_y_400mf", "--input", "3", "64", "64"]) == 0
    assert "4,344,144 parameters" in capsys.readouterr().out


def test_a_timm_network(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    assert main(["layers", "timm/resnet10t", "--input", "3", "96", "64"]) == 0
    assert "ResNet on an image of 3x96x64" in capsys.readouterr().out


@pytest.mark.parametrize("attribute", ["small", "ready"])
def test_ones_own_network(module: str, attribute: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", f"{module}:{attribute}", "--input", "1", "8", "10"]) == 0
    assert "4·(3·3·1+1) = 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], "no network is called 'resnet19'. Did you mean 'resnet1"),
        (["zzz"], "no network is called 'zzz'. Other networks: timm/NAME, or package.module:factory"),
        (["r2plus1d_18"], "'r2plus1d_18' takes clips (N, C, T, H, W)"),
        (["MODULE:smal"], "has no 'smal'. Did you mean 'small'?"),
        (["MODULE:number"], "gives int, which is no torch.nn.Module"),
        (["no_such_module_here:x"], "cannot import 'no_such_module_here'"),
        (["alexnet", "--input", "3", "30", "30"], "AlexNet does not take an image of 3x30x30: layer 'features.5'"),
        (["alexnet", "--input", "3", "0", "30"], "'0' is not a whole number of at least 1"),
        (["alexnet", "--input", "3", "64"], "and AlexNet has Conv2d: give channels, height and width"),
        (["MODULE:small"], "Sequential does not take an image of 3x224x224: layer '0' stopped"),
    ],
)
def test_what_cannot_be_had_is_said(
    module: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["layers", *(argument.replace("MODULE", module) for argument in arguments)])
    assert message in capsys.readouterr().err


def test_an_unknown_timm_network(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    with pytest.raises(SystemExit, match="2"):
        main(["layers", "timm/resnet10x"])
    assert "no network is called 'timm/resnet10x'. Did you mean 'resnet10t'" in capsys.readouterr().err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"cnnviz {lightning_cnnviz.__version__}\n"


def test_a_network_of_signals(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", f"{module}:of_signals", "--input", "12", "1000"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Sequential on a signal of 12x1000\n")
    assert "Jump: samples from a unit to the next." in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("2 "))
    assert row.split()[1:3] == ["Conv1d", "8x493"]
    assert row.split()[-3:] == ["2", "15", "7"]


def test_a_network_of_clips(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "torchvision.models.video:r3d_18", "--input", "3", "8", "32", "32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("VideoResNet on a volume of 3x8x32x32\n")
    (row,) = (line for line in printed.splitlines() if line.startswith("stem.0 "))
    assert row.split()[1:3] == ["Conv3d", "64x8x16x16"]
    assert "1 x 2 x 2" in row
    assert "3 x 7 x 7" in row
