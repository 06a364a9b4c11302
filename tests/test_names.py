"""Names of files, classes and folders that are not UTF-8, from the images to predictions, pages and weights."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sinks.harness import page_text
from torch import nn

from lightning_cnnviz import FineTuner, ImageFolderDataModule, PageSink, TopPatchesMonitor
from lightning_cnnviz.cli import main
from lightning_cnnviz.finetune.weights import read_weights
from lightning_cnnviz.record import Record, load, save

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="names that are bytes"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # the checkpoint of another run is read
]

LATIN = os.fsdecode(b"caf\xe9")
ESCAPED = r"caf\udce9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with such a name."""
    place = tmp_path / LATIN
    try:
        place.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    return place


@pytest.fixture
def photos(folder: Path) -> Path:
    """Two classes of four images, one class and one image in each with such a name."""
    numbers = np.random.default_rng(0)
    for name, level in ((LATIN, 30), ("dog", 200)):
        place = folder / "images" / name
        place.mkdir(parents=True)
        for file in ("1", "2", "3", LATIN):
            pixels = numbers.integers(level, level + 40, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{file}.png")
    return folder / "images"


@pytest.mark.fault(
    "inputs",
    "names of images, of a class and of the folders above them are not UTF-8: `cnnviz fit`, then `cnnviz predict`",
    "every image has its line; a byte that is no text is written as `\\udce9`",
)
def test_names_that_are_not_utf8_cost_no_prediction(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    settings = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
    settings += ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=./logs"]
    settings += [f"--data.data={photos}", "--data.image_size=32", "--data.val=0.25", "--model.backbone=squeezenet1_1"]
    assert main(["fit", *settings, "--data.batch_size=4"]) == 0
    (checkpoint,) = photos.parent.rglob("*.ckpt")
    assert main(["predict", *settings, f"--ckpt_path={checkpoint}", f"--data.predict={photos}"]) == 0
    (path,) = photos.parent.rglob("predictions.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    place = str(photos).replace(LATIN, ESCAPED)
    files = [f"{place}/{name}/{file}.png" for name in (ESCAPED, "dog") for file in ("1", "2", "3", ESCAPED)]
    assert [row["file"] for row in rows] == files
    assert {row["predicted_class"] for row in rows} <= {ESCAPED, "dog"}
    assert "Predictions of 8 images: " in capsys.readouterr().out


@pytest.mark.fault(
    "inputs",
    "names of images, of a class and of the folder of page and record are not UTF-8",
    "the page says which image is which (the byte as `\\udce9`), and the record can be read and shown again",
)
def test_names_that_are_not_utf8_stand_on_the_page(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageFolderDataModule(photos, image_size=32, val=0.5, batch_size=4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    page = photos.parent / "page"
    monitor = TopPatchesMonitor(features=2, k=4, sinks=[PageSink(page)], on_error="raise")
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=photos.parent,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(FineTuner(network, 2, image_size=(3, 32, 32)), data)
    assert data.val_set is not None
    shown = {file.replace(LATIN, ESCAPED) for file in data.val_set.files or ()}
    assert any(file.endswith(f"{ESCAPED}.png") for file in shown)
    first = page_text(page / "index.html")
    assert {file for file in shown if file in first} == shown
    assert Record(page / "record").check() == []
    assert main(["view", str(page), "--out", str(photos.parent / "again")]) == 0
    again = page_text(photos.parent / "again" / "index.html")
    assert {file for file in shown if file in again} == shown
    assert "damaged" not in capsys.readouterr().out


def test_results_and_weights_are_read_from_such_folders(folder: Path) -> None:
    save({"accuracy": torch.arange(3)}, folder / f"{LATIN}.safetensors")
    assert torch.equal(load(folder / f"{LATIN}.safetensors")["accuracy"], torch.arange(3))
    with pytest.raises(FileNotFoundError, match="gone"):
        load(folder / "gone.safetensors")
    (folder / "damaged.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"damaged\.safetensors cannot be loaded"):
        load(folder / "damaged.safetensors")
    layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    safetensors.torch.save_file(layer.state_dict(), folder.parent / "weights.safetensors")
    os.rename(folder.parent / "weights.safetensors", folder / "weights.safetensors")
    other.load_state_dict(read_weights(other, str(folder / "weights.safetensors")))
    assert torch.equal(layer.weight, other.weight)
