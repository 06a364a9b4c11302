import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cnnviz import layer_table, mine_top_patches
from lightning_cnnviz.cli import main
from lightning_cnnviz.record import DataIdentity, LookIdentity, NetworkIdentity, Record
from lightning_cnnviz.render.views import Seen

NETWORK = NetworkIdentity(type="Sequential", parameters=1234, checksum="00")
DATA = DataIdentity(dataset="Digits", images=1797)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a record of two runs, of which the second has two monitors of one view."""
    page = tmp_path_factory.mktemp("run") / "cnnviz"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    found = mine_top_patches(model, [torch.rand(4, 1, 12, 12)], k=4)
    table = layer_table(model, (1, 12, 12))
    record = Record(page / "record")

    def add(view: str, result: Any, epoch: int, run: str, **fields: Any) -> None:
        identity = LookIdentity(view=view, epoch=epoch, run=run, network=NETWORK, data=DATA, **fields)
        record.add(identity, Seen(result=result, epoch=epoch))

    for epoch in (1, 2, 3, 5):
        add("top_patches", found, epoch, "first")
    add("layer_table", table, 0, "second")
    add("top_patches", found, 1, "second", name="large")
    add("top_patches", found, 1, "second", name="small")
    add("top_patches", found, 2, "second", name="small", stage="test")
    return page.parent


def export(*arguments: Any) -> int:
    return main(["export", *map(str, arguments)])


def test_a_record_is_listed_by_run_and_series(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert "8 looks, " in printed
    assert "run first: Sequential, 1,234 parameters, " in printed
    assert ["top_patches", "fit", "Digits", "1,797", "4", "1-3,", "5"] in [line[:7] for line in lines]
    assert ["top_patches", "small", "test", "Digits", "1,797", "1", "2"] in [line[:7] for line in lines]
    assert printed.endswith("Everything can be read.\n")


def test_a_record_is_kept_to_a_size(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "run")
    assert main(["record", str(tmp_path / "run"), "--keep-megabytes", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 looks taken away\n")  # of four at one number of steps, those between first and newest
    assert "6 looks, " in printed


def test_what_is_damaged_is_named_and_the_exit_status_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "record")
    table = layer_table(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 8, 8))
    for epoch in (1, 2):
        record.add(LookIdentity(view="layer_table", epoch=epoch, run="\x1b[2J"), Seen(result=table, epoch=epoch))
    first, _ = sorted((tmp_path / "record" / "looks").iterdir())
    first.write_text("{}")
    assert main(["record", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 looks, " in printed
    assert f"Damaged (1):\n- look {first.stem}" in printed
    assert "\x1b" not in printed
    assert main(["record", str(tmp_path), "--no-check"]) == 0
    assert "Damaged" not in capsys.readouterr().out


def test_a_folder_without_a_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["record", str(tmp_path)], ["export", str(tmp_path / "no"), "--view", "x", "--to", "a.pdf"]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert "there is no record in" in capsys.readouterr().err


def test_a_look_is_exported_as_what_the_suffixes_say(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, numbers = tmp_path / "a.pdf", tmp_path / "a.csv"
    record = folder / "cnnviz" / "record"
    look = ("--view", "top_patches", "--run", "first", "--epoch", 2, "--layer", "2")
    assert export(record, *look, "--to", figure, numbers, "--width", 3.5) == 0
    assert figure.read_bytes().startswith(b"%PDF")
    items = {line.split(",")[0] for line in numbers.read_text().splitlines()[1:]}
    assert items == {"2", "2/dead_features", "2/dead_fraction", "2/stability", "2/label_purity"}
    assert capsys.readouterr().out == f"top_patches, fit, epoch 2: {figure}\ntop_patches, fit, epoch 2: {numbers}\n"


def test_the_newest_look_is_taken_and_single_items(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert export(folder, "--view", "layer_table", "--item", "parameters", "--to", path) == 0
    assert path.read_text().splitlines()[1].startswith("parameters,scalar,,,")
    assert export(folder, "--view", "top_patches", "--run", "first", "--item", "0", "--to", path) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--view", "top_patch"], "there is no look of --view 'top_patch'. Did you mean 'top_patches'?"),
        (["--view", "top_patches"], "which one? --stage may be 'fit', 'test'"),
        (["--view", "top_patches", "--stage", "fit"], "which one? --name may be 'large', 'small'"),
        (["--view", "top_patches", "--run", "first", "--epoch", "4"], "no look of epoch 4, but of 1-3, 5"),
        (["--view", "layer_table", "--layer", "conv"], "has nothing that is called by layer 'conv'"),
        (["--view", "layer_table", "--item", "layer"], "has no item 'layer'. Did you mean 'layers'?"),
        (["--view", "layer_table", "--dpi", "1"], "dpi from 30 to 2400"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    folder: Path, tmp_path: Path, asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        export(folder, *asked, "--to", tmp_path / "a.pdf")
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
