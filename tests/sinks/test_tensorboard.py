"""TensorBoard: everything of a look is read back from the files by TensorBoard's own reader."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from PIL import Image
from sinks.harness import Harness, full_disk, report_key

pytest.importorskip("tensorboard")

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_cnnviz import TensorBoardSink, TopPatchesMonitor
from lightning_cnnviz.report import Picture, Report, Step, Table
from lightning_cnnviz.sinks.base import Sink


def read(folder: str | Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def keys(sink: Sink, loggers: list[Any]) -> list[str]:
    found = []
    for logger in loggers:
        events = read(logger.log_dir)
        tags = events.Tags()
        for tag in tags["scalars"]:
            found += [report_key(tag)] * (len(events.Scalars(tag)) if tag not in ("epoch", "hp_metric") else 0)
        for tag in tags["images"]:
            found += [tag] * len(events.Images(tag))
        for tag in tags["tensors"]:
            name = tag.removesuffix("/text_summary")
            found += [name] * (len(events.Tensors(tag)) if not name.endswith("/how to read") else 0)
    return found


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: list[Any]) -> None:
    for logger in loggers:
        patch.setattr(logger.experiment, "_get_file_writer", full_disk)


HARNESS = Harness(
    make=TensorBoardSink, loggers=lambda: [TensorBoardLogger(tempfile.mkdtemp())], keys=keys, breaks=breaks
)


def written(*items: Any, folder: Path, step: Step | None = None) -> EventAccumulator:
    logger, sink = TensorBoardLogger(str(folder)), TensorBoardSink()
    sink.open([logger], folder)
    report = Report("view", title="Title", items=items, notes=("One scale.",))
    sink.write(report, step or Step(epoch=2, global_step=10, logged=(1, 9)))
    return read(logger.log_dir)


def test_a_picture_is_read_back_with_its_size_pixels_and_step(tmp_path: Path) -> None:
    pixels = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    events = written(Picture("features.3", pixels, caption="Noise."), folder=tmp_path)
    (image,) = events.Images("view/features.3")
    assert (image.step, image.width, image.height) == (9, 30, 20)
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    assert shown.tobytes() == pixels.permute(1, 2, 0).numpy().tobytes()
    (about,) = events.Tensors("view/how to read/text_summary")
    text = about.tensor_proto.string_val[0].decode()
    assert "One scale." in text
    assert "features.3: Noise." in text


def test_a_table_is_text_that_markdown_reads(tmp_path: Path) -> None:
    rows = tuple((f"a|{number}", number, 0.25) for number in range(300))
    events = written(Table("t", ("name", "n", "x"), rows, caption="Rows."), folder=tmp_path)
    (table,) = events.Tensors("view/t/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:5] == ["Rows.", "", "| name | n | x |", "| --- | --- | --- |", "| a\\|0 | 0 | 0.25 |"]
    assert lines[-1] == "... and 100 more rows"


def test_a_run_shows_its_looks_by_default_at_lightnings_steps(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[TopPatchesMonitor()], logger=TensorBoardLogger(str(tmp_path)))
    trainer.fit(LittleNet(), train_loader(), val_loader())
    events = read(trainer.log_dir)
    steps = [event.step for event in events.Scalars("loss")]
    assert [event.step for event in events.Scalars("top_patches/features_0/label_purity")] == steps
    assert [event.step for event in events.Images("top_patches/features.0")] == steps
    assert "top_patches/dead_features" in events.Tags()["scalars"]
    assert (Path(trainer.log_dir) / "cnnviz" / "index.html").exists()
