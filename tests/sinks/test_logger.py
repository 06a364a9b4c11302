"""Numbers go to every logger, pictures to those that take some: by the methods that loggers have."""

from __future__ import annotations

import csv
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.loggers import CSVLogger
from sinks.harness import Harness, full_disk, report_key

from lightning_cnnviz import LayerProbeMonitor, LoggerSink, TopPatchesMonitor
from lightning_cnnviz.report import Picture, Report, Scalar, Step
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet


class CometLike:
    """What takes pictures as comet_ml's experiments do (comet_ml 3.58, `CometExperiment.log_image`)."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Any, int]] = []

    def log_image(
        self, image_data: Any, name: str | None = None, overwrite: bool = False, image_format: str = "png",
        image_scale: float = 1.0, image_shape: Any = None, image_colormap: Any = None, image_minmax: Any = None,
        image_channels: str = "last", copy_to_tmp: bool = True, step: int | None = None, annotations: Any = None,
        metadata: Any = None,
    ) -> None:  # fmt: skip
        self.pictures.append((str(name), image_data, int(step or 0)))


class WriterLike:
    """What takes pictures as torch's SummaryWriter does."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Any, int]] = []

    def add_image(
        self, tag: str, img_tensor: Any, global_step: int | None = None, walltime: Any = None, dataformats: str = "CHW"
    ) -> None:
        assert dataformats == "HWC"
        self.pictures.append((tag, img_tensor, int(global_step or 0)))


class FigureLike:
    """What takes figures alone, as comet_ml's experiments do too (comet_ml 3.58, `CometExperiment.log_figure`)."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Any, int]] = []

    def log_figure(
        self, figure_name: str | None = None, figure: Any = None, overwrite: bool = False, step: int | None = None,
        metadata: Any = None, format: str = "auto",
    ) -> None:  # fmt: skip
        figure.canvas.draw()
        self.pictures.append((str(figure_name), np.asarray(figure.canvas.buffer_rgba())[..., :3], int(step or 0)))


class LiveLike:
    """What takes pictures as files with a slider over numbers, as DVCLive does (dvclive 3.49, `Live.log_image`)."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Any, int]] = []

    def log_image(self, name: str, val: Any) -> None:
        folder, _, file = name.rpartition("/")
        assert file.endswith(".png")
        self.pictures.append((folder, val, int(file.removesuffix(".png"))))


class NeptuneLike:
    """What refuses old methods as neptune's runs do (neptune 1.14): by an error of its own."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"It seems you are trying to use the legacy API: {name}")


class Logger:
    """What every logger of Lightning has."""

    def __init__(self, experiment: Any = None) -> None:
        self.experiment, self.rows = experiment, list[tuple[int | None, dict[str, float]]]()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))


class ImageLogger(Logger):
    """One that takes lists of pictures, as several loggers do (WandbLogger's signature)."""

    pictures: list[tuple[str, Any, int]]

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures = [*getattr(self, "pictures", []), (key, images[0], int(step or 0))]


def keys(sink: Sink, loggers: list[Any]) -> list[str]:
    numbers = [key for logger in loggers for _, row in logger.rows for key in row if key != "epoch"]
    return [report_key(key) for key in numbers] + [
        name for logger in loggers for name, _, _ in logger.experiment.pictures
    ]


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: list[Any]) -> None:
    for logger in loggers:
        patch.setattr(type(logger.experiment), "log_image", _full_disk)


def _full_disk(self: Any, image_data: Any, name: str | None = None, step: int | None = None) -> None:
    full_disk()


HARNESS = Harness(make=LoggerSink, loggers=lambda: [Logger(CometLike())], keys=keys, breaks=breaks)

STEP = Step(epoch=2, global_step=10, logged=(1, 9))


def write(*loggers: Any) -> torch.Tensor:
    pixels = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    sink = LoggerSink()
    sink.open(loggers, Path("unused"))
    sink.write(Report("view", title="Title", items=(Picture("conv.1", pixels), Scalar("accuracy", 0.5))), STEP)
    return pixels


@pytest.mark.parametrize("make", [CometLike, WriterLike, FigureLike, LiveLike])
def test_experiments_that_take_pictures_are_given_them(make: Any) -> None:
    logger = Logger(make())
    pixels = write(logger)
    ((name, picture, step),) = logger.experiment.pictures
    assert (name, step) == ("view/conv.1", 9)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, pixels.permute(1, 2, 0).numpy())
    assert logger.rows == [(9, {"view/accuracy": 0.5, "epoch": 1.0})]


def test_loggers_that_take_pictures_are_given_them() -> None:
    logger = ImageLogger()
    write(logger)
    assert [(name, step) for name, _, step in logger.pictures] == [("view/conv.1", 9)]


@pytest.mark.parametrize("make", [lambda: None, NeptuneLike, object], ids=["none", "refuses", "other"])
def test_others_are_given_numbers_alone_and_nothing_is_drawn_for_them(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_cnnviz.sinks.logger.drawn", full_disk)
    logger = Logger(make())
    write(logger)
    assert logger.rows == [(9, {"view/accuracy": 0.5, "epoch": 1.0})]


def test_a_logger_with_a_sink_of_its_own_is_left_to_that() -> None:
    own = type("TensorBoardLogger", (Logger,), {})
    assert not LoggerSink.serves([own()])
    assert LoggerSink.serves([own(), Logger()])
    with pytest.raises(ValueError, match=r"LoggerSink found no logger .* \(TensorBoardLogger\)"):
        LoggerSink().open([own()], Path("unused"))


def test_csv_has_the_numbers_of_looks_at_lightnings_steps(tmp_path: Path) -> None:
    probes = LayerProbeMonitor(["features.0"], heads=["svm"], every_n_epochs=1)
    trainer = quiet_trainer(callbacks=[TopPatchesMonitor(), probes], logger=CSVLogger(tmp_path))
    trainer.fit(LittleNet(), train_loader(), val_loader())
    with (Path(trainer.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))

    def moments(key: str) -> list[tuple[str, float]]:
        return sorted((row["step"], float(row["epoch"])) for row in rows if row.get(key))

    # One row a look, whatever looks then, beside Lightning's own.
    ours = [row for row in rows if any(value and key.startswith(("top_", "layer_")) for key, value in row.items())]
    assert [(row["step"], row["epoch"]) for row in ours] == [("4", "0"), ("9", "1")]
    assert moments("loss") == [("4", 0.0), ("9", 1.0)]
    for key in ("top_patches/features_0/label_purity", "top_patches/dead_features", "layer_probe/features_0/svm"):
        assert moments(key) == moments("loss")


def test_signatures_are_those_of_the_loggers_that_are_installed() -> None:
    from lightning.pytorch.loggers import WandbLogger
    from torch.utils.tensorboard import SummaryWriter

    def names(method: Any) -> list[str]:
        return [name for name in inspect.signature(method).parameters if name != "kwargs"]

    assert names(ImageLogger.log_image) == names(WandbLogger.log_image)
    assert names(WriterLike.add_image) == names(SummaryWriter.add_image)


def test_no_message_asks_for_another_product_than_the_trainers() -> None:
    for loggers in ([], [Logger()]):
        with pytest.raises(ValueError, match=r"sinks=\[\]") as raised:
            Outlet("Who", []).open_for(loggers, Path("unused"))
        assert not re.search("wandb|tensorboard|mlflow", str(raised.value), re.IGNORECASE)
        assert ("LoggerSink()" in str(raised.value)) is bool(loggers)
