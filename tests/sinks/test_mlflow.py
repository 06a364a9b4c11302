"""MLflow: everything of a look is read back from a local store by MLflow's own client."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from PIL import Image
from sinks.harness import Harness, full_disk, report_key

pytest.importorskip("mlflow")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones want a data base

from lightning.pytorch.loggers import MLFlowLogger

from lightning_cnnviz import LayerProbeMonitor, MlflowSink, Record, TopPatchesMonitor
from lightning_cnnviz.report import Picture, Report, Step, Table
from lightning_cnnviz.sinks.base import Sink


def logger_in(folder: str | Path) -> Any:
    state = random.getstate()
    logger = MLFlowLogger("looks", tracking_uri=f"file:{folder}/mlruns")
    assert logger.run_id  # MLflow draws a run's name
    random.setstate(state)
    return logger


def files(logger: Any, place: str | None = None) -> Iterator[str]:
    for entry in logger.experiment.list_artifacts(logger.run_id, place):
        if entry.is_dir:
            yield from files(logger, entry.path)
        else:
            yield entry.path


def image_names(logger: Any) -> list[str]:
    names = [Path(file).name for file in files(logger, "images") if file.endswith(".png")]
    return [name.split("+step+")[0].replace("~", "/") for name in names]


def keys(sink: Sink, loggers: list[Any]) -> list[str]:
    found = []
    for logger in loggers:
        client, run = logger.experiment, logger.run_id
        for key in client.get_run(run).data.metrics:
            found += [report_key(key)] * (len(client.get_metric_history(run, key)) if key != "epoch" else 0)
        found += image_names(logger)
        found += [file.removeprefix("cnnviz/").rpartition("_epoch_")[0] for file in files(logger, "cnnviz")]
    return found


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: list[Any]) -> None:
    for logger in loggers:
        patch.setattr(logger.experiment, "log_image", full_disk)


HARNESS = Harness(make=MlflowSink, loggers=lambda: [logger_in(tempfile.mkdtemp())], keys=keys, breaks=breaks)


def test_pictures_and_tables_are_read_back(tmp_path: Path) -> None:
    logger, sink = logger_in(tmp_path), MlflowSink()
    sink.open([logger], tmp_path)
    pixels = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    table = Table("all", ("layer", "n"), (("conv1", 1), ("conv2", None)))
    report = Report("view", title="Title", items=(Picture("features.3", pixels), table))
    sink.write(report, Step(epoch=2, global_step=10, logged=(1, 9)))
    (file,) = [file for file in files(logger, "images") if file.endswith(".png")]
    assert "+step+9+" in file
    local = logger.experiment.download_artifacts(logger.run_id, file, str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(local)), pixels.permute(1, 2, 0).numpy())
    local = logger.experiment.download_artifacts(logger.run_id, "cnnviz/view/all_epoch_2.json", str(tmp_path))
    content = json.loads(Path(local).read_text())
    assert content["columns"] == ["layer", "n"]
    assert content["data"][0] == ["conv1", 1]


def test_tables_of_looks_within_an_epoch_keep_apart(tmp_path: Path) -> None:
    logger, sink = logger_in(tmp_path), MlflowSink()
    sink.open([logger], tmp_path)
    report = Report("view", title="Title", items=(Table("all", ("n",), ((1,),)),))
    for steps, within in ((13, 0.3), (16, 0.6), (20, 0.0)):
        sink.write(report, Step(epoch=1 + (steps == 20), global_step=steps, within=within))
    found = sorted(Path(file).name for file in files(logger, "cnnviz"))
    assert found == ["all_epoch_1_step_13.json", "all_epoch_1_step_16.json", "all_epoch_2.json"]


def test_a_run_has_its_numbers_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = logger_in(tmp_path)
    probes = LayerProbeMonitor(["features.0"], heads=["svm"], every_n_epochs=1)
    trainer = quiet_trainer(callbacks=[TopPatchesMonitor(), probes], logger=logger)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    client, run = logger.experiment, logger.run_id
    steps = [metric.step for metric in client.get_metric_history(run, "loss")]
    for key in ("layer_probe/features_0/svm", "top_patches/features_0/dead_features"):
        assert [metric.step for metric in client.get_metric_history(run, key)] == steps
    assert image_names(logger).count("top_patches/features.0") == len(steps)
    record = Record(client.download_artifacts(run, "cnnviz/record", str(tmp_path)))
    assert [look.identity.view for look in record.looks()].count("top_patches") == 2
    assert len(set(files(logger, "cnnviz/record"))) == len(list(files(logger, "cnnviz/record")))
